"""What all OpenAI-shaped replies share: their head, their usage, their logprobs' limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pippin.core.parsing.reply_reader import ReplyReader
from pippin.core.request import FinishReason, RequestOutput

# JSON has no infinity. OpenAI's own stand-in for "never".
MIN_LOGPROB = -9999.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyHead:
    """The same in a reply and in all chunks of a stream."""

    reply_id: str
    created_unix: int
    model: str
    system_fingerprint: str

    def fields(self, kind: str) -> dict[str, Any]:
        """The leading fields of an object of the wire type ``kind``."""
        return {
            "id": self.reply_id,
            "object": kind,
            "created": self.created_unix,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
        }


class UsageCounter:
    """Token counts over all answers to all prompts of one call.

    Args:
        num_prompt_tokens: Of all prompts, each counted once however many answers it gets.
    """

    def __init__(self, num_prompt_tokens: int) -> None:
        self._num_prompt_tokens = num_prompt_tokens
        self._num_output_tokens: dict[tuple[int, int], int] = {}
        self._num_cached_tokens: dict[int, int] = {}

    def note(self, prompt_index: int, output: RequestOutput) -> None:
        """Take in one output; its counts are running totals."""
        self._num_output_tokens[prompt_index, output.index] = output.num_output_tokens
        # Later answers find the prompt that the first one left in the cache. The caller wants to
        # know what was there before the call.
        if output.index == 0:
            self._num_cached_tokens[prompt_index] = output.num_cached_tokens

    def to_wire(self, readers: Sequence[ReplyReader] = ()) -> dict[str, Any]:
        """The ``usage`` object.

        Args:
            readers: Of the answers; they have counted the tokens of reasoning.
        """
        num_output_tokens = sum(self._num_output_tokens.values())
        return {
            "prompt_tokens": self._num_prompt_tokens,
            "completion_tokens": num_output_tokens,
            "total_tokens": self._num_prompt_tokens + num_output_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(self._num_cached_tokens.values())},
            "completion_tokens_details": {
                "reasoning_tokens": sum(reader.num_reasoning_tokens for reader in readers)
            },
        }


def finish_reason_to_wire(reason: FinishReason, *, calls_tools: bool = False) -> str:
    """The endings that are answers; the others have become errors before."""
    if reason is FinishReason.LENGTH:
        return "length"
    return "tool_calls" if calls_tools else "stop"


def logprob_to_wire(logprob: float) -> float:
    """A number that JSON can hold."""
    # Written so that NaN takes the bound as well.
    return logprob if logprob > MIN_LOGPROB else MIN_LOGPROB
