"""Collects the events of one answer, and numbers and names its calls."""

from __future__ import annotations

import re
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

# Escapes of JSON text, and halves of surrogate pairs among them. What the text's end has cut is
# `open`: it is read again with what follows.
_HEX, _HIGH = "[0-9a-fA-F]", r"\\u[dD][89abAB][0-9a-fA-F]{2}"
_WHOLE = (
    rf"(?P<pair>{_HIGH}\\u[dD][c-fC-F]{_HEX}{{2}})|(?P<half>\\u[dD][89a-fA-F]{_HEX}{{2}})|\\."
    r"|(?P<character>[\ud800-\udfff])"
)
_ESCAPES = re.compile(_WHOLE, re.DOTALL)
_OPEN_ESCAPES = re.compile(
    rf"(?P<open>(?:{_HIGH}(?:\\(?:u{_HEX}{{0,3}})?)?|\\(?:u{_HEX}{{0,3}})?)\Z)|{_WHOLE}", re.DOTALL
)
_MENDED = {"half": r"\ufffd", "character": "\ufffd", "open": ""}

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
        on_switch: Called before `is_reasoning` changes.

    Attributes:
        is_calling: Whether a call has started that has not ended.
    """

    def __init__(
        self,
        make_id: Callable[[], str],
        on_content: Callable[[int], object],
        on_switch: Callable[[], object],
        *,
        starts_in_reasoning: bool,
    ) -> None:
        self._is_reasoning = starts_in_reasoning
        self.is_calling = False
        self._make_id = make_id
        self._on_content = on_content
        self._on_switch = on_switch
        self._num_calls = 0
        self._ids: set[str] = set()
        self._has_content = False
        self._is_apart = False
        self._open_escape = ""
        self._events: list[ReplyEvent] = []

    @property
    def is_reasoning(self) -> bool:
        """Set by readers; see `OutputParser`."""
        return self._is_reasoning

    @is_reasoning.setter
    def is_reasoning(self, value: bool) -> None:
        if value != self._is_reasoning:
            self._on_switch()
            self._is_reasoning = value

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
        # Clients tell calls by their ids, even if the model uses one twice or spells no text.
        if not call_id or call_id in self._ids or not call_id.isprintable():
            call_id = self._make_id()
        self._ids.add(call_id)
        self._events.append(ToolCallStart(self._num_calls, call_id, name))
        self._num_calls += 1
        self.is_calling = True

    def arguments(self, text: str) -> None:
        """More of the arguments' JSON of the call that started last.

        Half of a surrogate pair, which is no character, becomes U+FFFD: strict parsers, of clients
        and the one that reads the conversation when it comes back, refuse the whole for it.
        """
        text = self._open_escape + text
        self._open_escape = ""
        self._write(_OPEN_ESCAPES.sub(self._mend, text))

    def _write(self, text: str) -> None:
        last = self._events[-1] if self._events else None
        if isinstance(last, ToolCallDelta):
            self._events[-1] = ToolCallDelta(last.index, last.arguments + text)
        elif text:
            self._events.append(ToolCallDelta(self._num_calls - 1, text))

    def end(self) -> None:
        """The call that started last is whole."""
        self._close_escape()
        self._events.append(ToolCallEnd(self._num_calls - 1))
        self.leave()

    def leave(self) -> None:
        """Nothing more comes of the call that started last."""
        self._close_escape()
        self.is_calling = False
        self._is_apart = self._has_content

    def take(self) -> list[ReplyEvent]:
        """The events since the last time."""
        events, self._events = self._events, []
        return events

    def _close_escape(self) -> None:
        self._write(_ESCAPES.sub(self._mend, self._open_escape))
        self._open_escape = ""

    def _mend(self, found: re.Match[str]) -> str:
        if found.lastgroup == "open":
            self._open_escape = found[0]
        return _MENDED.get(found.lastgroup or "", found[0])

    def _join(self, delta: ContentDelta | ReasoningDelta) -> None:
        last = self._events[-1] if self._events else None
        if last is not None and type(last) is type(delta):
            self._events[-1] = type(delta)(last.text + delta.text)
        elif delta.text:
            self._events.append(delta)
