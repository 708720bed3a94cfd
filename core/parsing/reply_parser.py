"""The parser that is made of a reasoning dialect and a tool dialect."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..messages import ToolSpec
from .call_reader import CallContext, ToolDialect
from .event_writer import EventWriter, long_id, short_id
from .events import ReplyEvent
from .output_parser import Piece
from .scanner import MalformedError, Pull, Scanner

AnswerReader: TypeAlias = Callable[[CallContext, bool], Pull[None]]
"""Reads a whole answer; told whether it starts in reasoning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningDialect:
    """How a model marks what it thinks.

    Attributes:
        opens: Begin it. The first is the one that models write.
        closes: End it, in the same order of preference.
        silent: Stand around the content, and are no part of it.
        content_begin: Stands before all that is said, whether the model has reasoned or not.
        read: Reads the whole answer, tool calls too, for models whose every message has a header.
    """

    opens: tuple[str, ...]
    closes: tuple[str, ...]
    silent: tuple[str, ...] = ()
    content_begin: str = ""
    read: AnswerReader | None = None

    @property
    def end(self) -> str:
        """What closes reasoning, if it has to be closed for the model."""
        return self.closes[0]

    def starts_in_reasoning(self, prompt_text: str, *, continues: bool = False) -> bool:
        """Whether an answer to this prompt starts as reasoning.

        Args:
            prompt_text: The rendered prompt, special tokens included.
            continues: Whether the answer goes on in the middle of an assistant's message.
        """
        text = prompt_text.rstrip()
        if any(text.endswith(marker) for marker in self.opens):
            return True
        opened = max(text.rfind(marker) for marker in self.opens)
        return continues and opened > max(text.rfind(marker) for marker in self.closes)


NO_REASONING = ReasoningDialect(opens=(), closes=())


class ReplyParser:
    """See `OutputParser`."""

    def __init__(
        self,
        tool_dialect: ToolDialect | None,
        reasoning: ReasoningDialect,
        tools: Sequence[ToolSpec] = (),
        *,
        starts_in_reasoning: bool = False,
    ) -> None:
        has_short_ids = tool_dialect is not None and tool_dialect.has_short_ids
        self._scanner = Scanner(is_reasoning=starts_in_reasoning)
        self._out = EventWriter(
            short_id if has_short_ids else long_id,
            self._scanner.settle_content,
            self._note_switch,
            starts_in_reasoning=starts_in_reasoning,
        )
        schemas: Mapping[str, Mapping[str, Any]] = {tool.name: tool.parameters for tool in tools}
        context = CallContext(self._scanner, self._out, schemas)
        if reasoning.read is not None:
            self._reading = reasoning.read(context, starts_in_reasoning)
        else:
            reader = _AnswerReader(context, tool_dialect, reasoning)
            self._reading = reader.read(starts_in_reasoning)
        next(self._reading)

    @property
    def is_reasoning(self) -> bool:
        """See `OutputParser.is_reasoning`."""
        return self._out.is_reasoning

    @property
    def pieces(self) -> Sequence[Piece]:
        """See `OutputParser.pieces`."""
        return self._scanner.pieces

    def feed(self, text: str) -> list[ReplyEvent]:
        """See `OutputParser.feed`."""
        self._scanner.push(text)
        if text:
            next(self._reading)
        self._scanner.settle()
        return self._out.take()

    def close(self) -> list[ReplyEvent]:
        """See `OutputParser.close`."""
        self._scanner.end()
        next(self._reading, None)
        self._scanner.settle()
        return self._out.take()

    def _note_switch(self) -> None:
        self._scanner.settle_read()
        self._scanner.is_reasoning = not self._out.is_reasoning


