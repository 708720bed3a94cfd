"""How loading a model tells what it is doing, without knowing who listens.

The command line draws bars from it, tests record it, and `NullProgress` drops it. Calls come from
whichever thread does the work; a listener must not block.
"""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias

Stage: TypeAlias = Literal["download", "verify", "convert", "load", "warm-up"]


class Progress(Protocol):
    """Hears of the stages of getting a model ready, one after another."""

    def start(self, stage: Stage, text: str, *, total_bytes: int | None = None) -> None:
        """A stage begins, and whatever stage came before is over.

        Args:
            stage: Which one. A stage may come more than once (two files, two downloads).
            text: A few words for people, without a full stop.
            total_bytes: Size of the work, if known.
        """

    def update(self, done_bytes: int, *, total_bytes: int | None = None) -> None:
        """The current stage has done this much in all; never less than said before."""

    def note(self, text: str) -> None:
        """One line that people should see: a fallback taken, a weight widened."""

    def finish(self) -> None:
        """The current stage is over."""


class NullProgress:
    """Listens to nothing."""

    def start(self, stage: Stage, text: str, *, total_bytes: int | None = None) -> None:
        """Drop it."""

    def update(self, done_bytes: int, *, total_bytes: int | None = None) -> None:
        """Drop it."""

    def note(self, text: str) -> None:
        """Drop it."""

    def finish(self) -> None:
        """Drop it."""
