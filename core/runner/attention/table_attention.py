"""Row attention over block tables, padded to a bucket of widths so that shapes repeat.

The kernel reads blocks where they lie. Where there is none for a shape, every row's blocks are
copied side by side for MLX's fused attention.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np

from ...backend import mx
from ...cache.block_table import BlockTable
from ...cache.kv_layout import LayerGroup
from ...cache.vector_format import Blocks
from ..host_array import HostArray
from .row_attention import RowAttention, first_blocks

# A table is as wide as a power of two blocks, from this one on.
_NARROWEST = 16


@dataclass(frozen=True, slots=True)
class TablePlan:
    """Which slots each row attends to, in one layer group.

    Attributes:
        table: ``[rows, width]``, uint32, block ids. Padded with the row's own last block: what
            another sequence's blocks hold need not be numbers.
        firsts: ``[rows]``, int32, position of each table's first slot.
        lengths: ``[rows]``, int32; a row attends to positions below.
        window: How many of these, from the end; ``None`` for all.
    """

    table: mx.array
    firsts: mx.array
    lengths: mx.array
    window: int | None

    @property
    def arrays(self) -> tuple[mx.array, mx.array, mx.array]:
        """What differs from step to step."""
        return self.table, self.firsts, self.lengths

    def with_arrays(self, arrays: Seq[mx.array]) -> TablePlan:
        """The same plan over other arrays of the same shapes."""
        table, firsts, lengths = arrays
        return TablePlan(table, firsts, lengths, self.window)

    def mask(self, block_size: int) -> mx.array:
        """``[rows, width * block_size]``, bool, slots that each row attends to."""
        width = self.table.shape[1] * block_size
        at = self.firsts[:, None] + mx.arange(width, dtype=mx.int32)
        mask = at < self.lengths[:, None]
        if self.window is not None:
            mask = mask & (at >= self.lengths[:, None] - self.window)
        return mask


@dataclass(slots=True)
class _PaddedRows:
    """Tables side by side, and what each row was made of: a block is added in few of many steps.

    Attributes:
        sources: A row's table, its version, and the first of its blocks and the one behind them.
        padded: ``[rows, width]``, see `TablePlan.table`.
    """

    sources: Seq[tuple[BlockTable, int, int, int] | None]
    padded: HostArray

    def fill(self, sources: Seq[tuple[BlockTable, int, int, int]]) -> None:
        """Copy the rows whose source is another."""
        for row, (source, before) in enumerate(zip(sources, self.sources, strict=True)):
            if source != before:
                table, _, first, stop = source
                blocks = table.span(first, stop)
                self.padded[row, : len(blocks)] = blocks
                self.padded[row, len(blocks) :] = blocks[-1]
        self.sources = sources


class TableAttention(RowAttention[TablePlan]):
    """Copies every row's blocks side by side and calls MLX's fused attention."""

    def __init__(self) -> None:
        self._newest: dict[LayerGroup, _PaddedRows] = {}

    def plan(self, tables: Seq[BlockTable], positions: Seq[int], group: LayerGroup) -> TablePlan:
        """See `RowAttention.plan`."""
        size = tables[0].block_size
        firsts = first_blocks(positions, size, group)
        sources = [
            (table, table.version, first, position // size + 1)
            for table, first, position in zip(tables, firsts, positions, strict=True)
        ]
        width = _width_bucket(max([stop - first for _, _, first, stop in sources]))
        newest = self._newest.get(group)
        if newest is None or newest.padded.shape != (len(sources), width):
            newest = _PaddedRows([None] * len(sources), np.empty((len(sources), width), np.uint32))
            self._newest[group] = newest
        newest.fill(sources)
        return TablePlan(
            mx.array(newest.padded),
            mx.array(np.asarray(firsts, np.int32) * size),
            mx.array(np.asarray(positions, np.int32) + 1),
            group.window,
        )

    def attend(
        self,
        queries: mx.array,
        keys: Blocks,
        values: Blocks,
        plan: TablePlan,
        *,
        scale: float,
        sinks: mx.array | None = None,
        written: mx.array | None = None,
    ) -> mx.array:
        """See `RowAttention.attend`."""
        num_rows, width = plan.table.shape

        table = plan.table
        if written is not None:
            # Nothing is added, but it waits.
            table = table + mx.minimum(written.view(mx.uint32).reshape(-1)[:1], 0)

        def run(store: Blocks) -> mx.array:
            _, heads, size, dim = store.shape
            return store[table].swapaxes(1, 2).reshape(num_rows, heads, width * size, dim)

        return mx.fast.scaled_dot_product_attention(
            queries,
            run(keys),
            run(values),
            scale=scale,
            mask=plan.mask(keys.shape[2])[:, None, None],
            sinks=sinks,
        )


def _width_bucket(num_blocks: int) -> int:
    width = _NARROWEST
    while width < num_blocks:
        width *= 2
    return width
