"""The arrays of one forward pass, shapes stated.

A step is one pass over all its tokens, each a batch entry of its own: ``[tokens, 1]``. First come
rows, which attend through their block tables, then chunks, runs of one sequence's tokens that
attend together. So every linear layer sees all tokens at once, and nothing is padded but to make
shapes repeat.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Any

from ..backend import mx


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkPlan:
    """What a chunk attends to beside itself, in one layer group.

    Attributes:
        start: The chunk's first token, counted in the batch.
        length: Its tokens.
        num_prefix: Earlier tokens that it attends to.
        blocks: ``[n]``, uint32, the blocks that hold these and the chunk; ``None`` if there are no
            earlier ones.
    """

    start: int
    length: int
    num_prefix: int = 0
    blocks: mx.array | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupBatch:
    """One forward pass as one layer group sees it.

    Attributes:
        slots: ``[tokens]``, int32, where each token's key and value are written.
        rows: A plan of the runner's `RowAttention`, for the first tokens of the batch.
        chunks: For the others, in order.
    """

    slots: mx.array
    rows: Any | None
    chunks: tuple[ChunkPlan, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardBatch:
    """One forward pass.

    Attributes:
        token_ids: ``[tokens]``, int32.
        positions: ``[tokens]``, int32.
        num_rows: Tokens that are rows; the others belong to chunks.
        groups: One entry per layer group.
        logit_index: ``[n]``, int32, the tokens whose logits are wanted; ``None`` for all.
    """

    token_ids: mx.array
    positions: mx.array
    num_rows: int
    groups: tuple[GroupBatch, ...]
    logit_index: mx.array | None = None

    @property
    def arrays(self) -> list[mx.array]:
        """What a batch of rows alone is made of."""
        arrays = [self.token_ids, self.positions]
        for group in self.groups:
            arrays += [group.slots, *group.rows.arrays]  # type: ignore[union-attr]
        return arrays

    def with_arrays(self, arrays: Seq[mx.array]) -> ForwardBatch:
        """The same batch of rows over other arrays of the same shapes."""
        token_ids, positions, *rest = arrays
        groups = []
        for group in self.groups:
            plan: Any = group.rows
            count = len(plan.arrays)
            slots, *own = rest[: 1 + count]
            del rest[: 1 + count]
            groups.append(replace(group, slots=slots, rows=plan.with_arrays(own)))
        return replace(self, token_ids=token_ids, positions=positions, groups=tuple(groups))
