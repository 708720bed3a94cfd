"""The arrays of one forward pass, shapes stated.

A step is one pass over all its tokens, each a batch entry of its own: ``[tokens, 1]``. First come
rows, which attend through their block tables, then chunks, runs of one sequence's tokens that
attend together. So every linear layer sees all tokens at once, and nothing is padded but to make
shapes repeat.

Some models need to see a run of tokens as one, ``[1, tokens]``: recurrent layers, and attention
that is more than its keys and values. Then each chunk is a pass of its own. Guesses that such a
model verifies are rows all the same where it takes *ragged* passes, ``[runs, length]``: each run
is filled up at its end, and the model told how long it is.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Any

from ..backend import mx


class PassForm(enum.Enum):
    """What a model's code can be handed."""

    FLAT = "flat"  # all tokens of a step in one pass
    SPLIT = "split"  # rows in one pass, each chunk in one of its own
    GATHERED = "gathered"  # the same, and attention is the model's own business
    ALONE = "alone"  # the same, and not even rows share a pass


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
        num_padding: Of the rows, or of the runs of a ragged pass, those at the end that only fill a
            bucket.
        groups: One entry per layer group.
        logit_index: ``[n]``, int32, the tokens whose logits are wanted; ``None`` for all.
        run_start: Position of the first token if they are one run, which the model is handed as
            ``[1, tokens]``; ``None`` if they are ``[runs, length]``.
        run_length: Tokens of each run, mostly 1.
        run_lengths: ``[runs]``, int32, how many of these are no filling; ``None`` if all are.
        token_index: ``[n]``, int32, the tokens of a ragged pass that are no filling.
        hidden: ``[tokens, dims]``, what a head that guesses is given beside the tokens.
        is_speculative: Whether states may have to be taken back.
        state_keys: Whose states recurrent layers go on from, in the order of the rows.
        states: These, ``[rows, ...]`` each.
    """

    token_ids: mx.array
    positions: mx.array
    num_rows: int
    groups: tuple[GroupBatch, ...]
    num_padding: int = 0
    logit_index: mx.array | None = None
    run_start: int | None = None
    run_length: int = 1
    run_lengths: mx.array | None = None
    token_index: mx.array | None = None
    hidden: mx.array | None = None
    is_speculative: bool = False
    state_keys: tuple[Hashable, ...] = ()
    states: tuple[mx.array, ...] = ()

    @property
    def has_logits(self) -> bool:
        """Whether any logits are wanted."""
        return self.logit_index is None or self.logit_index.size > 0

    @property
    def starts(self) -> mx.array:
        """Position of each run's first token."""
        return self.positions.reshape(-1, self.run_length)[:, 0]

    @property
    def arrays(self) -> list[mx.array]:
        """What a batch of rows alone is made of."""
        arrays = [self.token_ids, self.positions, *self.states]
        arrays += [array for array in (self.run_lengths, self.hidden) if array is not None]
        for group in self.groups:
            arrays += [group.slots, *group.rows.arrays]  # type: ignore[union-attr]
        return arrays

    def with_arrays(self, arrays: Seq[mx.array]) -> ForwardBatch:
        """The same batch of rows over other arrays of the same shapes."""
        token_ids, positions, *rest = arrays
        states = tuple(rest[: len(self.states)])
        del rest[: len(states)]
        lengths = None if self.run_lengths is None else rest.pop(0)
        hidden = None if self.hidden is None else rest.pop(0)
        groups = []
        for group in self.groups:
            plan: Any = group.rows
            count = len(plan.arrays)
            slots, *own = rest[: 1 + count]
            del rest[: 1 + count]
            groups.append(replace(group, slots=slots, rows=plan.with_arrays(own)))
        return replace(
            self,
            token_ids=token_ids,
            positions=positions,
            states=states,
            run_lengths=lengths,
            hidden=hidden,
            groups=tuple(groups),
        )