class _AnswerReader:
    """Reads text with markers in it."""

    def __init__(
        self, context: CallContext, tools: ToolDialect | None, reasoning: ReasoningDialect
    ) -> None:
        self._context = context
        self._tools = tools
        self._reasoning = reasoning
        self._call_markers = (*tools.opens, *tools.wraps) if tools else ()
        self._closes = tools.closes if tools else ()
        tags = (*reasoning.opens, *reasoning.closes, *reasoning.silent)
        self._markers = tuple(dict.fromkeys((*self._call_markers, *self._closes, *tags)))
        self._has_failed = False

    def read(self, starts_in_reasoning: bool) -> Pull[None]:
        """Read it all."""
        scanner, out = self._context.scanner, self._context.out
        marker = ""
        if starts_in_reasoning:
            marker = yield from self._read_reasoning()
        marker = yield from self._read_bare(marker)
        while True:
            if not marker:
                marker = yield from scanner.text_until(self._markers, out.content)
            if not marker:
                return
            if marker in self._call_markers:
                marker = yield from self._read_call(marker)
            elif marker in self._reasoning.opens:
                marker = yield from self._read_reasoning()
                marker = yield from self._read_bare(marker)
            elif self._has_failed and marker in self._closes:
                out.content(scanner.opening())
                marker = ""
            else:
                yield from scanner.skip_newlines()
                marker = yield from self._read_bare("")

    def _read_reasoning(self) -> Pull[str]:
        """Read up to its end; if a call ended it, return the call's marker."""
        scanner, out = self._context.scanner, self._context.out
        out.is_reasoning = True
        yield from scanner.skip_newlines()
        # The model may repeat what the template wrote.
        if (yield from scanner.accept(self._reasoning.opens)):
            yield from scanner.skip_newlines()
        calls = self._call_markers if self._tools and self._tools.ends_reasoning else ()
        ends = (*self._reasoning.closes, *calls)
        marker = yield from scanner.text_until(ends, out.reasoning)
        if marker in calls:
            scanner.begin_call()  # that marker may come out again
        out.is_reasoning = False
        if marker in calls:
            return marker
        yield from scanner.skip_newlines()
        return ""

    def _read_bare(self, marker: str) -> Pull[str]:
        """Read a call that begins the answer without a marker, if one does.

        Args:
            marker: Of another call, if that begins here.

        Returns:
            The marker of the call that comes next, if one was read; so do those below.
        """
        if marker or not self._tools or not self._tools.bare:
            return marker
        scanner = self._context.scanner
        scanner.mark()
        scanner.begin_call()
        char = yield from scanner.skip_space()
        if not char or (char not in self._tools.bare and self._tools.bare != "*"):
            scanner.rewind()
            return ""
        return (yield from self._try("", is_bare=True))

    def _read_call(self, marker: str) -> Pull[str]:
        scanner, tools = self._context.scanner, self._tools
        assert tools is not None
        scanner.begin_call()
        while marker in tools.wraps:
            yield from scanner.skip_space()
            marker = yield from scanner.accept(self._call_markers)
            if marker:
                scanner.commit()
        return (yield from self._try(marker))

    def _try(self, marker: str, *, is_bare: bool = False) -> Pull[str]:
        context, scanner, tools = self._context, self._context.scanner, self._tools
        assert tools is not None
        try:
            if not marker and not is_bare:
                raise MalformedError
            yield from tools.read(context, marker)
        except MalformedError:
            if not context.out.is_calling:
                context.out.content(scanner.rewind())
                self._has_failed = True
                return ""
            # Its name has gone out, so none of it is content.
            call_ends = (tools.call_end,) if tools.call_end else ()
            write = context.out.arguments if tools.passes_json else _drop
            ends = (*call_ends, *tools.closes, *self._call_markers)
            following = yield from scanner.text_until(ends, write)
            context.out.leave()
            if following in self._call_markers:
                return following
        self._has_failed = False
        scanner.end_call()
        while True:
            yield from scanner.skip_space()
            if not (yield from scanner.accept(tools.closes)):
                scanner.skip_part(tools.closes)
                return ""


def _drop(_: str) -> None:
    """Take no notice."""
