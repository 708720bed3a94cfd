"""Where drafts come from: the seam between `Speculator` and those who guess."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Protocol

from .sequence import Sequence


class DraftSource(Protocol):
    """Guesses what comes next in several sequences at once."""

    @property
    def name(self) -> str:
        """One word for counters."""
        ...

    @property
    def is_free(self) -> bool:
        """Whether guesses may be made only to see how they would have fared."""
        ...

    @property
    def is_behind(self) -> bool:
        """Whether the last `propose` mostly read what had come before."""
        ...

    def propose(self, wanted: Seq[tuple[Sequence, int]]) -> list[list[int]]:
        """Guess for sequences all of whose tokens are known.

        Args:
            wanted: Sequences, and most tokens to guess for each, at least 1. Slots for these are
                held.

        Returns:
            A guess for each sequence; empty where there is none.
        """
        ...

    def forget(self, key: tuple[str, int]) -> None:
        """Drop what is kept for a sequence that has ended or lost its blocks."""
        ...

    def reset(self) -> None:
        """Start again after a failed step."""
        ...


class Proposer(Protocol):
    """Guesses what comes next in one sequence."""

    def propose(self, token_ids: Seq[int], max_tokens: int) -> list[int]:
        """At most ``max_tokens`` tokens to follow ``token_ids``, which grows from call to call."""
        ...


class HostSource:
    """A proposer for each sequence, at next to no cost."""

    is_free = True
    is_behind = False

    def __init__(self, name: str, make_proposer: Callable[[], Proposer]) -> None:
        self.name = name
        self._make_proposer = make_proposer
        self._proposers: dict[tuple[str, int], Proposer] = {}

    def propose(self, wanted: Seq[tuple[Sequence, int]]) -> list[list[int]]:
        """See `DraftSource.propose`."""
        return [self._of(sequence).propose(sequence.token_ids, count) for sequence, count in wanted]

    def forget(self, key: tuple[str, int]) -> None:
        """See `DraftSource.forget`."""
        self._proposers.pop(key, None)

    def reset(self) -> None:
        """Nothing that a failed step could have spoiled."""

    def _of(self, sequence: Sequence) -> Proposer:
        if sequence.key not in self._proposers:
            self._proposers[sequence.key] = self._make_proposer()
        return self._proposers[sequence.key]
