"""Wire fields to `SamplingParams`: request, else the model's default, else the API's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pippin.core.engine.client import ModelCard
from pippin.core.errors import InvalidRequestError
from pippin.core.sampling_params import SamplingParams

from ..schemas.sampling_fields import SamplingFields

# The API's defaults of these are `SamplingParams`' own.
_WITH_MODEL_DEFAULT = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)


def to_sampling_params(
    wire: SamplingFields,
    card: ModelCard,
    *,
    max_tokens: int | None,
    num_logprobs: int | None,
    num_prompt_logprobs: int | None = None,
) -> SamplingParams:
    """The settings of one request.

    Raises:
        InvalidRequestError: A value is out of range.
    """
    check_token_ids(wire.stop_token_ids or (), card, param="stop_token_ids")
    return SamplingParams(
        **_sampler_settings(wire, card.default_sampling),
        max_tokens=max_tokens,
        min_tokens=wire.min_tokens or 0,
        logit_bias=_logit_bias(wire.logit_bias or {}, card),
        seed=wire.seed,
        stop=(wire.stop,) if isinstance(wire.stop, str) else wire.stop or (),
        stop_token_ids=wire.stop_token_ids or (),
        ignore_eos=bool(wire.ignore_eos),
        speculation=wire.speculation is not False,
        num_logprobs=num_logprobs,
        num_prompt_logprobs=num_prompt_logprobs,
    )


def check_stream_options(wire: SamplingFields) -> None:
    """Refuse options of a stream that is not asked for, as OpenAI does."""
    if wire.stream_options is not None and not wire.stream:
        raise InvalidRequestError(
            "'stream_options' is only allowed when 'stream' is true.",
            param="stream_options",
            code="invalid_value",
        )


def check_token_ids(token_ids: Sequence[int], card: ModelCard, *, param: str) -> None:
    """Refuse ids that the model has no token for.

    Raises:
        InvalidRequestError: Names ``param``.
    """
    if token_ids and not 0 <= min(token_ids) <= max(token_ids) < card.vocab_size:
        raise InvalidRequestError(
            f"'{param}' holds a token id outside the vocabulary (0 to {card.vocab_size - 1}).",
            param=param,
            code="invalid_value",
        )


def _sampler_settings(wire: SamplingFields, defaults: Mapping[str, float]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name in _WITH_MODEL_DEFAULT:
        given = getattr(wire, name)
        value = defaults.get(name) if given is None else given
        if value is not None:
            settings[name] = value
    if "top_k" in settings:
        # -1 is what vLLM's clients send for "keep all".
        settings["top_k"] = 0 if settings["top_k"] == -1 else int(settings["top_k"])
    return settings


def _logit_bias(wire: Mapping[str, float], card: ModelCard) -> dict[int, float]:
    bias: dict[int, float] = {}
    for key, value in wire.items():
        # More digits than any vocabulary needs would make int() slow, then refuse.
        if not (key.isascii() and key.isdigit() and len(key) < 12):
            raise InvalidRequestError(
                "'logit_bias' maps token ids to numbers; one of its keys is not a token id.",
                param="logit_bias",
                code="invalid_value",
            )
        bias[int(key)] = value
    check_token_ids(tuple(bias), card, param="logit_bias")
    return bias
