"""The interface of parsers, and the one for models that only talk."""

from __future__ import annotations

from typing import Protocol

from .events import ContentDelta, ReplyEvent


class OutputParser(Protocol):
    """Follows one answer. Never raises, whatever the text."""

    @property
    def is_reasoning(self) -> bool:
        """Whether what comes next is, as far as is known, reasoning."""

    def feed(self, text: str) -> list[ReplyEvent]:
        """Take the answer's next text."""

    def close(self) -> list[ReplyEvent]:
        """What is still held, once the answer has ended; a call that has not started is content."""


class PlainParser:
    """All is content."""

    is_reasoning = False

    def feed(self, text: str) -> list[ReplyEvent]:
        """See `OutputParser.feed`."""
        return [ContentDelta(text)] if text else []

    def close(self) -> list[ReplyEvent]:
        """See `OutputParser.close`."""
        return []
