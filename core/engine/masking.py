"""Brings constraints up to date and turns them into the masks of a step's rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

import numpy as np

from ..constraints.constraint import Constraint, MaskRow
from ..errors import PippinError
from .schedule import Schedule, ScheduledSequence
from .sequence import Sequence

if TYPE_CHECKING:
    from ..runner.host_array import HostArray
    from ..runner.model_runner import MaskBuilder
    from ..runner.step_output import StepOutput

_ALL = 0xFFFFFFFF


def mask_builder(
    schedule: Schedule, read_before: Callable[[], StepOutput] | None
) -> MaskBuilder | None:
    """What builds a step's masks; ``None`` if none of its sequences is constrained.

    Args:
        read_before: Waits for the step before, if that is not told yet.
    """
    if not any(i.samples and i.sequence.constraint is not None for i in schedule.scheduled):
        return None

    def build(items: Seq[ScheduledSequence], vocab_size: int) -> HostArray:
        drawn = {} if read_before is None else read_before().token_ids
        return build_masks(items, vocab_size, drawn)

    return build


def build_masks(
    items: Seq[ScheduledSequence], vocab_size: int, drawn: Mapping[tuple[str, int], Seq[int]]
) -> MaskRow:
    """Masks of all rows that draw, ``[rows, ceil(vocab_size / 32)]``, all bits set where all goes.

    A constraint that fails sets its sequence's ``constraint_fault`` and harms nobody else.

    Args:
        drawn: Tokens that the step before drew, by `Sequence.key`; they may be known already.
    """
    num_rows = sum(item.num_rows for item in items)
    masks = np.full((num_rows, -(-vocab_size // 32)), _ALL, dtype=np.uint32)
    first = 0
    for item in items:
        sequence, rows = item.sequence, masks[first : first + item.num_rows]
        first += item.num_rows
        if sequence.constraint is None:
            continue
        try:
            _follow(sequence.constraint, sequence, drawn.get(sequence.key, ()))
            _fill(sequence.constraint, rows, item.drafts)
        except PippinError as error:
            sequence.constraint_fault = str(error)
        except Exception as error:  # its sequence's fault alone, whatever it is
            sequence.constraint_fault = f"{type(error).__name__}: {error}"
        if sequence.constraint.is_over:
            sequence.constraint = None
    return masks


def _follow(constraint: Constraint, sequence: Sequence, drawn: Seq[int]) -> None:
    """Tell a constraint all of the answer's tokens, be they told to the sequence or not."""
    token_ids = sequence.token_ids[sequence.num_prompt_tokens + constraint.num_accepted :]
    if sequence.num_pending > 1:  # the step that is being built is one of them
        token_ids = [*token_ids, *drawn]
    for token_id in token_ids:
        if token_id >= 0:  # else the model's logits were no numbers, and the answer ends
            constraint.accept(token_id)


def _fill(constraint: Constraint, rows: MaskRow, drafts: Seq[int]) -> None:
    constraint.fill(rows[0])
    if not drafts:
        return
    guess = constraint.copy()
    for row, draft in enumerate(drafts):
        if not rows[row, draft // 32] >> np.uint32(draft % 32) & 1:
            return  # it will not be drawn there, so what is behind it is waste
        guess.accept(draft)
        guess.fill(rows[row + 1])
