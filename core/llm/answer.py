"""What comes back: whole answers, and the events of one that is under way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from ..engine.client import Generation
from ..errors import PippinError
from ..messages import Message, TextPart, ToolCall
from ..parsing.events import (
    ContentDelta,
    ReasoningDelta,
    ReplyEvent,
    ToolCallDelta,
    ToolCallStart,
)
from ..parsing.reply_reader import ReplyReader
from ..request import FinishReason, PositionLogprobs, RequestOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts of one answer.

    Attributes:
        cached_tokens: Prompt tokens that were not computed: the prefix cache had them.
        output_tokens: Tokens drawn, those of reasoning included.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer to one prompt.

    Attributes:
        text: What the model says; of a chat without reasoning and calls.
        reasoning: What it thought.
        tool_calls: What it calls. The arguments of a call that broke off are text.
        finish_reason: ``error`` only if the caller asked for errors among the answers.
        stop_reason: The stop string or the stop token that ended it, if one did.
        token_ids: All tokens drawn, with the one that ended it.
        logprobs: One entry a token that shows as text, if asked for; those of reasoning and of
            markers are among them.
        prompt_logprobs: One entry a prompt token, if asked for. The first has none.
        alternatives: With ``n`` above 1, the other answers to the prompt.
        error: What went wrong instead.
    """

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: Literal["stop", "length", "tool_calls", "error"]
    stop_reason: str | int | None = None
    prompt_token_ids: tuple[int, ...] = field(default=(), repr=False)
    token_ids: tuple[int, ...] = field(default=(), repr=False)
    logprobs: tuple[PositionLogprobs, ...] | None = field(default=None, repr=False)
    prompt_logprobs: tuple[PositionLogprobs | None, ...] | None = field(default=None, repr=False)
    usage: Usage = Usage()
    alternatives: tuple[Answer, ...] = ()
    error: PippinError | None = None

    @property
    def message(self) -> Message:
        """The turn that continues the conversation."""
        return Message(
            role="assistant",
            content=(TextPart(self.text),) if self.text else (),
            tool_calls=self.tool_calls,
            reasoning=self.reasoning or None,
        )


StreamEvent: TypeAlias = ReplyEvent | Answer
"""Deltas as they come, and the whole answer as the last one."""


class AnswerBuilder:
    """Follows one answer from output to output."""

    def __init__(self, generation: Generation, *, with_logprobs: bool) -> None:
        self._generation = generation
        self._reader = ReplyReader(generation.make_parser())
        self._events: list[ReplyEvent] = []
        self._token_ids: list[int] = []
        self._logprobs: list[PositionLogprobs] | None = [] if with_logprobs else None
        self._last: RequestOutput | None = None

    def feed(self, output: RequestOutput) -> Sequence[ReplyEvent]:
        """Take in an output; its events.

        Raises:
            PippinError: The answer failed.
        """
        if (failure := output.failure) is not None:
            raise failure
        events = self._reader.read(output)
        self._events += events
        self._token_ids += output.token_ids
        if self._logprobs is not None:
            self._logprobs += output.logprobs
        self._last = output
        return events

    def answer(self, alternatives: Sequence[Answer] = ()) -> Answer:
        """The whole, after the last output."""
        generation, last = self._generation, self._last
        assert last is not None, "an engine ends every answer"
        is_cut = last.finish_reason is FinishReason.LENGTH
        prompt_logprobs = generation.prompt_logprobs
        return Answer(
            text="".join(it.text for it in self._events if isinstance(it, ContentDelta)),
            reasoning="".join(it.text for it in self._events if isinstance(it, ReasoningDelta)),
            tool_calls=self._tool_calls(),
            finish_reason=(
                "length" if is_cut else "tool_calls" if self._reader.has_tool_calls else "stop"
            ),
            stop_reason=last.stop_reason,
            prompt_token_ids=tuple(generation.prompt_token_ids),
            token_ids=tuple(self._token_ids),
            logprobs=None if self._logprobs is None else tuple(self._logprobs),
            prompt_logprobs=None if prompt_logprobs is None else tuple(prompt_logprobs),
            usage=Usage(
                prompt_tokens=len(generation.prompt_token_ids),
                cached_tokens=last.num_cached_tokens,
                output_tokens=last.num_output_tokens,
                reasoning_tokens=self._reader.num_reasoning_tokens,
            ),
            alternatives=tuple(alternatives),
        )

    def _tool_calls(self) -> tuple[ToolCall, ...]:
        starts = [event for event in self._events if isinstance(event, ToolCallStart)]
        arguments = dict.fromkeys((start.index for start in starts), "")
        for event in self._events:
            if isinstance(event, ToolCallDelta):
                arguments[event.index] += event.arguments
        return tuple(
            ToolCall.of_text(start.call_id, start.name, arguments[start.index]) for start in starts
        )
