"""Outputs to chat completion objects and chunks.

As OpenAI says it, ``logprobs.content`` is of the message's content tokens: there are none of
thoughts, calls and markers.

Source: platform.openai.com/docs/api-reference/chat/object and .../chat/streaming.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pippin.core.engine.client import Generation
from pippin.core.parsing.events import (
    ContentDelta,
    ReasoningDelta,
    ReplyEvent,
    ToolCallDelta,
    ToolCallStart,
)
from pippin.core.parsing.reply_reader import ReplyReader
from pippin.core.request import FinishReason, PositionLogprobs, RequestOutput, TokenLogprob

from ..sse import DONE, TEXT_SLOT, EventTemplate, encode_event
from .reply import ReplyHead, UsageCounter, finish_reason_to_wire, logprob_to_wire


class ChatReplyCollector:
    """Gathers the answers to one prompt into one ``chat.completion``."""

    def __init__(
        self,
        head: ReplyHead,
        usage: UsageCounter,
        generation: Generation,
        *,
        num_choices: int,
        with_logprobs: bool,
    ) -> None:
        self._head = head
        self._usage = usage
        self._with_logprobs = with_logprobs
        self._readers = [
            ReplyReader(generation.make_parser(), with_logprobs=with_logprobs)
            for _ in range(num_choices)
        ]
        self._events: list[list[ReplyEvent]] = [[] for _ in range(num_choices)]
        self._logprobs: list[list[PositionLogprobs]] = [[] for _ in range(num_choices)]
        self._finish_reasons: list[FinishReason | None] = [None] * num_choices

    def feed(self, prompt_index: int, output: RequestOutput) -> None:
        """Take in one output. There is one prompt only."""
        self._usage.note(prompt_index, output)
        reader = self._readers[output.index]
        for event, logprobs in reader.read_scored(output):
            self._events[output.index].append(event)
            self._logprobs[output.index] += logprobs
        self._finish_reasons[output.index] = output.finish_reason

    def reply(self) -> dict[str, Any]:
        """The whole object, after the last output."""
        return {
            **self._head.fields("chat.completion"),
            "choices": [self._choice(index) for index in range(len(self._events))],
            "usage": self._usage.to_wire(self._readers),
        }

    def _choice(self, index: int) -> dict[str, Any]:
        reason = self._finish_reasons[index]
        assert reason is not None, "an engine ends every answer"
        return {
            "index": index,
            "message": _message(self._events[index]),
            "logprobs": _logprobs(self._logprobs[index]) if self._with_logprobs else None,
            "finish_reason": finish_reason_to_wire(
                reason, calls_tools=self._readers[index].has_tool_calls
            ),
        }


class ChatChunkWriter:
    """Writes one prompt's answers as chunks, as they come."""

    def __init__(
        self,
        head: ReplyHead,
        usage: UsageCounter,
        generation: Generation,
        *,
        num_choices: int,
        include_usage: bool,
        with_logprobs: bool,
    ) -> None:
        self._head = head
        self._usage = usage
        self._include_usage = include_usage
        self._readers = [
            ReplyReader(generation.make_parser(), with_logprobs=with_logprobs)
            for _ in range(num_choices)
        ]
        self._begun = [False] * num_choices
        self._templates = [
            {
                type(event): EventTemplate(self._chunk(index, _delta(event) or {}))
                for event in (ContentDelta(TEXT_SLOT), ReasoningDelta(TEXT_SLOT))
            }
            for index in range(num_choices)
        ]

    def write(self, prompt_index: int, output: RequestOutput) -> bytes:
        """Frames for one output; none if there is nothing to show yet."""
        self._usage.note(prompt_index, output)
        index = output.index
        frames = b""
        if not self._begun[index]:
            self._begun[index] = True
            first = self._chunk(index, {"role": "assistant", "content": "", "refusal": None})
            frames = encode_event(first)
        reader = self._readers[index]
        for event, positions in reader.read_scored(output):
            if not positions and isinstance(event, ContentDelta | ReasoningDelta):
                frames += self._templates[index][type(event)].fill(event.text)
            elif delta := _delta(event):
                logprobs = _logprobs(positions) if positions else None
                frames += encode_event(self._chunk(index, delta, logprobs=logprobs))
        if output.finish_reason is not None:
            reason = finish_reason_to_wire(output.finish_reason, calls_tools=reader.has_tool_calls)
            frames += encode_event(self._chunk(index, {}, finish_reason=reason))
        return frames

    def close(self) -> bytes:
        """The end of a stream that went well."""
        if not self._include_usage:
            return DONE
        last = {
            **self._head.fields("chat.completion.chunk"),
            "choices": [],
            "usage": self._usage.to_wire(self._readers),
        }
        return encode_event(last) + DONE

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        chunk = {**self._head.fields("chat.completion.chunk"), "choices": [choice]}
        return {**chunk, "usage": None} if self._include_usage else chunk


def _message(events: Sequence[ReplyEvent]) -> dict[str, Any]:
    """The whole message. What the model thought has two names, as clients differ."""
    content = "".join(event.text for event in events if isinstance(event, ContentDelta))
    reasoning = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
    # Those that broke off, too: their arguments are no JSON, as in a stream.
    calls = [event for event in events if isinstance(event, ToolCallStart)]
    arguments = dict.fromkeys((call.index for call in calls), "")
    for event in events:
        if isinstance(event, ToolCallDelta):
            arguments[event.index] += event.arguments
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if reasoning:
        message |= {"reasoning_content": reasoning, "reasoning": reasoning}
    if calls:
        message["content"] = content or None
        message["tool_calls"] = [
            {
                "id": call.call_id,
                "type": "function",
                "function": {"name": call.name, "arguments": arguments[call.index]},
            }
            for call in calls
        ]
    return message


def _delta(event: ReplyEvent) -> dict[str, Any] | None:
    match event:
        case ContentDelta(text):
            return {"content": text}
        case ReasoningDelta(text):
            return {"reasoning_content": text, "reasoning": text}
        case ToolCallStart(index, call_id, name):
            function = {"name": name, "arguments": ""}
            call = {"index": index, "id": call_id, "type": "function", "function": function}
            return {"tool_calls": [call]}
        case ToolCallDelta(index, arguments):
            return {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}
        case _:
            return None


def _logprobs(positions: Sequence[PositionLogprobs]) -> dict[str, Any]:
    content = [
        {**_candidate(it.chosen), "top_logprobs": [_candidate(top) for top in it.top]}
        for it in positions
    ]
    return {"content": content, "refusal": None}


def _candidate(token: TokenLogprob) -> dict[str, Any]:
    logprob = logprob_to_wire(token.logprob)
    return {"token": token.text, "logprob": logprob, "bytes": list(token.raw)}
