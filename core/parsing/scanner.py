"""An answer's text as readers see it: they pull, and pause where more text must come.

A reader is a generator that yields whenever it cannot tell yet how to go on, so it is written as if
the whole text were there. Nothing it does depends on where the text was cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from functools import lru_cache
from typing import TypeAlias, TypeVar

from .output_parser import Piece

T = TypeVar("T")
Pull: TypeAlias = Generator[None, None, T]
Write: TypeAlias = Callable[[str], object]

_SPACE = re.compile(r"\s*")
_NEWLINES = re.compile(r"\n*")


class MalformedError(Exception):
    """The text does not go on as its dialect does, or ends too early. Never leaves `parsing`."""


class Scanner:
    """The text that has come and is not read yet, and a place to go back to.

    ``text[mark:resume]`` opened a call: that is what comes out as content should the call turn out
    to be none, and reading goes on at `resume`.

    Attributes:
        is_reasoning: Whether what is settled from now on is reasoning.
        has_ended: Whether no text will follow.
        pieces: See `ReplyParser.pieces`.
    """

    def __init__(self, *, is_reasoning: bool = False) -> None:
        self._text = ""
        self._at = 0
        self._mark = 0
        self._resume = 0
        self._settled = 0
        self._is_calling = False
        self.is_reasoning = is_reasoning
        self.has_ended = False
        self.pieces: list[Piece] = []

    def push(self, text: str) -> None:
        """Append text, and forget what nobody goes back to."""
        start = self._mark if self._is_calling else self._at
        self._text = self._text[start:] + text
        self._at -= start
        self._mark -= start
        self._resume -= start
        self._settled -= start
        self.pieces = []

    def end(self) -> None:
        """No text will follow."""
        self.has_ended = True
        self.pieces = []

    def settle_content(self, count: int) -> None:
        """The last `count` characters that were read are content."""
        self._settle(self._at - count, is_content=False)
        self._settle(self._at, is_content=True)

    def settle_read(self) -> None:
        """What else was read is no content, unless it may come out again."""
        self._settle(self._mark if self._is_calling else self._at, is_content=False)

    def settle(self) -> None:
        """The same, of what the last text held; behind the end nothing comes out again."""
        self.settle_read()
        if self.has_ended:
            self._settle(len(self._text), is_content=False)

    def _settle(self, stop: int, *, is_content: bool) -> None:
        if stop > self._settled:
            text = self._text[self._settled : stop]
            self.pieces.append(Piece(text, is_content, self.is_reasoning))
            self._settled = stop

    def mark(self) -> None:
        """What was read so far stays read."""
        self._mark = self._resume = self._at

    def commit(self) -> None:
        """What was read since the mark belongs to the opening."""
        self._resume = self._at

    def begin_call(self) -> None:
        """Keep the text from the mark on."""
        self._is_calling = True

    def end_call(self) -> None:
        """Let the text go."""
        self._is_calling = False

    def rewind(self) -> str:
        """Go back to where the call's opening ended, which is returned."""
        self._at = self._resume
        self.end_call()
        return self.opening()

    def opening(self) -> str:
        """What lies between the mark and the end of the opening."""
        return self._text[self._mark : self._resume]

    def advance(self, count: int = 1) -> None:
        """Read characters that were seen."""
        self._at += count

    def peek(self) -> Pull[str]:
        """The next character; empty at the end."""
        while self._at == len(self._text):
            if self.has_ended:
                return ""
            yield
        return self._text[self._at]

    def need(self) -> Pull[str]:
        """The next character.

        Raises:
            MalformedError: There is none.
        """
        char = yield from self.peek()
        if not char:
            raise MalformedError
        return char

    def take(self, run: re.Pattern[str]) -> str:
        """Read what matches `run` of the text that is there."""
        match = run.match(self._text, self._at)
        self._at = match.end() if match else self._at
        return match.group() if match else ""

    def run(self, run: re.Pattern[str]) -> Pull[str]:
        """Read all that matches `run`, which is any number of characters of one class."""
        pieces = [self.take(run)]
        while self._at == len(self._text) and not self.has_ended:
            yield
            pieces.append(self.take(run))
        return "".join(pieces)

    def skip_space(self) -> Pull[str]:
        """Read whitespace, and return the character behind it, unread; empty at the end."""
        yield from self.run(_SPACE)
        return (yield from self.peek())

    def skip_newlines(self) -> Pull[str]:
        """Read line breaks."""
        return (yield from self.run(_NEWLINES))

    def accept(self, markers: Sequence[str]) -> Pull[str]:
        """Read the longest of `markers` that comes next; empty if none does."""
        while not self.has_ended:
            rest = len(self._text) - self._at
            seen = self._text[self._at :] if rest < max(map(len, markers), default=0) else None
            if seen is None or not any(
                len(marker) > rest and marker.startswith(seen) for marker in markers
            ):
                break
            yield
        for marker in sorted(markers, key=len, reverse=True):
            if self._text.startswith(marker, self._at):
                self._at += len(marker)
                return marker
        return ""

    def skip_part(self, markers: Sequence[str]) -> None:
        """Read the beginning of a marker that the text's end has cut."""
        seen = self._text[self._at :]
        if self.has_ended and any(marker.startswith(seen) for marker in markers):
            self._at = len(self._text)

    def until(self, markers: Sequence[str], write: Write) -> Pull[str]:
        """Write text up to the first of `markers`, which is read; empty if the text ends first.

        What may be the beginning of a marker at the text's end is not written.
        """
        return (yield from self._until(markers, write, trims=False))

    def text_until(self, markers: Sequence[str], write: Write) -> Pull[str]:
        """The same for text that people read: line breaks next to a marker belong to the marker.

        The mark lies before the marker and its line breaks.
        """
        return (yield from self._until(markers, write, trims=True))

    def word_until(self, markers: Sequence[str], *, limit: int = 256) -> Pull[tuple[str, str]]:
        """Read a short text and the first of `markers` that ends it.

        Raises:
            MalformedError: The text ends first, or is longer than `limit` characters.
        """
        pieces: list[str] = []
        length = 0

        def write(piece: str) -> None:
            nonlocal length
            pieces.append(piece)
            length += len(piece)
            if length > limit:
                self._at -= length - limit
                raise MalformedError

        marker = yield from self.until(markers, write)
        if not marker:
            raise MalformedError
        return "".join(pieces), marker

    def _until(self, markers: Sequence[str], write: Write, *, trims: bool) -> Pull[str]:
        whole, first, longest = _patterns(tuple(markers))
        while True:
            match, held = None, len(self._text)
            # Of most texts nothing can be a marker.
            if first.search(self._text, self._at):
                match = whole.search(self._text, self._at)
                if not (trims and self.has_ended):
                    held = self._held(markers, first, longest)
            is_found = match is not None and match.start() < held
            stop = match.start() if match is not None and is_found else held
            end = stop
            while trims and end > self._at and (is_found or not self.has_ended):
                if self._text[end - 1] != "\n":
                    break
                end -= 1
            start, self._at = self._at, end
            if end > start:
                write(self._text[start:end])
            if match is not None and is_found:
                if trims:
                    self._mark, self._resume = end, match.end()
                self._at = match.end()
                return match.group()
            if self.has_ended:
                return ""
            yield

    def _held(self, markers: Sequence[str], first: re.Pattern[str], longest: int) -> int:
        """Where the text's end may be the beginning of a marker."""
        start = max(self._at, len(self._text) - longest + 1)
        for match in first.finditer(self._text, start):
            seen = self._text[match.start() :]
            if any(len(marker) > len(seen) and marker.startswith(seen) for marker in markers):
                return match.start()
        return len(self._text)


@lru_cache(maxsize=256)
def _patterns(markers: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str], int]:
    """What finds whole markers, the longest first; what finds their first characters; a length."""
    if not markers:
        never = re.compile(r"(?!)")
        return never, never, 1
    ordered = sorted(markers, key=len, reverse=True)
    first = "".join(re.escape(marker[0]) for marker in ordered)
    return re.compile("|".join(map(re.escape, ordered))), re.compile(f"[{first}]"), len(ordered[0])
