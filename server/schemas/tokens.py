"""``POST /tokenize`` and ``POST /detokenize``: extensions, shaped as vLLM's users know them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from .openai_chat import MessageWire, ToolWire
from .wire_model import WireModel


class TokenizeRequest(WireModel):
    """Either ``prompt`` or ``messages``.

    Attributes:
        add_special_tokens: Of a ``prompt`` only: a chat template brings its own.
        add_generation_prompt: Of ``messages`` only, as are ``chat_template_kwargs``,
            ``continue_final_message`` and ``tools``.
    """

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[tuple[MessageWire, ...], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    tools: tuple[ToolWire, ...] | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(WireModel):
    """Token ids to be shown as text."""

    model: str | None = None
    tokens: tuple[int, ...]
