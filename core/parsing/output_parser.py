"""The interface of parsers, and the one for models that only talk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from .events import ContentDelta, ReplyEvent


class Piece(NamedTuple):
    """Text of an answer as the model wrote it, and what it is.

    The marker that ends reasoning counts as reasoning, the one that begins it does not.
    """

    text: str
    is_content: bool
    is_reasoning: bool = False


class OutputParser(Protocol):
    """Follows one answer. Never raises, whatever the text."""

    @property
    def is_reasoning(self) -> bool:
        """Whether what comes next is, as far as is known, reasoning."""

    @property
    def pieces(self) -> Sequence[Piece]:
        """The text that the last `feed` or `close` has decided on.

        All of them make up the answer's text as it was fed, markers and line breaks included. Those
        of content are the content of the events, but for line breaks that no model wrote.
        """

    def feed(self, text: str) -> list[ReplyEvent]:
        """Take the answer's next text."""

    def close(self) -> list[ReplyEvent]:
        """What is still held, once the answer has ended; a call that has not started is content."""


class PlainParser:
    """All is content."""

    is_reasoning = False

    def __init__(self) -> None:
        self._text = ""

    @property
    def pieces(self) -> Sequence[Piece]:
        """See `OutputParser.pieces`."""
        return [Piece(self._text, is_content=True)] if self._text else []

    def feed(self, text: str) -> list[ReplyEvent]:
        """See `OutputParser.feed`."""
        self._text = text
        return [ContentDelta(text)] if text else []

    def close(self) -> list[ReplyEvent]:
        """See `OutputParser.close`."""
        self._text = ""
        return []
