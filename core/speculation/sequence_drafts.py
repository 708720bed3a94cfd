"""One sequence's drafts and how they fare, whether they are run or not.

A draft never changes what is drawn, so what it would have brought can be read off the answer
afterwards. The engine asks for drafts while speculation is off, too: they cost microseconds, and
tell exactly how many tokens a speculative step would have given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .draft_length import DraftLength
from .stats import DraftCounts


class Proposer(Protocol):
    """Guesses what comes next in one sequence."""

    def propose(self, token_ids: Sequence[int], max_tokens: int) -> list[int]:
        """At most ``max_tokens`` tokens to follow ``token_ids``, which grows from call to call."""
        ...


def count_accepted(draft: Sequence[int], drawn: Sequence[int]) -> int:
    """How many tokens of a draft equal what was drawn, up to the first that does not."""
    for count, (guess, token) in enumerate(zip(draft, drawn, strict=False)):
        if guess != token:
            return count
    return min(len(draft), len(drawn))


class SequenceDrafts:
    """Drafts of one sequence, each judged before the next.

    After every step: `settle`, and if nothing is open, `propose`.

    Args:
        max_tokens: Longest draft.
    """

    def __init__(self, proposer: Proposer, max_tokens: int) -> None:
        self._proposer = proposer
        self._length = DraftLength(max_tokens)
        # Where the open draft begins, what was guessed, and how much of it gets rows: all or none.
        self._open: tuple[int, list[int], int] | None = None

    @property
    def is_open(self) -> bool:
        """Whether a draft waits for tokens to be compared with."""
        return self._open is not None

    def propose(self, token_ids: Sequence[int], max_tokens: int) -> list[int]:
        """The next draft; one that is still open is dropped.

        Args:
            max_tokens: How many more tokens the sequence has room for.

        Returns:
            Tokens to verify; none if there is no guess or the last ones were wrong.
        """
        length = self._length.tokens
        guess = self._proposer.propose(token_ids, min(max(1, length), max_tokens))
        draft = guess if length else []
        self._open = (len(token_ids), guess, len(draft))
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
