"""Outputs to chat completion objects and chunks.

Source: platform.openai.com/docs/api-reference/chat/object and .../chat/streaming.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pippin.core.request import FinishReason, PositionLogprobs, RequestOutput, TokenLogprob

from ..sse import DONE, TEXT_SLOT, EventTemplate, encode_event
from .reply import ReplyHead, UsageCounter, finish_reason_to_wire, logprob_to_wire


class ChatReplyCollector:
    """Gathers the answers to one prompt into one ``chat.completion``."""

    def __init__(
        self, head: ReplyHead, usage: UsageCounter, *, num_choices: int, with_logprobs: bool
    ) -> None:
        self._head = head
        self._usage = usage
        self._with_logprobs = with_logprobs
        self._texts: list[list[str]] = [[] for _ in range(num_choices)]
        self._logprobs: list[list[PositionLogprobs]] = [[] for _ in range(num_choices)]
        self._finish_reasons: list[FinishReason | None] = [None] * num_choices

    def feed(self, prompt_index: int, output: RequestOutput) -> None:
        """Take in one output. There is one prompt only."""
        self._usage.note(prompt_index, output)
        self._texts[output.index].append(output.text)
        self._logprobs[output.index].extend(output.logprobs)
        self._finish_reasons[output.index] = output.finish_reason

    def reply(self) -> dict[str, Any]:
        """The whole object, after the last output."""
        return {
            **self._head.fields("chat.completion"),
            "choices": [self._choice(index) for index in range(len(self._texts))],
            "usage": self._usage.to_wire(),
        }

    def _choice(self, index: int) -> dict[str, Any]:
        reason = self._finish_reasons[index]
        assert reason is not None, "an engine ends every answer"
        content = "".join(self._texts[index])
        return {
            "index": index,
            "message": {"role": "assistant", "content": content, "refusal": None},
            "logprobs": _logprobs(self._logprobs[index]) if self._with_logprobs else None,
            "finish_reason": finish_reason_to_wire(reason),
        }


class ChatChunkWriter:
    """Writes one prompt's answers as chunks, as they come."""

    def __init__(
        self, head: ReplyHead, usage: UsageCounter, *, num_choices: int, include_usage: bool
    ) -> None:
        self._head = head
        self._usage = usage
        self._include_usage = include_usage
        self._begun = [False] * num_choices
        self._templates = [
            EventTemplate(self._chunk(index, {"content": TEXT_SLOT}))
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
        if output.logprobs:
            delta = {"content": output.text}
            frames += encode_event(self._chunk(index, delta, logprobs=_logprobs(output.logprobs)))
        elif output.text:
            frames += self._templates[index].fill(output.text)
        if output.finish_reason is not None:
            reason = finish_reason_to_wire(output.finish_reason)
            frames += encode_event(self._chunk(index, {}, finish_reason=reason))
        return frames

    def close(self) -> bytes:
        """The end of a stream that went well."""
        if not self._include_usage:
            return DONE
        last = {
            **self._head.fields("chat.completion.chunk"),
            "choices": [],
            "usage": self._usage.to_wire(),
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


def _logprobs(positions: Sequence[PositionLogprobs]) -> dict[str, Any]:
    content = [
        {**_candidate(it.chosen), "top_logprobs": [_candidate(top) for top in it.top]}
        for it in positions
    ]
    return {"content": content, "refusal": None}


def _candidate(token: TokenLogprob) -> dict[str, Any]:
    logprob = logprob_to_wire(token.logprob)
    return {"token": token.text, "logprob": logprob, "bytes": list(token.raw)}
