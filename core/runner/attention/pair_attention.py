"""Row attention in plain MLX that multiplies with blocks where they lie.

All (row, block) pairs are listed one after another, so work and memory follow the sum of the rows'
lengths and never rows times the longest. For float32 on the CPU: `gather_mm` sums in the dtype of
its inputs, which is too coarse for 16 bits, and MLX has no `segmented_mm` on CUDA.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np

from ...backend import LOG2_E, exp2, mx
from ...cache.block_table import BlockTable
from ...cache.kv_layout import LayerGroup
from ...cache.vector_format import Blocks, QuantizedBlocks
from .row_attention import RowAttention, block_runs


@dataclass(frozen=True, slots=True)
class PairIndex:
    """What the pairs of a plan multiply with what, for one number of KV heads.

    Attributes:
        queries: ``[pairs, kv_heads]``, uint32, into ``[rows * kv_heads]`` matrices.
        blocks: ``[pairs, kv_heads]``, uint32, into ``[num_blocks * kv_heads]`` matrices.
        pairs: ``[pairs, kv_heads]``, uint32, into ``[pairs * kv_heads]`` matrices.
    """

    queries: mx.array
    blocks: mx.array
    pairs: mx.array


@dataclass(frozen=True, slots=True, kw_only=True)
class PairPlan:
    """Which slots each row attends to, in one layer group.

    Attributes:
        num_rows: Rows of the batch.
        rows: ``[pairs]``, uint32, ascending.
        blocks: ``[pairs]``, uint32, block id.
        valid: ``[pairs, block_size]``, bool, slots that the row attends to.
        spans: ``[rows, 2]``, uint32, first pair of each row and the one after its last.
    """

    num_rows: int
    rows: mx.array
    blocks: mx.array
    valid: mx.array
    spans: mx.array
    _indices: dict[int, PairIndex] = field(default_factory=dict, compare=False, repr=False)

    def index(self, num_kv_heads: int) -> PairIndex:
        """Worked out once for all layers of the group."""
        if num_kv_heads not in self._indices:
            heads = mx.arange(num_kv_heads, dtype=mx.uint32)
            count = self.rows.shape[0]
            self._indices[num_kv_heads] = PairIndex(
                self.rows[:, None] * num_kv_heads + heads,
                self.blocks[:, None] * num_kv_heads + heads,
                mx.arange(count * num_kv_heads, dtype=mx.uint32).reshape(count, num_kv_heads),
            )
        return self._indices[num_kv_heads]


class PairAttention(RowAttention[PairPlan]):
    """Multiplies pair by pair, then sums each row's pairs."""

    def plan(self, tables: Seq[BlockTable], positions: Seq[int], group: LayerGroup) -> PairPlan:
        """See `RowAttention.plan`."""
        size = tables[0].block_size
        runs, firsts = block_runs(tables, positions, group)
        counts = np.asarray([len(run) for run in runs])
        rows = np.repeat(np.arange(len(runs)), counts)
        # Position of each pair's first slot: the row's first block plus the place in its run.
        stops = np.cumsum(counts)
        place = np.arange(len(rows)) - np.repeat(stops - counts, counts)
        starts = (np.asarray(firsts)[rows] + place) * size
        last = np.asarray(positions)[rows]
        at = starts[:, None] + np.arange(size)
        valid = at <= last[:, None]
        if group.window is not None:
            valid &= at > (last - group.window)[:, None]
        return PairPlan(
            num_rows=len(runs),
            rows=mx.array(rows.astype(np.uint32)),
            blocks=mx.array(np.concatenate(runs)),
            valid=mx.array(valid),
            spans=mx.array(np.stack([stops - counts, stops], axis=1).astype(np.uint32)),
        )

    def attend(
        self,
        queries: mx.array,
        keys: Blocks,
        values: Blocks,
        plan: PairPlan,
        *,
        scale: float,
        sinks: mx.array | None = None,
        written: mx.array | None = None,
    ) -> mx.array:
        """See `RowAttention.attend`. Scores are kept in powers of two: see `exp2`."""
        num_rows, num_heads, _, key_dim = queries.shape
        _, num_kv_heads, block_size, value_dim = values.shape
        group = num_heads // num_kv_heads
        index = plan.index(num_kv_heads)
        key_blocks, keys = _numbers(keys, plan, index)
        value_blocks, values = _numbers(values, plan, index)
        num_pairs = plan.blocks.shape[0]
        scores = mx.gather_mm(
            (queries.astype(mx.float32) * (scale * LOG2_E)).reshape(
                num_rows * num_kv_heads, group, key_dim
            ),
            keys.reshape(-1, block_size, key_dim).swapaxes(-1, -2),
            lhs_indices=index.queries,
            rhs_indices=key_blocks,
        )  # [pairs, kv_heads, group, block_size]
        scores = mx.where(plan.valid[:, None, None], scores, -mx.inf)
        if sinks is not None:
            sinks = sinks.astype(mx.float32).reshape(num_kv_heads, group) * LOG2_E
        peak = _peak_by_row(scores, plan, sinks)  # [rows, kv_heads, group]
        weights = exp2(scores - (peak if num_rows == 1 else peak[plan.rows])[..., None])
        partial = mx.gather_mm(
            weights.reshape(num_pairs * num_kv_heads, group, block_size),
            values.reshape(-1, block_size, value_dim),
            lhs_indices=index.pairs,
            rhs_indices=value_blocks,
        )  # [pairs, kv_heads, group, value_dim]
        total = _sum_by_row(weights.sum(axis=-1).reshape(num_pairs, -1), plan)
        if sinks is not None:
            total = total + exp2(sinks - peak).reshape(num_rows, -1)
        summed = _sum_by_row(partial.reshape(num_pairs, -1), plan)
        out = summed.reshape(num_rows, num_heads, value_dim) / total[..., None]
        return out[:, :, None].astype(queries.dtype)


def _numbers(store: Blocks, plan: PairPlan, index: PairIndex) -> tuple[mx.array, mx.array]:
    """Which matrices the pairs read, and of what array: of the store, or of copies, dequantised."""
    if isinstance(store, QuantizedBlocks):
        return index.pairs, store[plan.blocks]
    return index.blocks, store


def _peak_by_row(scores: mx.array, plan: PairPlan, sinks: mx.array | None) -> mx.array:
    """``[pairs, kv_heads, group, block_size]`` -> ``[rows, kv_heads, group]``."""
    if plan.num_rows == 1:
        peak = scores.max(axis=(0, 3))[None]
        return peak if sinks is None else mx.maximum(peak, sinks)
    shape = (plan.num_rows, *scores.shape[1:3])
    start = mx.full(shape, -mx.inf) if sinks is None else mx.broadcast_to(sinks, shape)
    return start.at[plan.rows].maximum(scores.max(axis=-1))


def _sum_by_row(pairs: mx.array, plan: PairPlan) -> mx.array:
    """``[pairs, n]`` -> ``[rows, n]``. What is not a number stays in its own row."""
    if plan.num_rows == 1:
        return pairs.sum(axis=0, keepdims=True)
    return mx.segmented_mm(mx.ones((1, pairs.shape[0])), pairs, plan.spans)[:, 0]
