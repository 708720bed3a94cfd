"""Outputs to the events of a message, framed one by one or put together to the whole message.

Both ways go through `MessageEvents`, so that they cannot differ in content.

Source: platform.claude.com/docs/en/build-with-claude/streaming and .../api/messages.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pippin.core.parsing.events import (
    ContentDelta,
    ReasoningDelta,
    ReplyEvent,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)
from pippin.core.parsing.reply_reader import ReplyReader
from pippin.core.request import FinishReason, RequestOutput

from ..sse import encode_event
from .call_arguments import salvage_arguments

# Clients send thoughts back only with a signature. Nobody checks this one.
SIGNATURE = "pippin"

PING: dict[str, Any] = {"type": "ping"}

# The name of a delta's type and that of its text.
_DELTAS = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}


class MessageEvents:
    """Makes the events of one answer.

    Args:
        reply_id: ``msg_...``.
        num_prompt_tokens: Of the whole prompt, found in the cache or not.
        max_tokens: As the caller asked; the answer may have to end before.
        omit_thinking: Whether thoughts show in the answer by their signature only.
    """

    def __init__(
        self,
        reader: ReplyReader,
        *,
        reply_id: str,
        model: str,
        num_prompt_tokens: int,
        max_tokens: int,
        omit_thinking: bool,
    ) -> None:
        self._reader = reader
        self._reply_id = reply_id
        self._model = model
        self._num_prompt_tokens = num_prompt_tokens
        self._max_tokens = max_tokens
        self._omit_thinking = omit_thinking
        self._has_begun = False
        self._num_blocks = 0
        self._open: str | None = None
        self._is_behind_call = False

    def read(self, output: RequestOutput) -> Iterator[dict[str, Any]]:
        """The events of one output."""
        if not self._has_begun:
            # Not before the first output: only then is it known what the cache held.
            self._has_begun = True
            yield {"type": "message_start", "message": self._empty_message(output)}
            yield PING
        for event in self._reader.read(output):
            yield from self._write(event)
        if output.finish_reason is not None:
            yield from self._end_block()
            reason, stop_sequence = self._stop_reason(output)
            thinking = {"thinking_tokens": self._reader.num_reasoning_tokens}
            yield {
                "type": "message_delta",
                "delta": {"stop_reason": reason, "stop_sequence": stop_sequence},
                "usage": {**self._usage(output), "output_tokens_details": thinking},
            }
            yield {"type": "message_stop"}

    def _write(self, event: ReplyEvent) -> Iterator[dict[str, Any]]:
        match event:
            case ReasoningDelta(text):
                yield from self._begin_block("thinking", thinking="", signature="")
                if not self._omit_thinking:
                    yield self._delta(text)
            case ContentDelta(text):
                if self._is_behind_call:
                    text = text.removeprefix("\n")  # it stood for the call
                yield from self._begin_block("text", text="")
                yield self._delta(text)
            case ToolCallStart(_, call_id, name):
                yield from self._end_block()
                yield from self._begin_block("tool_use", id=call_id, name=name, input={})
            case ToolCallDelta(_, arguments):
                yield self._delta(arguments)
            case ToolCallEnd():
                yield from self._end_block()

    def _begin_block(self, kind: str, **fields: Any) -> Iterator[dict[str, Any]]:
        if self._open == kind:
            return
        yield from self._end_block()
        self._open = kind
        self._is_behind_call = kind == "tool_use"
        block = {"type": kind, **fields}
        yield {"type": "content_block_start", "index": self._num_blocks, "content_block": block}

    def _delta(self, text: str) -> dict[str, Any]:
        assert self._open is not None, "a parser begins a call before it writes its arguments"
        kind, name = _DELTAS[self._open]
        return self._block_delta({"type": kind, name: text})

    def _end_block(self) -> Iterator[dict[str, Any]]:
        if self._open is None:
            return
        if self._open == "thinking":
            yield self._block_delta({"type": "signature_delta", "signature": SIGNATURE})
        yield {"type": "content_block_stop", "index": self._num_blocks}
        self._open = None
        self._num_blocks += 1

    def _block_delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._num_blocks, "delta": delta}

    def _empty_message(self, output: RequestOutput) -> dict[str, Any]:
        return {
            "id": self._reply_id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(output),
        }

    def _usage(self, output: RequestOutput) -> dict[str, Any]:
        # The three counts of input make up the prompt. To write the cache costs nothing here.
        return {
            "input_tokens": self._num_prompt_tokens - output.num_cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": output.num_cached_tokens,
            "output_tokens": output.num_output_tokens,
        }

    def _stop_reason(self, output: RequestOutput) -> tuple[str, str | None]:
        if output.finish_reason is FinishReason.LENGTH:
            is_all = output.num_output_tokens >= self._max_tokens
            return "max_tokens" if is_all else "model_context_window_exceeded", None
        if isinstance(output.stop_reason, str):
            return "stop_sequence", output.stop_reason
        return "tool_use" if self._reader.has_tool_calls else "end_turn", None


class MessageWriter:
    """Writes an answer as a stream."""

    def __init__(self, events: MessageEvents) -> None:
        self._events = events

    def write(self, prompt_index: int, output: RequestOutput) -> bytes:
        """Frames of one output, maybe none. There is one prompt only."""
        return b"".join(frame_event(event) for event in self._events.read(output))

    def close(self) -> bytes:
        """The last output has said it all."""
        return b""


class MessageCollector:
    """Puts the events of an answer together, as a client of the stream would."""

    def __init__(self, events: MessageEvents) -> None:
        self._events = events
        self._message: dict[str, Any] = {}
        self._texts: list[str] = []

    def feed(self, prompt_index: int, output: RequestOutput) -> None:
        """Take in one output. There is one prompt only."""
        for event in self._events.read(output):
            match event:
                case {"type": "message_start", "message": message}:
                    self._message = message
                case {"type": "content_block_start", "content_block": block}:
                    self._message["content"].append(block)
                    self._texts = []
                case {"type": "content_block_delta", "delta": delta}:
                    self._take(delta)
                case {"type": "content_block_stop"}:
                    self._finish(self._message["content"][-1])
                case {"type": "message_delta", "delta": delta, "usage": usage}:
                    self._message |= {**delta, "usage": usage}

    def reply(self) -> dict[str, Any]:
        """The whole message, after the last output."""
        return self._message

    def _take(self, delta: dict[str, Any]) -> None:
        if delta["type"] == "signature_delta":
            self._message["content"][-1]["signature"] = delta["signature"]
        else:
            self._texts.extend(value for key, value in delta.items() if key != "type")

    def _finish(self, block: dict[str, Any]) -> None:
        text = "".join(self._texts)
        if block["type"] == "tool_use":
            block["input"] = salvage_arguments(text)
        else:
            block[block["type"]] = text


def frame_event(event: dict[str, Any]) -> bytes:
    """Frame one event under the name of its type."""
    name: str = event["type"]
    return b"event: " + name.encode() + b"\n" + encode_event(event)
