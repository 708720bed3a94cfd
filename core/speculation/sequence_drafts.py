"""One sequence's drafts and how they fare, whether they are run or not.

A draft never changes what is drawn, so what it would have brought can be read off the answer
afterwards. Where drafts are free the engine asks for them while speculation is off, too: they tell
exactly how many tokens a speculative step would have given.
"""

from __future__ import annotations

from collections.abc import Sequence

from .draft_length import DraftLength
from .stats import DraftCounts


def count_accepted(draft: Sequence[int], drawn: Sequence[int]) -> int:
    """How many tokens of a draft equal what was drawn, up to the first that does not."""
    for count, (guess, token) in enumerate(zip(draft, drawn, strict=False)):
        if guess != token:
            return count
    return min(len(draft), len(drawn))


class SequenceDrafts:
    """Drafts of one sequence, each judged before the next.

    After every step: `settle`, and if nothing is open, `open`.

    Args:
        max_tokens: Longest draft.
    """

    def __init__(self, max_tokens: int) -> None:
        self._length = DraftLength(max_tokens)
        # Where the open draft begins, what was guessed, and how much of it gets rows: all or none.
        self._open: tuple[int, Sequence[int], int] | None = None

    @property
    def is_open(self) -> bool:
        """Whether a draft waits for tokens to be compared with."""
        return self._open is not None

    @property
    def num_wanted(self) -> int:
        """How many tokens to guess; at least 1."""
        return max(1, self._length.tokens)

    def open(self, num_known: int, guess: Sequence[int]) -> Sequence[int]:
        """Take the next draft; one that is still open is dropped.

        Args:
            num_known: Tokens that the guess follows.
            guess: At most `num_wanted` tokens.

        Returns:
            Tokens to verify; none if there is no guess or the last ones were wrong.
        """
        draft = guess if self._length.tokens else ()
        self._open = (num_known, guess, len(draft))
        return draft

    def settle(self, token_ids: Sequence[int]) -> DraftCounts | None:
        """Judge the open draft, once the tokens that a step with it draws are all known.

        Returns:
            What the step gave, or would have given; ``None`` if that is not known yet.
        """
        if self._open is None:
            return None
        start, guess, num_run = self._open
        drawn = token_ids[start:]
        num_right = count_accepted(guess, drawn)
        num_accepted = min(num_right, num_run)
        if len(drawn) <= num_accepted:
            return None
        self._open = None
        self._length.update(num_drafted=len(guess), num_accepted=num_right)
        return DraftCounts(
            num_steps=1,
            num_drafted=num_run,
            num_accepted=num_accepted,
            num_emitted=num_accepted + 1,
        )
