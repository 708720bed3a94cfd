"""Responses requests to prompts, rules and settings. The way back is `openai_responses_reply.py`.

A conversation is a list of items: an assistant's turn is all of its items in a row.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pippin.core.engine.client import EngineClient, ModelCard
from pippin.core.errors import InvalidRequestError, UnsupportedFeatureError
from pippin.core.messages import ChatPrompt, Message, TextPart, ToolCall
from pippin.core.reply_rules import ReplyRules, ResponseFormat
from pippin.core.sampling_params import SamplingParams

from ..schemas.openai_responses import (
    ContentWire,
    CustomCallItem,
    FunctionCallItem,
    FunctionOutputItem,
    InputFields,
    JsonSchemaFormat,
    MediaPartWire,
    MessageItem,
    ReasoningItem,
    RefusalPartWire,
    ResponsesRequest,
    StoredItem,
)
from .call_arguments import read_arguments
from .openai_responses_tools import name_for_model, offered_tools, to_arguments, to_tool_choice
from .sampling import check_stream_options, to_sampling_params

# What the chat API calls otherwise; see `named_as`.
FIELD_NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
    "response_format.json_schema": "text.format",
}

_OPAQUE_MARK = "pippin:"
_ID_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "reasoning": "rs",
}


def item_id(item_type: str, reply_id: str, index: int | str) -> str:
    """An id that tells which response the item belongs to; see `reply_id_of`."""
    return f"{_ID_PREFIXES[item_type]}_{reply_id.removeprefix('resp_')}_{index}"


def reply_id_of(an_item_id: str) -> str:
    """The response that gave the item its id, if one of this server's did."""
    return "resp_" + "".join(an_item_id.split("_")[1:2])


def to_opaque(reasoning: str) -> str:
    """What goes out as ``encrypted_content``: no secret, but all that is needed on the way back."""
    return _OPAQUE_MARK + base64.b64encode(reasoning.encode()).decode()


def to_prompt(wire: InputFields, items: Sequence[StoredItem], num_earlier: int) -> ChatPrompt:
    """The conversation.

    Args:
        items: All of it but the instructions; the first ``num_earlier`` are not of this request.

    Raises:
        InvalidRequestError: An item cannot be taken, or fields contradict each other; names them.
    """
    system = wire.instructions
    earlier_field = "previous_response_id" if wire.conversation is None else "conversation"
    return ChatPrompt(
        messages=(
            *([Message(role="system", content=(TextPart(system),))] if system else ()),
            *to_messages(items, num_earlier, (earlier_field, "input")),
        ),
        tools=offered_tools(wire),
        reasoning_effort=wire.reasoning.effort if wire.reasoning else None,
        template_kwargs=wire.chat_template_kwargs or {},
    )


def to_rules(wire: ResponsesRequest) -> ReplyRules:
    """What the answer must be made of.

    Raises:
        InvalidRequestError: Fields contradict each other; names one.
    """
    form = wire.text.format if wire.text else None
    response_format = None
    if isinstance(form, JsonSchemaFormat):
        response_format = ResponseFormat("json_schema", form.json_schema)
    elif form is not None and form.type == "json_object":
        response_format = ResponseFormat("json_object")
    return ReplyRules(
        tool_choice=to_tool_choice(wire),
        parallel_tool_calls=wire.parallel_tool_calls is not False,
        response_format=response_format,
        thinking_budget=wire.thinking_token_budget,
    )


def to_params(wire: ResponsesRequest, card: ModelCard) -> SamplingParams:
    """The settings.

    Raises:
        InvalidRequestError: A field is out of range or at odds with another one.
    """
    check_stream_options(wire)
    return to_sampling_params(
        wire,
        card,
        max_tokens=wire.max_output_tokens,
        num_logprobs=(wire.top_logprobs or 0) if wants_logprobs(wire) else None,
    )


def wants_logprobs(wire: ResponsesRequest) -> bool:
    """Whether either of the two ways to ask for logprobs is used."""
    return bool(wire.top_logprobs) or "message.output_text.logprobs" in (wire.include or ())


async def cut_to_fit(engine: EngineClient, prompt: ChatPrompt, num_wanted: int) -> ChatPrompt:
    """The prompt without as many of its oldest turns as must go to leave room for an answer.

    System messages at the head stay, and so does the last turn.
    """
    messages = prompt.messages
    head = next((i for i, it in enumerate(messages) if it.role not in _SYSTEM), len(messages))
    starts = [i for i, it in enumerate(messages) if it.role == "user" and i > head]
    shorter = [replace(prompt, messages=(*messages[:head], *messages[i:])) for i in starts]
    low, high = 0, len(shorter) - 1
    while low < high:
        middle = (low + high) // 2
        num_tokens = len(await engine.tokenize(shorter[middle]))
        if num_tokens + num_wanted <= engine.model_card.max_model_len:
            high = middle
        else:
            low = middle + 1
    return shorter[low] if shorter else prompt


_SYSTEM = ("system", "developer")


