"""Reads one answer: from outputs to events, and what is to be said of them at the end."""

from __future__ import annotations

from pippin.core.parsing.events import ReplyEvent, ToolCallEnd
from pippin.core.parsing.output_parser import OutputParser
from pippin.core.request import RequestOutput


class ReplyReader:
    """Follows one answer.

    Attributes:
        num_reasoning_tokens: Tokens that came while the model was reasoning.
        has_tool_calls: Whether a whole call has been read.
    """

    def __init__(self, parser: OutputParser) -> None:
        self._parser = parser
        self.num_reasoning_tokens = 0
        self.has_tool_calls = False

    def read(self, output: RequestOutput) -> list[ReplyEvent]:
        """The events of one output; with the last one, whatever was held."""
        if self._parser.is_reasoning:
            self.num_reasoning_tokens += len(output.token_ids)
        events = self._parser.feed(output.text)
        if output.finish_reason is not None:
            events += self._parser.close()
        self.has_tool_calls |= any(isinstance(event, ToolCallEnd) for event in events)
        return events
