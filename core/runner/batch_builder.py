"""Turns runs of tokens into the arrays of forward passes. Block tables end here."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from ..backend import mx
from ..cache.block_table import BlockTable
from ..cache.kv_layout import LayerGroup
from .attention.row_attention import RowAttention
from .forward_batch import ChunkPlan, ForwardBatch, GroupBatch, PassForm

RaggedBucket: TypeAlias = Callable[[int, int], tuple[int, int]]


# Not frozen, as one is made for every row of every step, but nobody changes it.
@dataclass(slots=True, kw_only=True)
class Run:
    """Consecutive tokens of one sequence that are computed in one step.

    Attributes:
        token_ids: Their ids.
        start: Position of the first one.
        tables: The sequence's block tables, one per layer group.
        num_logits: From how many of them, counted from the end, logits are wanted.
        source: Where the id of a run's only token is found in the tokens drawn by the step before,
            if the host does not know it; ``token_ids`` then holds anything.
        key: Whose states recurrent layers go on from.
        is_speculative: Whether it has guesses at its end, or runs again because it had.
    """

    token_ids: Seq[int]
    start: int
    tables: Seq[BlockTable]
    num_logits: int
    source: int | None = None
    key: Hashable = None
    is_speculative: bool = False


class BatchBuilder:
    """Builds batches for one runner.

    Args:
        trash: By layer group, a table whose block nobody reads, for rows that only fill a bucket.
        row_bucket: How many rows a batch of rows alone is filled up to.
        longest_row_run: Runs of up to so many tokens are rows; longer ones are chunks.
        form: Whether rows and chunks share a pass.
        ragged_bucket: From the number of runs and the longest one's tokens to what a ragged pass
            is filled up to; ``None`` where passes must not be ragged.
    """

    def __init__(
        self,
        groups: Seq[LayerGroup],
        attention: RowAttention[Any],
        *,
        trash: Seq[BlockTable] = (),
        row_bucket: Callable[[int], int] = lambda count: count,
        longest_row_run: int = 1,
        form: PassForm = PassForm.FLAT,
        ragged_bucket: RaggedBucket | None = None,
    ) -> None:
        self._groups = groups
        self._ragged_bucket = ragged_bucket
        self._attention = attention
        self._trash = trash
        self._row_bucket = row_bucket if form is not PassForm.ALONE else lambda count: count
        self._longest_row_run = longest_row_run
        self._form = form

    def order(self, runs: Seq[Run]) -> list[int]:
        """The order in which the passes have the runs: rows first."""
        is_chunk = [self._is_chunk(run) for run in runs]
        return sorted(range(len(runs)), key=is_chunk.__getitem__)

    def build(self, runs: Seq[Run], drawn: mx.array | None = None) -> list[ForwardBatch]:
        """Make the passes of runs that are in `order`.

        Args:
            drawn: ``[n]``, the tokens of the step before, maybe still under way.
        """
        if self._form is PassForm.FLAT:
            return [self._build(runs, drawn)]
        rows = [run for run in runs if not self._is_chunk(run)]
        passes = []
        together = [[run] for run in rows] if self._form is PassForm.ALONE else [rows]
        for shared in together if rows else ():
            is_ragged = self._ragged_bucket and any(len(run.token_ids) > 1 for run in shared)
            batch = self._build_ragged(shared) if is_ragged else self._build(shared, drawn)
            passes.append(_of_states(batch, shared))
        for run in runs[len(rows) :]:
            alone = replace(self._build([run], None), run_start=run.start)
            passes.append(_of_states(alone, [run]))
        return passes

    def _build(self, runs: Seq[Run], drawn: mx.array | None) -> ForwardBatch:
        rows, chunks = list[Run](), list[Run]()
        for run in runs:
            (chunks if self._is_chunk(run) else rows).append(run)
        ids, positions = _tokens(rows)
        num_rows = len(ids)
        # Only batches of rows alone have few enough shapes to be worth repeating.
        num_padding = 0 if chunks else self._row_bucket(num_rows) - num_rows
        ids += [0] * num_padding
        positions += [0] * num_padding
        groups = tuple(
            self._group_batch(index, rows, positions, num_padding, chunks)
            for index in range(len(self._groups))
        )
        if chunks:
            more_ids, more_positions = _tokens(chunks)
            ids += more_ids
            positions += more_positions
        return ForwardBatch(
            token_ids=_token_ids(ids, rows, drawn),
            positions=mx.array(np.asarray(positions, np.int32)),
            num_rows=num_rows + num_padding,
            num_padding=num_padding,
            groups=groups,
            logit_index=_logit_index(runs),
        )

    def _build_ragged(self, runs: Seq[Run]) -> ForwardBatch:
        """One pass of runs; steps with guesses follow known tokens, so all ids are known."""
        assert self._ragged_bucket is not None
        lengths = [len(run.token_ids) for run in runs]
        num_runs, length = self._ragged_bucket(len(runs), max(lengths))
        num_padding = num_runs - len(runs)
        ids, positions = list[int](), list[int]()
        for run in runs:
            ids += [*run.token_ids, *[0] * (length - len(run.token_ids))]
            positions += range(run.start, run.start + length)
        ids += [0] * (num_padding * length)
        positions += [*range(length)] * num_padding
        real, wanted = list[int](), list[int]()
        for place, run in enumerate(runs):
            stop = place * length + len(run.token_ids)
            real += range(place * length, stop)
            wanted += range(stop - run.num_logits, stop)
        return ForwardBatch(
            token_ids=mx.array(np.asarray(ids, np.int32)),
            positions=mx.array(np.asarray(positions, np.int32)),
            num_rows=len(ids),
            num_padding=num_padding,
            groups=tuple(
                self._ragged_group(index, runs, num_padding, length)
                for index in range(len(self._groups))
            ),
            logit_index=mx.array(np.asarray(wanted, np.int32)),
            run_length=length,
            token_index=mx.array(np.asarray(real, np.int32)),
            run_lengths=mx.array(np.asarray([*lengths, *[1] * num_padding], np.int32)),
        )

    def _ragged_group(
        self, index: int, runs: Seq[Run], num_padding: int, length: int
    ) -> GroupBatch:
        """Filling attends to what its run's last token does, and is written where nobody reads."""
        trash = self._trash[index]
        tables, positions, slots = [], [], []
        for run in runs:
            table, count = run.tables[index], len(run.token_ids)
            last = run.start + count - 1
            tables += [table] * length
            positions += [min(run.start + i, last) for i in range(length)]
            slots += [table.slot(position) for position in range(run.start, last + 1)]
            slots += [trash.slot(0)] * (length - count)
        count = num_padding * length
        plan = self._attention.plan(
            tables + [trash] * count, positions + [0] * count, self._groups[index]
        )
        slots += [trash.slot(0)] * count
        return GroupBatch(slots=mx.array(np.asarray(slots, np.int32)), rows=plan)

    def _is_chunk(self, run: Run) -> bool:
        # Some models treat a sequence that has no past yet in a way of its own.
        is_first = run.start == 0 and self._form is not PassForm.FLAT
        if run.is_speculative and self._ragged_bucket is not None:
            return is_first
        return is_first or len(run.token_ids) > self._longest_row_run

    def _group_batch(
        self,
        index: int,
        rows: Seq[Run],
        positions: Seq[int],
        num_padding: int,
        chunks: Seq[Run],
    ) -> GroupBatch:
        """Of rows, whose tokens and filling have these positions, and of chunks."""
        group = self._groups[index]
        tables = [run.tables[index] for run in rows for _ in run.token_ids]
        if num_padding:
            tables += [self._trash[index]] * num_padding
        slots = [table.slot(at) for table, at in zip(tables, positions, strict=True)]
        plans, parts = [], [np.asarray(slots, np.int32)]
        start = len(slots)
        for run in chunks:
            parts.append(_slots(run.tables[index], run.start, run.start + len(run.token_ids)))
            plans.append(_chunk_plan(run, run.tables[index], group, start))
            start += len(run.token_ids)
        return GroupBatch(
            slots=mx.array(np.concatenate(parts)),
            rows=self._attention.plan(tables, positions, group) if tables else None,
            chunks=tuple(plans),
        )


