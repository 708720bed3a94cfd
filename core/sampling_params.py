"""How the tokens of one request are drawn.

Values are checked at birth: a `SamplingParams` that exists can be honoured by every row of the
sampler. Wire names and wire names' defaults are the adapters' business.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import InvalidRequestError

MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling settings of one request.

    Where a grammar leaves one thing to draw, that is drawn, whatever biases and least lengths say,
    and where it ends, the answer ends. Stops end a constrained answer as they do any other.

    Attributes:
        max_tokens: Most tokens to draw; ``None`` means up to the model's context length.
        min_tokens: Tokens to draw before an end-of-sequence token or a stop may end the answer.
        temperature: 0 draws the likeliest token.
        top_p: Keep the smallest set of tokens that holds this much probability; 1 keeps all.
        top_k: Keep this many likeliest tokens; 0 keeps all.
        min_p: Keep tokens at least this likely relative to the likeliest; 0 keeps all.
        repetition_penalty: Divides (or multiplies, if negative) logits of tokens of the prompt and
            the answer; 1 is neutral.
        presence_penalty: Subtracted from logits of tokens that the answer holds.
        frequency_penalty: Subtracted once for each time that the answer holds the token.
        logit_bias: Token id to a number that is added to its logit.
        seed: Makes the draw reproducible, whatever else runs; ``None`` draws a fresh one.
        stop: Text that ends the answer where it stands in content, not in reasoning or in a tool
            call; it is not part of the answer.
        stop_token_ids: Token ids that end the answer, beside the model's own.
        ignore_eos: Go on after the model's end-of-sequence tokens.
        speculation: Whether tokens may be guessed ahead. It never changes the answer.
        num_logprobs: ``None`` for none, 0 for the drawn token's, k for the k likeliest as well.
        num_prompt_logprobs: The same for the prompt's tokens.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    speculation: bool = True
    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        _check_range("temperature", self.temperature, 0.0, 2.0)
        _check_range("top_p", self.top_p, 0.0, 1.0, low_open=True)
        _check_range("min_p", self.min_p, 0.0, 1.0)
        _check_range("top_k", self.top_k, 0, 2**31 - 1)
        _check_range("repetition_penalty", self.repetition_penalty, 0.0, 10.0, low_open=True)
        _check_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_range("min_tokens", self.min_tokens, 0, 2**31 - 1)
        if self.max_tokens is not None:
            _check_range("max_tokens", self.max_tokens, 0, 2**31 - 1)
            if self.min_tokens > self.max_tokens:
                raise InvalidRequestError(
                    f"min_tokens ({self.min_tokens}) is greater than max_tokens "
                    f"({self.max_tokens}).",
                    param="min_tokens",
                )
        for name, count in (
            ("logprobs", self.num_logprobs),
            ("prompt_logprobs", self.num_prompt_logprobs),
        ):
            if count is not None:
                _check_range(name, count, 0, MAX_LOGPROBS)
        for bias in self.logit_bias.values():
            _check_range("logit_bias", bias, -100.0, 100.0)
        if self.seed is not None:
            _check_range("seed", self.seed, -(2**63), 2**64 - 1)
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidRequestError(
                f"stop holds {len(self.stop)} strings; {MAX_STOP_STRINGS} is the most.",
                param="stop",
            )
        if any(not text for text in self.stop):
            raise InvalidRequestError("stop holds an empty string.", param="stop")

    @classmethod
    def over(cls, defaults: Mapping[str, float], given: Mapping[str, Any]) -> SamplingParams:
        """Settings of which some are given, or not ``None``: others are the model's, or neutral.

        Args:
            defaults: What the model advises, keyed by field.
            given: The same of the request.

        Raises:
            InvalidRequestError: A value is out of range, or there is no such field.
        """
        for name in given:
            if name not in cls.__dataclass_fields__:
                raise InvalidRequestError(f"Unknown sampling setting: '{name}'.", param=name)
        fields: dict[str, Any] = {**defaults}
        fields |= {name: value for name, value in given.items() if value is not None}
        if "top_k" in fields:
            fields["top_k"] = int(fields["top_k"])
        return cls(**fields)

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always drawn."""
        return self.temperature == 0.0 or self.top_k == 1

    @property
    def has_penalties(self) -> bool:
        """Whether the tokens drawn so far change the next draw's logits."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


def _check_range(
    name: str, value: float, low: float, high: float, *, low_open: bool = False
) -> None:
    inside = low < value <= high if low_open else low <= value <= high
    if not inside or math.isnan(value):
        bound = "greater than" if low_open else "at least"
        raise InvalidRequestError(
            f"{name} must be {bound} {low} and at most {high}, got {value}.", param=name
        )
