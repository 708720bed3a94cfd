"""Where an answer's reasoning begins and ends, and how it is brought to an end.

Markers are told by their text: one may be a token, a few plain ones, or part of one. Of grammars
nothing is known here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ThinkingMarkers:
    """The texts around a model's reasoning.

    Attributes:
        begin: What the model, or the chat template for it, writes first.
        end: What it writes last: behind it stands what it says.
    """

    begin: str
    end: str

    def is_open(self, prompt: str) -> bool:
        """Whether a prompt ends inside of reasoning."""
        # Markers elsewhere in it may be anybody's talk about markers.
        return prompt.rstrip().endswith(self.begin.rstrip())

    def is_closed(self, prompt: str) -> bool:
        """Whether a prompt ends behind reasoning, so that none is to come."""
        return prompt.rstrip().endswith(self.end.rstrip())


class Thinking:
    """Follows the reasoning of one answer.

    Args:
        encode: Token ids that spell a text.
        is_open: Whether the prompt has begun it.
        recurs: Whether it may begin anywhere, and more than once.
        budget: Most tokens of all of it, end markers not counted; ``None`` for any number.

    Attributes:
        is_open: Whether the answer is inside.
        is_over: Whether it has ended, or did not begin where it had to; never if it `recurs`.
        rest: What the token that ended it holds beside the marker: what is said already.
    """

    def __init__(
        self,
        markers: ThinkingMarkers,
        encode: Callable[[str], list[int]],
        *,
        is_open: bool,
        recurs: bool = False,
        budget: int | None = None,
    ) -> None:
        self._markers = markers
        self._encode = encode
        self._recurs = recurs
        self._budget = budget
        self._num_tokens = 0
        self._text = b""
        self.is_open = is_open
        self.is_over = False
        self.rest = b""

    @property
    def opening(self) -> int | None:
        """The token with which the reasoning may begin, or must go on once that has begun."""
        if self.is_open or self.is_over:
            return None
        return self._next_of(self._markers.begin.encode()[len(self._text) :])

    @property
    def is_opening(self) -> bool:
        """Whether a part of the begin marker stands there."""
        return bool(self._text) and not self.is_open and not self.is_over

    @property
    def forced(self) -> int | None:
        """The token that must come, since the budget is spent."""
        if not self.is_open or self._budget is None or self._num_tokens < self._budget:
            return None
        end = self._markers.end.encode()
        written = max(i for i in range(len(end)) if self._text.endswith(end[:i]))
        return self._next_of(end[written:])

    def accept(self, token: bytes) -> None:
        """Take the bytes of the answer's next token."""
        self._text += token
        if not self.is_open:
            self._look_for_begin()
            return
        self._num_tokens += 1
        end = self._markers.end.encode()
        before, found, rest = self._text.partition(end)
        if not found:
            self._text = before[-len(end) :]
            return
        self._num_tokens -= len(self._encode(self._markers.end))
        self._text, self.rest = rest, rest
        self.is_open, self.is_over = False, not self._recurs

    def skip(self) -> None:
        """There is no reasoning in this answer."""
        self.is_over = True

    def copy(self) -> Thinking:
        """One that goes its own way from here."""
        return copy.copy(self)

    def _look_for_begin(self) -> None:
        begin = self._markers.begin.encode()
        if self._recurs:
            before, found, rest = self._text.partition(begin)
            self.is_open, self._text = bool(found), rest if found else before[-len(begin) :]
            return
        written = self._text.lstrip()
        if written.startswith(begin):
            self.is_open, self._text = True, b""
        elif not begin.startswith(written):
            self.is_over = True

    def _next_of(self, marker: bytes) -> int:
        return self._encode(marker.decode("utf-8", "ignore"))[0]