def _of_states(batch: ForwardBatch, runs: Seq[Run]) -> ForwardBatch:
    return replace(
        batch,
        state_keys=tuple(run.key for run in runs),
        is_speculative=any(run.is_speculative for run in runs),
    )


def _tokens(runs: Seq[Run]) -> tuple[list[int], list[int]]:
    """Ids and positions, one run after another."""
    ids, positions = list[int](), list[int]()
    for run in runs:
        ids += run.token_ids
        positions += range(run.start, run.start + len(run.token_ids))
    return ids, positions


def _token_ids(ids: Seq[int], rows: Seq[Run], drawn: mx.array | None) -> mx.array:
    places = [-1] * len(ids)
    at = 0
    for run in rows:
        if run.source is not None:
            places[at] = run.source
        at += len(run.token_ids)
    if drawn is not None and len(ids) == drawn.size and places == list(range(len(ids))):
        return drawn  # the rows of the step before: while nobody comes or goes, in every step
    known = mx.array(np.asarray(ids, np.int32))
    source = np.asarray(places, np.int32)
    if drawn is None or not (source >= 0).any():
        return known
    pending = drawn[mx.array(np.maximum(source, 0))]
    return mx.where(mx.array(source >= 0), pending, known)


def _logit_index(runs: Seq[Run]) -> mx.array | None:
    if all(run.num_logits == len(run.token_ids) for run in runs):
        return None  # all of them, and of padding rows too: cutting these off is cheaper
    wanted: list[int] = []
    start = 0
    for run in runs:
        stop = start + len(run.token_ids)
        wanted += range(stop - run.num_logits, stop)
        start = stop
    return mx.array(np.asarray(wanted, np.int32))


def _slots(table: BlockTable, start: int, stop: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    positions = np.arange(start, stop)
    first = start // table.block_size
    held = table.span(first, (stop - 1) // table.block_size + 1).astype(np.int64)
    blocks = held[positions // table.block_size - first]
    return (blocks * table.block_size + positions % table.block_size).astype(np.int32)


def _chunk_plan(run: Run, table: BlockTable, group: LayerGroup, start: int) -> ChunkPlan:
    size = table.block_size
    length = len(run.token_ids)
    first_block = group.first_needed(run.start) // size
    num_prefix = run.start - first_block * size
    if num_prefix <= 0:
        return ChunkPlan(start=start, length=length)
    stop_block = -(-(run.start + length) // size)
    ids = table.block_ids[first_block - table.first_block : stop_block - table.first_block]
    return ChunkPlan(
        start=start,
        length=length,
        num_prefix=num_prefix,
        blocks=mx.array(np.asarray(ids, np.uint32)),
    )
