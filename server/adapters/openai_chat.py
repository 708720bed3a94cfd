"""Chat completion requests to prompts. The way back is `openai_chat_reply.py`."""

from __future__ import annotations

from collections.abc import Sequence

from pippin.core.engine.client import ModelCard
from pippin.core.errors import InvalidRequestError, UnsupportedFeatureError
from pippin.core.messages import (
    ChatPrompt,
    Message,
    TextPart,
    ToolCall,
    ToolSpec,
    check_tool_results,
)
from pippin.core.reply_rules import (
    FormatKind,
    ReplyRules,
    ResponseFormat,
    ToolChoice,
    check_tool_names,
)
from pippin.core.sampling_params import SamplingParams

from ..schemas.openai_chat import (
    AllowedToolsChoiceWire,
    AssistantMessage,
    ChatCompletionRequest,
    ContentWire,
    JsonObjectFormatWire,
    JsonSchemaFormatWire,
    MessageWire,
    NamedToolWire,
    RefusalPartWire,
    StructuralTagFormatWire,
    TextPartWire,
    ToolCallWire,
    ToolChoiceWire,
    ToolMessage,
)
from .call_arguments import read_arguments
from .sampling import check_stream_options, to_sampling_params

# In the order of `StructuredOutputsWire`'s fields.
_FORMAT_KINDS: tuple[FormatKind, ...] = (
    *("json_schema", "json_object", "regex", "choice", "grammar", "structural_tag"),
)


def to_prompt(wire: ChatCompletionRequest) -> ChatPrompt:
    """The conversation.

    Raises:
        InvalidRequestError: A message cannot be taken, or fields contradict each other; names them.
    """
    if wire.continue_final_message and wire.add_generation_prompt:
        raise InvalidRequestError(
            "'add_generation_prompt' and 'continue_final_message' exclude each other.",
            param="continue_final_message",
        )
    return ChatPrompt(
        messages=to_messages(wire.messages),
        tools=_offered_tools(wire),
        reasoning_effort=wire.reasoning_effort,
        template_kwargs=wire.chat_template_kwargs or {},
        add_generation_prompt=not wire.continue_final_message
        and wire.add_generation_prompt is not False,
        continue_final_message=bool(wire.continue_final_message),
    )


def to_messages(messages: Sequence[MessageWire]) -> tuple[Message, ...]:
    """The turns.

    Raises:
        InvalidRequestError: One of them cannot be taken; names it.
    """
    turns = tuple(_to_message(wire, f"messages.{index}") for index, wire in enumerate(messages))
    check_tool_results(turns)
    return turns


def to_rules(wire: ChatCompletionRequest) -> ReplyRules:
    """What the answer must be made of.

    Raises:
        InvalidRequestError: Fields contradict each other; names one.
    """
    return ReplyRules(
        tool_choice=_to_tool_choice(wire),
        parallel_tool_calls=wire.parallel_tool_calls is not False,
        response_format=_to_response_format(wire),
        thinking_budget=wire.thinking_token_budget,
    )


def field_names(wire: ChatCompletionRequest) -> dict[str, str]:
    """What is called otherwise in this request; see `named_as`."""
    if wire.structured_outputs is None:
        return {}
    name = "json" if wire.structured_outputs.json_ is not None else "json_object"
    return {
        "response_format": f"structured_outputs.{name}",
        "response_format.json_schema.schema": "structured_outputs.json",
    }


def _offered_tools(wire: ChatCompletionRequest) -> tuple[ToolSpec, ...]:
    """Those that the model is told of: none if it may call none."""
    tools, choice = [tool.function for tool in wire.tools or ()], wire.tool_choice
    chosen = _chosen_names(choice)
    check_tool_names([tool.name for tool in tools], chosen)
    if choice == "none":
        return ()
    if isinstance(choice, AllowedToolsChoiceWire):
        tools = [tool for tool in tools if tool.name in chosen]
    return tuple(
        ToolSpec(
            name=tool.name,
            description=tool.description,
            parameters=tool.parameters or {"type": "object", "properties": {}},
            strict=bool(tool.strict),
        )
        for tool in tools
    )


def _chosen_names(choice: ToolChoiceWire | None) -> list[str]:
    if isinstance(choice, NamedToolWire):
        return [choice.function.name]
    if isinstance(choice, AllowedToolsChoiceWire):
        return [tool.function.name for tool in choice.allowed_tools.tools]
    return []


def _to_tool_choice(wire: ChatCompletionRequest) -> ToolChoice:
    choice = wire.tool_choice
    if isinstance(choice, NamedToolWire):
        return ToolChoice("named", choice.function.name)
    mode = choice.allowed_tools.mode if isinstance(choice, AllowedToolsChoiceWire) else choice
    if mode == "required" and not wire.tools:
        raise InvalidRequestError(
            "'tool_choice' is 'required', but there are no tools.", param="tool_choice"
        )
    return ToolChoice(mode or "auto") if wire.tools else ToolChoice("none")


def _to_response_format(wire: ChatCompletionRequest) -> ResponseFormat | None:
    given = wire.response_format
    form = None
    if isinstance(given, JsonObjectFormatWire):
        form = ResponseFormat("json_object")
    elif isinstance(given, JsonSchemaFormatWire):
        form = ResponseFormat("json_schema", given.json_schema.schema_)
    elif isinstance(given, StructuralTagFormatWire):
        form = ResponseFormat("structural_tag", given.model_dump(exclude_none=True))
    if wire.structured_outputs is None:
        return form
    set_fields = [
        (kind, value)
        for kind, value in zip(_FORMAT_KINDS, dict(wire.structured_outputs).values(), strict=True)
        if value is not None
    ]
    if form is not None or len(set_fields) != 1:
        raise InvalidRequestError(
            "Say the form of the answer once, with 'response_format' or with exactly one field of "
            "'structured_outputs'.",
            param="structured_outputs",
        )
    ((kind, value),) = set_fields
    return ResponseFormat(kind, None if kind == "json_object" else value)


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
    called = wire.function
    return ToolCall(call_id=wire.id, name=called.name, arguments=read_arguments(called.arguments))


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
