"""Speculation as the engine sees it: who gets drafts, when, and what came of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq

from ..speculation.governor import DecodeStep, Governor
from ..speculation.sequence_drafts import Proposer, SequenceDrafts
from ..speculation.stats import DraftCounts
from .schedule import Schedule
from .sequence import Sequence


class Speculator:
    """Proposes drafts for running sequences and learns from every step.

    Args:
        make_proposer: Makes the proposer of one sequence.
        max_tokens: Longest draft.
    """

    def __init__(self, make_proposer: Callable[[], Proposer], *, max_tokens: int) -> None:
        self._make_proposer = make_proposer
        self._max_tokens = max_tokens
        self._governor = Governor()
        self._drafts: dict[tuple[str, int], SequenceDrafts] = {}
        self.counts = DraftCounts()

    def is_on(self, num_sequences: int) -> bool:
        """Whether the next step should wait for the newest tokens and verify drafts."""
        return num_sequences > 0 and self._governor.wants_speculation(num_sequences)

    def gain(self, num_sequences: int) -> float | None:
        """Estimated speed with speculation, by the speed without; ``None`` while unknown."""
        return self._governor.gain(num_sequences) if num_sequences else None

    def propose(
        self, sequences: Iterable[Sequence], num_draftable: Callable[[Sequence], int]
    ) -> dict[tuple[str, int], list[int]]:
        """Drafts by `Sequence.key`, for sequences all of whose tokens are known."""
        drafts = {}
        for sequence in sequences:
            if not _may_speculate(sequence):
                continue
            room = num_draftable(sequence)
            draft = self._of(sequence).propose(sequence.token_ids, room) if room else []
            if draft:
                drafts[sequence.key] = draft
        return drafts

    def observe(
        self, schedule: Schedule, num_tokens: int, seconds: float, *, is_speculative: bool
    ) -> None:
        """Learn from a step that has been told.

        Args:
            num_tokens: Tokens that it drew.
            seconds: From the end of the step before to its own.
            is_speculative: Whether it waited for the step before.
        """
        sequences = [item.sequence for item in schedule.rows]
        judged = [self._settle(sequence) for sequence in sequences]
        if schedule.num_prefill_tokens or not sequences:
            return  # how long it took says nothing about decoding
        step = DecodeStep(
            seconds=seconds,
            num_sequences=len(sequences),
            num_tokens=num_tokens,
            is_speculative=is_speculative,
        )
        self._governor.observe(step)
        if is_speculative:
            self.counts += sum((counts for counts in judged if counts), DraftCounts())
            return
        known = [counts for counts in judged if counts is not None]
        if known:
            self._governor.observe_unrun(
                num_sequences=len(sequences),
                num_steps=sum(counts.num_steps for counts in known),
                num_tokens=sum(counts.num_emitted for counts in known),
            )
        self._guess(sequences)

    def forget(self, key: tuple[str, int]) -> None:
        """Drop what is kept for a finished sequence."""
        self._drafts.pop(key, None)

    def _settle(self, sequence: Sequence) -> DraftCounts | None:
        if not _may_speculate(sequence):
            return DraftCounts(num_steps=1, num_emitted=1)
        return self._of(sequence).settle(sequence.token_ids)

    def _guess(self, sequences: Seq[Sequence]) -> None:
        """Guess without running the guesses, to know what they would have brought."""
        for sequence in sequences:
            drafts = self._of(sequence)
            if _may_speculate(sequence) and not sequence.is_finished and not drafts.is_open:
                drafts.propose(sequence.token_ids, self._max_tokens)

    def _of(self, sequence: Sequence) -> SequenceDrafts:
        if sequence.key not in self._drafts:
            self._drafts[sequence.key] = SequenceDrafts(self._make_proposer(), self._max_tokens)
        return self._drafts[sequence.key]


def _may_speculate(sequence: Sequence) -> bool:
    # Penalties count tokens on the device, one a step.
    return sequence.params.speculation and not sequence.params.has_penalties
