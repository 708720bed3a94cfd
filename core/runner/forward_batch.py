"""The arrays of one forward pass, shapes stated.

A step is a few forward passes: one per prefill chunk, ``[1, length]``, and one for all rows that
draw a token, ``[rows, 1]``. Each row attends to its own length; nothing is padded.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..backend import mx
from ..cache.kv_store import SlotIndex


@dataclass(frozen=True, slots=True)
class PairIndex:
    """What the pairs of some `PagedRows` multiply with what, for one number of KV heads.

    Attributes:
        queries: ``[pairs, kv_heads]``, uint32, into ``[rows * kv_heads]`` matrices.
        blocks: ``[pairs, kv_heads]``, uint32, into ``[num_blocks * kv_heads]`` matrices.
        pairs: ``[pairs, kv_heads]``, uint32, into ``[pairs * kv_heads]`` matrices.
    """

    queries: mx.array
    blocks: mx.array
    pairs: mx.array


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedRows:
    """Which slots each decode row attends to, in one layer group.

    All (row, block) pairs are listed one after another, so the work is the sum of the rows'
    lengths and never rows times the longest.

    Attributes:
        num_rows: Rows of the batch.
        rows: ``[pairs]``, uint32, ascending.
        blocks: ``[pairs]``, uint32, block id.
        valid: ``[pairs, block_size]``, bool, slots that the row attends to.
        spans: ``[rows, 2]``, uint32, first pair of each row and the one after its last.
        table: ``[rows, width]``, uint32, block ids by row. Padded with the row's own last block:
            what another sequence's blocks hold need not be numbers.
        table_valid: ``[rows, width * block_size]``, bool.
    """

    num_rows: int
    rows: mx.array
    blocks: mx.array
    valid: mx.array
    spans: mx.array
    table: mx.array
    table_valid: mx.array
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


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixRun:
    """The computed tokens that a prefill chunk attends to, in one layer group.

    Attributes:
        blocks: ``[n]`` block ids, or ``None`` at the start of a sequence.
        first: Position of the first gathered token.
        num_tokens: Gathered tokens to use; the last block may hold fewer than it has room for.
    """

    blocks: mx.array | None
    first: int
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupBatch:
    """One forward pass as one layer group sees it: either rows or a chunk."""

    slots: SlotIndex
    rows: PagedRows | None = None
    prefix: PrefixRun | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardBatch:
    """One forward pass.

    Attributes:
        token_ids: ``[batch, length]``.
        offset: Position of the first token: an int for one chunk, ``[rows]`` for decode rows.
        start: The same int for a chunk; 0 for rows.
        groups: One entry per layer group.
    """

    token_ids: mx.array
    offset: mx.array | int
    start: int
    groups: tuple[GroupBatch, ...]
