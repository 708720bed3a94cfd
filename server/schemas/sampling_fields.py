"""Fields that chat and text completions have in common. Ranges are `SamplingParams`' business."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .wire_model import WireModel, only


class StreamOptions(WireModel):
    """How a stream is written.

    Attributes:
        include_obfuscation: Padding against readers of packet lengths; there is none to be had.
    """

    include_usage: bool | None = None
    include_obfuscation: Annotated[object, only(False)] = None


class SamplingFields(WireModel):
    """Null and absent mean the same everywhere: the model's own default, else the API's.

    From ``top_k`` on these are extensions of other local servers.

    Attributes:
        user: A hint with no effect.
        top_k: 0 and -1 keep all tokens.
        speculation: False draws one token a step even where the server guesses ahead.
        cache_salt: Keeps the prefix cache of callers with different salts apart.
    """

    model: Annotated[str, Field(min_length=1)]
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | tuple[str, ...] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: tuple[int, ...] | None = None
    ignore_eos: bool | None = None
    speculation: bool | None = None
    cache_salt: Annotated[str, Field(max_length=256)] | None = None
