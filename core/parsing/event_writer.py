"""Collects the events of one answer, and numbers and names its calls."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable

from .events import (
    ContentDelta,
    ReasoningDelta,
    ReplyEvent,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)

_ALPHANUMERIC = string.ascii_letters + string.digits


def long_id() -> str:
    """An id as OpenAI writes them."""
    return f"call_{secrets.token_hex(12)}"


def short_id() -> str:
    """Nine letters and digits: Mistral's templates refuse any other id."""
    return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))


class EventWriter:
    """Takes what readers find.

    Args:
        on_content: Told how long a piece of content is, as the model wrote it.

    Attributes:
        is_reasoning: Set by readers; see `OutputParser`.
        is_calling: Whether a call has started that has not ended.
    """

    def __init__(self, make_id: Callable[[], str], on_content: Callable[[int], object]) -> None:
        self.is_reasoning = False
        self.is_calling = False
        self._make_id = make_id
        self._on_content = on_content
        self._num_calls = 0
        self._ids: set[str] = set()
        self._has_content = False
        self._is_apart = False
        self._events: list[ReplyEvent] = []

    def content(self, text: str) -> None:
        """What the model says. Line breaks beside a call were the call's: one stands for them."""
        self._on_content(len(text))
        if text and self._is_apart:
            self._is_apart = False
            text = "\n" + text
        self._has_content |= bool(text)
        self._join(ContentDelta(text))

    def reasoning(self, text: str) -> None:
        """What the model thinks."""
        self._join(ReasoningDelta(text))

    def start(self, name: str, call_id: str | None = None) -> None:
        """A call whose name is whole."""
        # Clients tell calls by their ids, even if the model uses one twice.
        if not call_id or call_id in self._ids:
            call_id = self._make_id()
        self._ids.add(call_id)
        self._events.append(ToolCallStart(self._num_calls, call_id, name))
        self._num_calls += 1
        self.is_calling = True

    def arguments(self, text: str) -> None:
        """More of the arguments' JSON of the call that started last."""
        last = self._events[-1] if self._events else None
        if isinstance(last, ToolCallDelta):
            self._events[-1] = ToolCallDelta(last.index, last.arguments + text)
        elif text:
            self._events.append(ToolCallDelta(self._num_calls - 1, text))

    def end(self) -> None:
        """The call that started last is whole."""
        self._events.append(ToolCallEnd(self._num_calls - 1))
        self.leave()

    def leave(self) -> None:
        """Nothing more comes of the call that started last."""
        self.is_calling = False
        self._is_apart = self._has_content

    def take(self) -> list[ReplyEvent]:
        """The events since the last time."""
        events, self._events = self._events, []
        return events

    def _join(self, delta: ContentDelta | ReasoningDelta) -> None:
        last = self._events[-1] if self._events else None
        if isinstance(last, ContentDelta | ReasoningDelta) and type(last) is type(delta):
            self._events[-1] = type(delta)(last.text + delta.text)
        elif delta.text:
            self._events.append(delta)
