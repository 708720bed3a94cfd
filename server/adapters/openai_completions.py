"""Text completion requests to prompts. The way back is `openai_completions_reply.py`."""

from __future__ import annotations

from typing import cast

from pippin.core.engine.client import ModelCard
from pippin.core.errors import InvalidRequestError, UnsupportedFeatureError
from pippin.core.messages import TextPrompt, TokensPrompt
from pippin.core.sampling_params import SamplingParams

from ..schemas.openai_completions import CompletionRequest
from .sampling import check_stream_options, check_token_ids, to_sampling_params

# The API's own default, unlike that of chat.
DEFAULT_MAX_TOKENS = 16
MAX_PROMPTS = 128


def to_prompts(wire: CompletionRequest, card: ModelCard) -> list[TextPrompt | TokensPrompt]:
    """The prompts, in order.

    Raises:
        InvalidRequestError: Too many prompts, or a token id outside the vocabulary.
    """
    given = wire.prompt
    if isinstance(given, str):
        items: tuple[str | tuple[int, ...], ...] = (given,)
    elif isinstance(given[0], int):
        items = (given,)
    else:
        items = cast("tuple[str | tuple[int, ...], ...]", given)
    if len(items) > MAX_PROMPTS:
        raise InvalidRequestError(
            f"'prompt' holds {len(items)} prompts; {MAX_PROMPTS} is the most.", param="prompt"
        )
    return [_to_prompt(item, wire, card) for item in items]


def to_params(wire: CompletionRequest, card: ModelCard) -> SamplingParams:
    """The settings, the same for all prompts.

    Raises:
        InvalidRequestError: A field is out of range or at odds with another one.
    """
    check_stream_options(wire)
    if wire.best_of is not None and wire.best_of != (wire.n or 1):
        raise UnsupportedFeatureError(
            "'best_of' must equal 'n': answers are not ranked.", param="best_of"
        )
    if wire.max_tokens == 0 and not wire.echo:
        raise InvalidRequestError("'max_tokens' of 0 needs 'echo'.", param="max_tokens")
    echoed_logprobs = wire.logprobs if wire.echo else None
    if wire.prompt_logprobs is not None:
        if wire.stream or echoed_logprobs not in (None, wire.prompt_logprobs):
            raise UnsupportedFeatureError(
                "'prompt_logprobs' cannot be streamed, and must equal 'logprobs' with 'echo'.",
                param="prompt_logprobs",
            )
        echoed_logprobs = wire.prompt_logprobs
    return to_sampling_params(
        wire,
        card,
        max_tokens=DEFAULT_MAX_TOKENS if wire.max_tokens is None else wire.max_tokens,
        num_logprobs=wire.logprobs,
        num_prompt_logprobs=echoed_logprobs,
    )


def _to_prompt(
    item: str | tuple[int, ...], wire: CompletionRequest, card: ModelCard
) -> TextPrompt | TokensPrompt:
    if isinstance(item, str):
        return TextPrompt(item, add_special_tokens=wire.add_special_tokens is not False)
    check_token_ids(item, card, param="prompt")
    return TokensPrompt(item)
