"""Turns scheduled sequences into the arrays of forward passes. Block tables end here."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np

from ..backend import mx
from ..cache.block_table import BlockTable
from ..cache.kv_layout import LayerGroup
from ..cache.kv_store import SlotIndex
from .forward_batch import ForwardBatch, GroupBatch, PagedRows, PrefixRun


def build_chunk(
    token_ids: Seq[int], start: int, tables: Seq[BlockTable], groups: Seq[LayerGroup]
) -> ForwardBatch:
    """A prefill chunk of one sequence.

    Args:
        token_ids: The chunk's tokens; the first one stands at position ``start``.
        tables: The sequence's block tables, one per layer group.
    """
    stop = start + len(token_ids)
    return ForwardBatch(
        token_ids=mx.array(np.asarray(token_ids, dtype=np.int32)[None]),
        offset=start,
        start=start,
        groups=tuple(
            GroupBatch(slots=_slots(table, start, stop), prefix=_prefix(table, group, start))
            for table, group in zip(tables, groups, strict=True)
        ),
    )


def build_rows(
    token_ids: mx.array,
    positions: Seq[int],
    tables: Seq[Seq[BlockTable]],
    groups: Seq[LayerGroup],
) -> ForwardBatch:
    """One token each of several sequences.

    Args:
        token_ids: ``[rows]``; may depend on a step that is still under way.
        positions: Where each row's token stands.
        tables: For each row, its sequence's block tables.
    """
    by_group = []
    for index, group in enumerate(groups):
        own = [row[index] for row in tables]
        slots = [table.slot(p) for table, p in zip(own, positions, strict=True)]
        by_group.append(
            GroupBatch(
                slots=SlotIndex(slots, own[0].block_size),
                rows=_paged_rows(own, positions, group),
            )
        )
    return ForwardBatch(
        token_ids=token_ids[:, None],
        offset=mx.array(np.asarray(positions, dtype=np.int32)),
        start=0,
        groups=tuple(by_group),
    )


def _slots(table: BlockTable, start: int, stop: int) -> SlotIndex:
    size = table.block_size
    positions = np.arange(start, stop)
    held = np.asarray(table.block_ids, dtype=np.int64)
    blocks = held[positions // size - table.first_block]
    slots = blocks * size + positions % size
    return SlotIndex(slots.tolist(), size)


def _prefix(table: BlockTable, group: LayerGroup, start: int) -> PrefixRun:
    first_block = group.first_needed(start) // table.block_size
    stop_block = -(-start // table.block_size)
    first = first_block * table.block_size
    if first >= start:
        return PrefixRun(blocks=None, first=start, num_tokens=0)
    ids = [table.block_at(i) for i in range(first_block, stop_block)]
    return PrefixRun(
        blocks=mx.array(np.asarray(ids, dtype=np.uint32)), first=first, num_tokens=start - first
    )


def _paged_rows(tables: Seq[BlockTable], positions: Seq[int], group: LayerGroup) -> PagedRows:
    size = tables[0].block_size
    runs, firsts = [], []
    for table, position in zip(tables, positions, strict=True):
        first = group.first_needed(position) // size
        skip = first - table.first_block
        runs.append(table.block_ids[skip : position // size + 1 - table.first_block])
        firsts.append(first)
    counts = np.asarray([len(run) for run in runs])
    rows = np.repeat(np.arange(len(runs)), counts)
    # Position of each pair's first slot: the row's first block plus the place in the row's run.
    stops = np.cumsum(counts)
    place = np.arange(len(rows)) - np.repeat(stops - counts, counts)
    starts = (np.asarray(firsts)[rows] + place) * size
    last = np.asarray(positions)[rows]
    at = starts[:, None] + np.arange(size)
    valid = at <= last[:, None]
    if group.window is not None:
        valid &= at > (last - group.window)[:, None]
    padded = np.repeat(np.asarray([[run[-1]] for run in runs], np.uint32), counts.max(), axis=1)
    padded[rows, place] = np.concatenate([np.asarray(run) for run in runs])
    padded_valid = np.zeros((*padded.shape, size), dtype=np.bool_)
    padded_valid[rows, place] = valid
    return PagedRows(
        num_rows=len(runs),
        rows=mx.array(rows.astype(np.uint32)),
        blocks=mx.array(padded[rows, place]),
        valid=mx.array(valid),
        spans=mx.array(np.stack([stops - counts, stops], axis=1).astype(np.uint32)),
        table=mx.array(padded),
        table_valid=mx.array(padded_valid.reshape(len(runs), -1)),
    )
