"""Counts of what speculation guessed and what came of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftCounts:
    """What drafts gave.

    Attributes:
        num_steps: Steps, each counted once for every sequence that it ran.
        num_drafted: Drafted tokens that were verified.
        num_accepted: Those of them that were drawn.
        num_emitted: Tokens that the steps gave: the accepted ones and one more each.
    """

    num_steps: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    num_emitted: int = 0

    @property
    def acceptance_rate(self) -> float:
        """Share of the drafted tokens that were drawn, 0 to 1."""
        return self.num_accepted / self.num_drafted if self.num_drafted else 0.0

    def __add__(self, other: DraftCounts) -> DraftCounts:
        return DraftCounts(
            num_steps=self.num_steps + other.num_steps,
            num_drafted=self.num_drafted + other.num_drafted,
            num_accepted=self.num_accepted + other.num_accepted,
            num_emitted=self.num_emitted + other.num_emitted,
        )
