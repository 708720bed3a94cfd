"""Where an answer's reasoning begins and ends, and how it is brought to an end.

Markers are told by their text: one may be a token, a few plain ones, or part of one. Where
reasoning may begin anywhere, the reader of answers says where it does: a marker in a call's
arguments is text. Of grammars nothing is known here.
"""

from __future__ import annotations

import codecs
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..messages import ToolSpec


class ReasoningReader(Protocol):
    """Follows an answer's text; the part of an `OutputParser` that is needed here."""

    @property
    def is_reasoning(self) -> bool:
        """Whether what comes next is reasoning."""

    def feed(self, text: str) -> object:
        """Take the answer's next text."""


@dataclass(frozen=True, slots=True)
class ThinkingMarkers:
    """The texts around a model's reasoning.

    Attributes:
        begin: What the model, or the chat template for it, writes first.
        end: What it writes last: behind it stands what it says.
        make_reader: Given the tools that may be called and whether the answer starts as reasoning.
    """

    begin: str
    end: str
    make_reader: Callable[[Sequence[ToolSpec], bool], ReasoningReader] | None = field(
        default=None, compare=False
    )

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
        make_reader: Of the answer, if reasoning may begin anywhere, and more than once.
        budget: Most tokens of all of it, end markers not counted; ``None`` for any number.

    Attributes:
        is_open: Whether the answer is inside.
        is_over: Whether it has ended, or did not begin where it had to; never if
            there is a reader.
        rest: What the token that ended it holds beside the marker: what is said already.
    """

    def __init__(
        self,
        markers: ThinkingMarkers,
        encode: Callable[[str], list[int]],
        *,
        is_open: bool,
        make_reader: Callable[[], ReasoningReader] | None = None,
        budget: int | None = None,
    ) -> None:
        self._markers = markers
        self._encode = encode
        self._reader = None if make_reader is None else _Replay(make_reader)
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
        if self._reader is not None:
            self._read(token, self._reader)
            return
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
        self.is_open, self.is_over = False, True

    def skip(self) -> None:
        """There is no reasoning in this answer."""
        self.is_over = True

    def copy(self) -> Thinking:
        """One that goes its own way from here."""
        twin = copy.copy(self)
        twin._reader = self._reader and self._reader.copy()
        return twin

    def _read(self, token: bytes, reader: _Replay) -> None:
        # An end that was forced is written whole, even if readers know it by its beginning.
        was_open, is_forced = self.is_open, self.forced is not None
        end = self._markers.end.encode()
        self._text += token
        reader.feed(token)
        has_ended = end in self._text
        self._num_tokens += was_open
        self.is_open = reader.is_reasoning or (is_forced and not has_ended)
        if was_open and not self.is_open and has_ended:
            self._num_tokens -= len(self._encode(self._markers.end))
        self._text = self._text[-len(end) :] if self.is_open == was_open else b""

    def _look_for_begin(self) -> None:
        begin = self._markers.begin.encode()
        written = self._text.lstrip()
        if written.startswith(begin):
            self.is_open, self._text = True, b""
        elif not begin.startswith(written):
            self.is_over = True

    def _next_of(self, marker: bytes) -> int:
        return self._encode(marker.decode("utf-8", "ignore"))[0]


class _Replay:
    """A reader that can be copied: the copy reads all of the answer again once it goes on."""

    def __init__(self, make: Callable[[], ReasoningReader]) -> None:
        self._make = make
        self._reader: ReasoningReader | None = None
        self._text = ""
        self._rest = b""  # of a character
        self.is_reasoning = False

    def feed(self, token: bytes) -> None:
        """Take the bytes of a token."""
        text, length = codecs.utf_8_decode(self._rest + token, "replace", False)
        self._rest = (self._rest + token)[length:]
        if self._reader is None:
            self._reader = self._make()
            self._reader.feed(self._text)
        self._text += text
        self._reader.feed(text)
        self.is_reasoning = self._reader.is_reasoning

    def copy(self) -> _Replay:
        """One that goes its own way from here."""
        twin = copy.copy(self)
        twin._reader = None
        return twin
