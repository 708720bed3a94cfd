"""How many tokens to draft for one sequence, learnt from how its last drafts fared."""

from __future__ import annotations


class DraftLength:
    """Doubles when a whole draft was right, and at worst halves when it was not.

    At 0, where a sequence gets no rows for its drafts any more, one token is still guessed and
    compared with what is drawn: a guess that proves right brings drafts back.

    Args:
        maximum: Longest draft.
        initial: Length before anything is known.
    """

    def __init__(self, maximum: int, *, initial: int = 2) -> None:
        self._maximum = maximum
        self._tokens = min(initial, maximum)

    @property
    def tokens(self) -> int:
        """Length of the next draft; may be 0."""
        return self._tokens

    def update(self, *, num_drafted: int, num_accepted: int) -> None:
        """Learn from one draft; without a draft there is nothing to learn."""
        if num_drafted == 0:
            return
        if num_accepted == num_drafted:
            self._tokens = min(self._maximum, max(1, 2 * self._tokens))
        else:
            self._tokens = max(num_accepted, self._tokens // 2)
