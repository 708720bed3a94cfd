"""Outputs to text completion objects; a stream's chunks are of the same type.

Source: platform.openai.com/docs/api-reference/completions/object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pippin.core.engine.client import Generation
from pippin.core.request import PositionLogprobs, RequestOutput

from ..sse import DONE, TEXT_SLOT, EventTemplate, encode_event
from .reply import ReplyHead, UsageCounter, finish_reason_to_wire, logprob_to_wire


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoedPrompt:
    """A prompt that is to stand before its answers.

    Attributes:
        first_token: Text of its first token, which has no logprob; ``None`` without logprobs.
    """

    text: str
    first_token: str | None
    generation: Generation

    def positions(self) -> list[PositionLogprobs | None]:
        """Logprobs of the prompt's tokens. Complete from the first output on."""
        return list(self.generation.prompt_logprobs or ())


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionLayout:
    """How choices are numbered and what stands in them.

    Attributes:
        num_answers: Choices of each prompt.
        echoes: One for each prompt, or none at all.
        scored: Generations whose prompt's logprobs are to stand in each choice; one for each
            prompt, or none at all.
    """

    num_prompts: int
    num_answers: int
    with_logprobs: bool
    echoes: Sequence[EchoedPrompt] = ()
    scored: Sequence[Generation] = ()

    @property
    def num_choices(self) -> int:
        """Choices of the whole reply."""
        return self.num_prompts * self.num_answers

    def choice_index(self, prompt_index: int, output: RequestOutput) -> int:
        """The first prompt's answers come first."""
        return prompt_index * self.num_answers + output.index

    def echo_of(self, choice_index: int) -> EchoedPrompt | None:
        """What stands before a choice's answer."""
        return self.echoes[choice_index // self.num_answers] if self.echoes else None

    def logprobs(
        self,
        choice_index: int,
        positions: Sequence[PositionLogprobs],
        *,
        with_echo: bool,
        with_end: bool = False,
    ) -> dict[str, Any] | None:
        """Parallel lists over tokens, if asked for.

        Args:
            with_echo: Puts the prompt's in front.
            with_end: Adds an entry for a token that ended the answer and is not shown. Who scores
                prompts asks for one token more, and drops the last entry.
        """
        if not self.with_logprobs:
            return None
        echo = self.echo_of(choice_index)
        rows: dict[str, list[Any]] = {
            "text_offset": [],
            "token_logprobs": [],
            "tokens": [],
            "top_logprobs": [],
        }
        if echo is not None and with_echo:
            for position in echo.positions():
                _add_row(rows, position, 0, echo.first_token or "")
        num_chars_before = len(echo.text) if echo is not None else 0
        for position in positions:
            _add_row(rows, position, num_chars_before, "")
        if with_end and echo is not None:
            _add_row(rows, None, num_chars_before, "")
        return rows

    def prompt_logprobs(self, choice_index: int) -> dict[str, Any]:
        """The field of that name, as vLLM's users know it, if asked for."""
        if not self.scored:
            return {}
        positions = self.scored[choice_index // self.num_answers].prompt_logprobs or ()
        return {"prompt_logprobs": [position and _by_token_id(position) for position in positions]}


class CompletionReplyCollector:
    """Gathers all answers to all prompts into one ``text_completion``."""

    def __init__(self, head: ReplyHead, usage: UsageCounter, layout: CompletionLayout) -> None:
        self._head = head
        self._usage = usage
        self._layout = layout
        self._texts: list[list[str]] = [[] for _ in range(layout.num_choices)]
        self._logprobs: list[list[PositionLogprobs]] = [[] for _ in range(layout.num_choices)]
        self._last: list[RequestOutput | None] = [None] * layout.num_choices

    def feed(self, prompt_index: int, output: RequestOutput) -> None:
        """Take in one output."""
        self._usage.note(prompt_index, output)
        index = self._layout.choice_index(prompt_index, output)
        self._texts[index].append(output.text)
        self._logprobs[index].extend(output.logprobs)
        self._last[index] = output

    def reply(self) -> dict[str, Any]:
        """The whole object, after the last output."""
        return {
            **self._head.fields("text_completion"),
            "choices": [self._choice(index) for index in range(self._layout.num_choices)],
            "usage": self._usage.to_wire(),
        }

    def _choice(self, index: int) -> dict[str, Any]:
        last = self._last[index]
        assert last is not None, "an engine ends every answer"
        assert last.finish_reason is not None, "an engine ends every answer"
        echo = self._layout.echo_of(index)
        positions = self._logprobs[index]
        with_end = not positions and last.num_output_tokens > 0
        return {
            "text": (echo.text if echo is not None else "") + "".join(self._texts[index]),
            "index": index,
            "logprobs": self._layout.logprobs(index, positions, with_echo=True, with_end=with_end),
            "finish_reason": finish_reason_to_wire(last.finish_reason),
            **self._layout.prompt_logprobs(index),
        }


class CompletionChunkWriter:
    """Writes the same as a stream. All chunks have the reply's one id."""

    def __init__(
        self,
        head: ReplyHead,
        usage: UsageCounter,
        layout: CompletionLayout,
        *,
        include_usage: bool,
    ) -> None:
        self._head = head
        self._usage = usage
        self._layout = layout
        self._include_usage = include_usage
        self._begun = [False] * layout.num_choices
        self._has_logprobs = [False] * layout.num_choices
        self._templates = [
            EventTemplate(self._chunk(index, TEXT_SLOT)) for index in range(layout.num_choices)
        ]

    def write(self, prompt_index: int, output: RequestOutput) -> bytes:
        """Frames for one output; none if there is nothing to show yet."""
        self._usage.note(prompt_index, output)
        index = self._layout.choice_index(prompt_index, output)
        frames = b""
        echo = self._layout.echo_of(index)
        if not self._begun[index]:
            self._begun[index] = True
            if echo is not None:
                logprobs = self._layout.logprobs(index, (), with_echo=True)
                frames = encode_event(self._chunk(index, echo.text, logprobs=logprobs))
        if output.logprobs:
            self._has_logprobs[index] = True
            logprobs = self._layout.logprobs(index, output.logprobs, with_echo=False)
            frames += encode_event(self._chunk(index, output.text, logprobs=logprobs))
        elif output.text:
            frames += self._templates[index].fill(output.text)
        if output.finish_reason is not None:
            reason = finish_reason_to_wire(output.finish_reason)
            logprobs = None
            if not self._has_logprobs[index] and output.num_output_tokens > 0 and echo is not None:
                logprobs = self._layout.logprobs(index, (), with_echo=False, with_end=True)
            chunk = self._chunk(index, "", logprobs=logprobs, finish_reason=reason)
            frames += encode_event(chunk)
        return frames

    def close(self) -> bytes:
        """The end of a stream that went well."""
        if not self._include_usage:
            return DONE
        head = self._head.fields("text_completion")
        return encode_event({**head, "choices": [], "usage": self._usage.to_wire()}) + DONE

    def _chunk(
        self,
        index: int,
        text: str,
        *,
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        choice = {
            "text": text,
            "index": index,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        chunk = {**self._head.fields("text_completion"), "choices": [choice]}
        return {**chunk, "usage": None} if self._include_usage else chunk


def _add_row(
    rows: dict[str, list[Any]],
    position: PositionLogprobs | None,
    num_chars_before: int,
    text_without_logprob: str,
) -> None:
    if position is None:
        rows["text_offset"].append(num_chars_before)
        rows["token_logprobs"].append(None)
        rows["tokens"].append(text_without_logprob)
        rows["top_logprobs"].append(None)
        return
    chosen = position.chosen
    candidates: dict[str, float] = {}
    # Two tokens may decode to the same text; the likelier one keeps its place. The chosen token
    # is there even if it is not among the likeliest.
    for token in (*position.top, chosen):
        candidates.setdefault(token.text, logprob_to_wire(token.logprob))
    rows["text_offset"].append(num_chars_before + position.text_offset)
    rows["token_logprobs"].append(logprob_to_wire(chosen.logprob))
    rows["tokens"].append(chosen.text)
    rows["top_logprobs"].append(candidates)


def _by_token_id(position: PositionLogprobs) -> dict[str, Any]:
    """The token that stands there, and the likeliest; the rank is known of these only."""
    ranked = [(token, rank) for rank, token in enumerate(position.top, 1)]
    return {
        str(token.token_id): {
            "logprob": logprob_to_wire(token.logprob),
            "rank": rank,
            "decoded_token": token.text,
        }
        for token, rank in ((position.chosen, None), *ranked)
    }
