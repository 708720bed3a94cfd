"""Speculation as the engine sees it: who gets drafts, when, and what came of them."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from ..speculation.governor import DecodeStep, Governor
from ..speculation.sequence_drafts import SequenceDrafts
from ..speculation.stats import DraftCounts
from .draft_source import DraftSource
from .schedule import Schedule
from .scheduler import Scheduler
from .sequence import Sequence
from .stats import SpeculationStatus


class Speculator:
    """Proposes drafts for running sequences and learns from every step.

    Args:
        max_tokens: Longest draft.

    Attributes:
        counts: What the steps gave that waited for drafts.
    """

    def __init__(self, source: DraftSource, *, max_tokens: int) -> None:
        self._source = source
        self._max_tokens = max_tokens
        self._governor = Governor()
        self._drafts: dict[tuple[str, int], SequenceDrafts] = {}
        self.counts = DraftCounts()

    def is_on(self, num_sequences: int) -> bool:
        """Whether the next step should wait for the newest tokens and verify drafts."""
        return num_sequences > 0 and self._governor.wants_speculation(num_sequences)

    def status(self, num_sequences: int) -> SpeculationStatus:
        """How it fares with so many running sequences."""
        return SpeculationStatus(
            proposer=self._source.name,
            counts=self.counts,
            gain=self._governor.gain(num_sequences) if num_sequences else None,
            is_on=self.is_on(num_sequences),
        )

    def propose(self, scheduler: Scheduler) -> dict[tuple[str, int], Seq[int]]:
        """Drafts for the next step, by `Sequence.key`; all steps must have been told."""
        wanted = []
        for sequence in scheduler.running:
            room = scheduler.num_draftable(sequence) if _may_speculate(sequence) else 0
            # What is replayed takes the place of guesses: no run is longer than the longest draft.
            room = min(room, self._max_tokens - sequence.num_replayed)
            count = min(room, self._of(sequence).num_wanted) if room > 0 else 0
            if count and scheduler.reserve(sequence, count):
                wanted.append((sequence, count))
        return {key: draft for key, draft in self._guess(wanted).items() if draft}

    def observe(
        self, schedule: Schedule, num_tokens: int, seconds: float | None, *, is_speculative: bool
    ) -> None:
        """Learn from a step that has been told.

        Args:
            num_tokens: Tokens that it drew.
            seconds: From the end of the step before to its own; ``None`` if that is not typical.
            is_speculative: Whether it waited for the step before.
        """
        sequences = [item.sequence for item in schedule.rows]
        judged = [self._settle(sequence) for sequence in sequences]
        if is_speculative:
            self.counts += sum((counts for counts in judged if counts), DraftCounts())
        is_behind = is_speculative and self._source.is_behind
        if seconds is None or schedule.num_prefill_tokens or is_behind or not sequences:
            return  # how long it took says nothing about decoding
        step = DecodeStep(
            seconds=seconds,
            num_sequences=len(sequences),
            num_tokens=num_tokens,
            is_speculative=is_speculative,
        )
        self._governor.observe(step)
        if is_speculative or not self._source.is_free:
            return
        known = [counts for counts in judged if counts is not None]
        if known:
            self._governor.observe_unrun(
                num_sequences=len(sequences),
                num_steps=sum(counts.num_steps for counts in known),
                num_tokens=sum(counts.num_emitted for counts in known),
            )
        # Guess without running the guesses, to know what they would have brought.
        self._guess(
            [
                (sequence, self._of(sequence).num_wanted)
                for sequence in sequences
                if _may_speculate(sequence)
                and not sequence.is_finished
                and not self._of(sequence).is_open
            ]
        )

    def forget(self, key: tuple[str, int]) -> None:
        """Drop what is kept for a sequence that has ended or lost its blocks."""
        self._drafts.pop(key, None)
        self._source.forget(key)

    def reset(self) -> None:
        """Start again after a failed step."""
        self._source.reset()

    def _guess(self, wanted: Seq[tuple[Sequence, int]]) -> dict[tuple[str, int], Seq[int]]:
        guesses = self._source.propose(wanted)
        return {
            sequence.key: self._of(sequence).open(sequence.num_tokens, guess)
            for (sequence, _), guess in zip(wanted, guesses, strict=True)
        }

    def _settle(self, sequence: Sequence) -> DraftCounts | None:
        if not _may_speculate(sequence):
            return DraftCounts(num_steps=1, num_emitted=1)
        return self._of(sequence).settle(sequence.token_ids)

    def _of(self, sequence: Sequence) -> SequenceDrafts:
        if sequence.key not in self._drafts:
            self._drafts[sequence.key] = SequenceDrafts(self._max_tokens)
        return self._drafts[sequence.key]


def _may_speculate(sequence: Sequence) -> bool:
    # Penalties count tokens on the device, one a step.
    return sequence.params.speculation and not sequence.params.has_penalties
