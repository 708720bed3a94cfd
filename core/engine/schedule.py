"""The frozen result of one scheduling turn: what the runner executes next."""

from __future__ import annotations

from dataclasses import dataclass, field

from .sequence import Sequence


# Not frozen, as one is made for every row of every step, but nobody changes it.
@dataclass(slots=True)
class ScheduledSequence:
    """A sequence's share of one step.

    Attributes:
        start: First position to compute.
        num_prefill: Known tokens ``[start, start + num_prefill)`` run as a chunk, no token drawn.
        samples: Whether position ``start + num_prefill`` runs, too, and draws a token.
        drafts: Guesses of what it draws and what follows; they run as well, and each draws a token.
        replays: Whether these known tokens ran before, with wrong guesses behind them.
        resumes_from: Id of the saved state of recurrent layers that it goes on from.
        saves_as: Id to save their state by after this step.
        num_rows: Positions that draw a token.
        stop: End of the computed range, drafts included.
    """

    sequence: Sequence
    start: int
    num_prefill: int
    samples: bool
    drafts: tuple[int, ...] = ()
    replays: bool = False
    resumes_from: int | None = None
    saves_as: int | None = None
    num_rows: int = field(init=False)
    stop: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_rows = self.samples + len(self.drafts)
        self.stop = self.start + self.num_prefill + self.num_rows

    @property
    def decodes(self) -> bool:
        """Whether it goes on with its answer, and runs no chunk of a prompt."""
        return self.samples and (self.replays or not self.num_prefill)


@dataclass(frozen=True, slots=True)
class Schedule:
    """One step's work.

    Attributes:
        scheduled: In the order in which they run; decode-only rows first.
        preempted: Sequences that lost their blocks in this turn.
    """

    scheduled: tuple[ScheduledSequence, ...] = ()
    preempted: tuple[Sequence, ...] = field(default=())

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to run."""
        return not self.scheduled

    @property
    def num_prefill_tokens(self) -> int:
        """Prompt tokens that run in chunks."""
        return sum(item.num_prefill for item in self.scheduled if not item.replays)

    @property
    def rows(self) -> tuple[ScheduledSequence, ...]:
        """The sequences that draw tokens."""
        return tuple(item for item in self.scheduled if item.samples)

    @property
    def has_drafts(self) -> bool:
        """Whether nobody knows how many tokens the step draws before it is read back."""
        return any(item.drafts for item in self.scheduled)
