"""``POST /v1/completions``: what may be asked.

Source: platform.openai.com/docs/api-reference/completions/create.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .sampling_fields import SamplingFields
from .wire_model import only

# A long list that is of another kind must not leave an error for each of its items.
TokenIds = Annotated[tuple[int, ...], Field(min_length=1, fail_fast=True)]
ManyTexts = Annotated[tuple[str, ...], Field(min_length=1, fail_fast=True)]
ManyTokenIds = Annotated[tuple[TokenIds, ...], Field(min_length=1, fail_fast=True)]


class CompletionRequest(SamplingFields):
    """A request. Several prompts give ``n`` choices each, in order.

    Attributes:
        max_tokens: 0 only together with ``echo``, to score a prompt.
        best_of: Must be ``n`` if given: answers are not ranked.
        prompt_logprobs: Extension: how many likeliest tokens to show at each of the prompt's.
        add_special_tokens: Extension: whether text gets the tokenizer's own special tokens.
    """

    prompt: str | ManyTexts | TokenIds | ManyTokenIds
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: Annotated[object, only("")] = None

    prompt_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    add_special_tokens: bool | None = None
