"""Chat completion requests to prompts. The way back is `openai_chat_reply.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pippin.core.engine.client import ModelCard
from pippin.core.errors import InvalidRequestError, UnsupportedFeatureError
from pippin.core.messages import ChatPrompt, Message, TextPart, ToolCall
from pippin.core.sampling_params import SamplingParams

from ..schemas.openai_chat import (
    AssistantMessage,
    ChatCompletionRequest,
    ContentWire,
    MessageWire,
    RefusalPartWire,
    TextPartWire,
    ToolCallWire,
    ToolMessage,
)
from .sampling import check_stream_options, to_sampling_params


def to_prompt(
    messages: Sequence[MessageWire],
    *,
    template_kwargs: Mapping[str, Any] | None,
    add_generation_prompt: bool | None,
) -> ChatPrompt:
    """The conversation.

    Raises:
        InvalidRequestError: A message cannot be taken; names it.
    """
    return ChatPrompt(
        messages=tuple(
            _to_message(wire, f"messages.{index}") for index, wire in enumerate(messages)
        ),
        template_kwargs=template_kwargs or {},
        add_generation_prompt=add_generation_prompt is not False,
    )


def to_params(wire: ChatCompletionRequest, card: ModelCard) -> SamplingParams:
    """The settings.

    Raises:
        InvalidRequestError: A field is out of range or at odds with another one.
    """
    check_stream_options(wire)
    if wire.top_logprobs is not None and not wire.logprobs:
        raise InvalidRequestError(
            "'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs"
        )
    return to_sampling_params(
        wire,
        card,
        max_tokens=_max_tokens(wire),
        num_logprobs=(wire.top_logprobs or 0) if wire.logprobs else None,
    )


def _max_tokens(wire: ChatCompletionRequest) -> int | None:
    if wire.max_tokens is None or wire.max_completion_tokens is None:
        return wire.max_completion_tokens if wire.max_tokens is None else wire.max_tokens
    if wire.max_tokens != wire.max_completion_tokens:
        raise InvalidRequestError(
            "'max_tokens' and 'max_completion_tokens' are given and differ.",
            param="max_completion_tokens",
        )
    return wire.max_tokens


def _to_message(wire: MessageWire, where: str) -> Message:
    parts = _to_parts(wire.content, f"{where}.content")
    if isinstance(wire, AssistantMessage):
        return _to_assistant_message(wire, parts, where)
    return Message(
        role=wire.role,
        content=parts,
        name=wire.name,
        tool_call_id=wire.tool_call_id if isinstance(wire, ToolMessage) else None,
    )


def _to_assistant_message(
    wire: AssistantMessage, parts: tuple[TextPart, ...], where: str
) -> Message:
    if wire.content is None and wire.refusal is None and not wire.tool_calls:
        raise InvalidRequestError(
            f"'{where}' has neither content nor tool calls.", param=f"{where}.content"
        )
    if not parts and wire.refusal is not None:
        parts = (TextPart(wire.refusal),)
    return Message(
        role=wire.role,
        content=parts,
        name=wire.name,
        tool_calls=tuple(_to_tool_call(call) for call in wire.tool_calls or ()),
        reasoning=wire.reasoning_content if wire.reasoning is None else wire.reasoning,
    )


def _to_tool_call(wire: ToolCallWire) -> ToolCall:
    return ToolCall(call_id=wire.id, name=wire.function.name, arguments=wire.function.arguments)


def _to_parts(content: ContentWire | None, where: str) -> tuple[TextPart, ...]:
    if content is None:
        return ()
    if isinstance(content, str):
        return (TextPart(content),)
    parts = []
    for index, part in enumerate(content):
        if isinstance(part, TextPartWire):
            parts.append(TextPart(part.text))
        elif isinstance(part, RefusalPartWire):
            parts.append(TextPart(part.refusal))
        else:
            raise UnsupportedFeatureError(
                f"'{where}.{index}' is of type '{part.type}', which this model cannot take.",
                param=f"{where}.{index}.type",
            )
    return tuple(parts)