def to_stored_items(
    items: Iterable[StoredItem], reply_id: str, *, keep_ids: bool = True
) -> list[dict[str, Any]]:
    """Items as the API shows them: with ids, statuses, and texts as parts."""
    return [
        _to_stored(item, (keep_ids and item.id) or item_id(item.type, reply_id, f"i{index}"))
        for index, item in enumerate(items)
    ]


def _to_stored(item: StoredItem, its_id: str) -> dict[str, Any]:
    stored = {
        **item.model_dump(mode="json", exclude_none=True),
        "id": its_id,
        "status": item.status or "completed",
    }
    if isinstance(item, MessageItem) and isinstance(item.content, str):
        kind = "output_text" if item.role == "assistant" else "input_text"
        stored["content"] = [{"type": kind, "text": item.content}]
    for part in stored["content"] if isinstance(item, MessageItem) else ():
        if part["type"] == "output_text":
            part |= {"annotations": [], "logprobs": part.get("logprobs") or []}
    return stored


@dataclass
class _AssistantTurn:
    """What one run of assistant items adds up to."""

    content: tuple[TextPart, ...] = ()
    reasoning: list[str] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)

    def to_messages(self) -> list[Message]:
        if not (self.content or self.reasoning or self.tool_calls):
            return []
        return [
            Message(
                role="assistant",
                content=self.content,
                tool_calls=tuple(self.tool_calls),
                reasoning="\n".join(self.reasoning) if self.reasoning else None,
            )
        ]


def to_messages(
    items: Sequence[StoredItem], num_earlier: int, fields: tuple[str, str]
) -> list[Message]:
    """The turns that items make up.

    Args:
        fields: Where errors place the first ``num_earlier`` items, and the others.

    Raises:
        InvalidRequestError: An item cannot be taken; names it.
    """
    earlier_field, field_name = fields
    messages: list[Message] = []
    turn = _AssistantTurn()
    call_ids: set[str] = set()
    answered = {item.call_id for item in items if isinstance(item, FunctionOutputItem)}
    for index, item in enumerate(items):
        where = f"{field_name}.{index - num_earlier}" if index >= num_earlier else earlier_field
        if isinstance(item, ReasoningItem):
            turn.reasoning.append(_to_reasoning(item, where))
        elif isinstance(item, FunctionCallItem):
            arguments = read_arguments(item.arguments)
            is_cut = isinstance(arguments, str) and item.status == "incomplete"
            if is_cut and item.call_id not in answered:
                continue  # by the token limit: nobody will answer it
            call_ids.add(item.call_id)
            turn.tool_calls.append(_to_call(item, arguments))
        elif isinstance(item, CustomCallItem):
            call_ids.add(item.call_id)
            turn.tool_calls.append(_to_call(item, to_arguments(item.input)))
        elif isinstance(item, MessageItem) and item.role == "assistant":
            if turn.content:
                messages += turn.to_messages()
                turn = _AssistantTurn()
            turn.content = _to_parts(item.content, f"{where}.content")
        else:
            messages += turn.to_messages()
            turn = _AssistantTurn()
            if isinstance(item, MessageItem):
                parts = _to_parts(item.content, f"{where}.content")
                messages.append(Message(role=item.role, content=parts))
                continue
            assert isinstance(item, FunctionOutputItem)
            if item.call_id not in call_ids:
                raise InvalidRequestError(
                    f"No call before '{where}' has the call_id '{item.call_id}'.",
                    param=f"{where}.call_id",
                )
            parts = _to_parts(item.output, f"{where}.output")
            messages.append(Message(role="tool", content=parts, tool_call_id=item.call_id))
    return messages + turn.to_messages()


def _to_call(
    item: FunctionCallItem | CustomCallItem, arguments: Mapping[str, Any] | str
) -> ToolCall:
    name = name_for_model(item.name, item.namespace)
    return ToolCall(call_id=item.call_id, name=name, arguments=arguments)


def _to_reasoning(item: ReasoningItem, where: str) -> str:
    parts = item.content or item.summary
    if parts or not item.encrypted_content:
        return "".join(part.text for part in parts)
    mark, opaque = _OPAQUE_MARK, item.encrypted_content
    if opaque.startswith(mark):
        # Padding, alphabet and UTF-8: whatever is wrong with it is a ValueError.
        with contextlib.suppress(ValueError):
            return base64.b64decode(opaque.removeprefix(mark), validate=True).decode()
    raise UnsupportedFeatureError(
        f"'{where}.encrypted_content' was not made by this server.",
        param=f"{where}.encrypted_content",
    )


def _to_parts(content: ContentWire, where: str) -> tuple[TextPart, ...]:
    if isinstance(content, str):
        return (TextPart(content),)
    parts = []
    for index, part in enumerate(content):
        if isinstance(part, MediaPartWire):
            raise UnsupportedFeatureError(
                f"'{where}.{index}' is of type '{part.type}', which this model cannot take.",
                param=f"{where}.{index}.type",
            )
        parts.append(TextPart(part.refusal if isinstance(part, RefusalPartWire) else part.text))
    return tuple(parts)
