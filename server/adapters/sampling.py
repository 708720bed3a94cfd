"""Wire fields to `SamplingParams`: request, else the model's default, else the API's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pippin.core.engine.client import ModelCard
from pippin.core.errors import InvalidRequestError
from pippin.core.sampling_params import SamplingParams

from ..schemas.sampling_fields import SamplingFields

_NAMED_ALIKE = (
    *("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty"),
    *("frequency_penalty", "min_tokens", "seed", "stop_token_ids", "ignore_eos", "speculation"),
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
    given: dict[str, Any] = {
        **{name: getattr(wire, name) for name in _NAMED_ALIKE},
        # -1 is what vLLM's clients send for "keep all".
        "top_k": 0 if wire.top_k == -1 else wire.top_k,
        "max_tokens": max_tokens,
        "logit_bias": _logit_bias(wire.logit_bias or {}, card),
        "stop": (wire.stop,) if isinstance(wire.stop, str) else wire.stop,
        "num_logprobs": num_logprobs,
        "num_prompt_logprobs": num_prompt_logprobs,
    }
    return SamplingParams.over(card.default_sampling, given)


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
