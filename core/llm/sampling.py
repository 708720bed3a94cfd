"""Sampling settings as callers write them: only those that differ from what the model advises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

from ..sampling_params import SamplingParams


class Sampling(TypedDict, total=False):
    """Some of the fields of `SamplingParams`. ``None`` is as good as absent."""

    max_tokens: int | None
    min_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool | None
    speculation: bool | None
    num_logprobs: int | None
    num_prompt_logprobs: int | None


def to_params(
    given: SamplingParams | Sampling | None, defaults: Mapping[str, float]
) -> SamplingParams:
    """All settings.

    Args:
        given: Taken as they are if they are whole; else what is absent comes from `defaults`, or
            is neutral.
        defaults: What the model advises, see `ModelCard.default_sampling`.

    Raises:
        InvalidRequestError: A value is out of range, or of a field that there is not.
    """
    if isinstance(given, SamplingParams):
        return given
    fields = dict(cast("Mapping[str, Any]", given or {}))
    if isinstance(fields.get("stop"), str):
        fields["stop"] = (fields["stop"],)
    for name in ("stop", "stop_token_ids"):
        if fields.get(name) is not None:
            fields[name] = tuple(fields[name])
    return SamplingParams.over(defaults, fields)
