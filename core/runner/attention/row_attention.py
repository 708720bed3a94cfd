"""How rows, one token each, attend to what their block tables name: the seam for kernels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as Seq
from typing import Generic, TypeVar

from ...backend import mx
from ...cache.block_table import BlockIds, BlockTable
from ...cache.kv_layout import LayerGroup
from ...cache.vector_format import Blocks

PlanT = TypeVar("PlanT")


def block_runs(
    tables: Seq[BlockTable], positions: Seq[int], group: LayerGroup
) -> tuple[list[BlockIds], list[int]]:
    """For each row, the blocks that it attends to, and the index of the first of them."""
    size = tables[0].block_size
    firsts = first_blocks(positions, size, group)
    rows = zip(tables, positions, firsts, strict=True)
    return [table.span(first, position // size + 1) for table, position, first in rows], firsts


def first_blocks(positions: Seq[int], block_size: int, group: LayerGroup) -> list[int]:
    """For each row, the index of the first block that it attends to."""
    if group.window is None:
        return [0] * len(positions)
    return [group.first_needed(position) // block_size for position in positions]


class RowAttention(ABC, Generic[PlanT]):
    """Plans on the host what is read for one layer group, then attends, layer by layer."""

    @abstractmethod
    def plan(self, tables: Seq[BlockTable], positions: Seq[int], group: LayerGroup) -> PlanT:
        """The arrays that tell which slots each row attends to.

        Args:
            tables: The block table of each row's sequence; several rows may share one.
            positions: Of each row's token; it attends to itself and what lies before.
        """

    @abstractmethod
    def attend(
        self,
        queries: mx.array,
        keys: Blocks,
        values: Blocks,
        plan: PlanT,
        *,
        scale: float,
        sinks: mx.array | None = None,
        written: mx.array | None = None,
    ) -> mx.array:
        """Attention of rows, each over its own blocks.

        Args:
            queries: ``[rows, num_heads, 1, key_dim]``.
            keys: ``[num_blocks, num_kv_heads, block_size, key_dim]``.
            values: ``[num_blocks, num_kv_heads, block_size, value_dim]``.
            sinks: ``[num_heads]``, logits of a token that is attended to but has no value.
            written: An array, at least 4 bytes; the store may be read once it has been made.

        Returns:
            ``[rows, num_heads, 1, value_dim]``, in the dtype of the queries.
        """
