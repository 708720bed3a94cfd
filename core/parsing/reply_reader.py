"""Reads one answer: from outputs to events, and what is to be said of them at the end."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ..request import RequestOutput
from .content_logprobs import ContentLogprobs, ScoredEvent
from .events import ReplyEvent, ToolCallEnd
from .output_parser import OutputParser, Piece


class ReplyReader:
    """Follows one answer. What it says does not depend on how tokens were put into outputs.

    Args:
        with_logprobs: Whether the caller asked for them.

    Attributes:
        num_reasoning_tokens: Tokens that begin in reasoning; the marker that ends it is part of it.
        has_tool_calls: Whether a whole call has been read.
    """

    def __init__(self, parser: OutputParser, *, with_logprobs: bool = False) -> None:
        self._parser = parser
        self._logprobs = ContentLogprobs() if with_logprobs else None
        self._num_read = 0
        self._offsets: deque[int] = deque()
        self.num_reasoning_tokens = 0
        self.has_tool_calls = False

    def read(self, output: RequestOutput) -> list[ReplyEvent]:
        """The events of one output; with the last one, whatever was held."""
        return self._read(output)[0]

    def read_scored(self, output: RequestOutput) -> list[ScoredEvent]:
        """The same, each with the log probabilities of the content in it."""
        events, pieces = self._read(output)
        if self._logprobs is None:
            return [(event, ()) for event in events]
        is_last = output.finish_reason is not None
        return self._logprobs.take(events, pieces, output.logprobs, is_last=is_last)

    def _read(self, output: RequestOutput) -> tuple[list[ReplyEvent], Sequence[Piece]]:
        self._offsets.extend(output.text_offsets)
        events, pieces = self._parser.feed(output.text), self._parser.pieces
        if output.finish_reason is not None:
            is_reasoning = self._parser.is_reasoning
            events += self._parser.close()
            pieces = [*pieces, *self._parser.pieces]
        for piece in pieces:
            self._num_read += len(piece.text)
            while self._offsets and self._offsets[0] < self._num_read:
                self._offsets.popleft()
                self.num_reasoning_tokens += piece.is_reasoning
        if output.finish_reason is not None:
            # What is left shows no text: it is counted where the text ends.
            self.num_reasoning_tokens += is_reasoning * len(self._offsets)
        for event in events:
            if isinstance(event, ToolCallEnd):
                self.has_tool_calls = True
        return events, pieces
