"""Conversations, tools and formats as plain dictionaries, in the shape that OpenAI's API has.

What such a dictionary says and this engine cannot follow is refused by its name, as the server does
it. Keys whose value is ``None`` say nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict, TypeVar, get_args

from ..errors import InvalidRequestError, UnsupportedFeatureError
from ..messages import ChatPrompt, Message, TextPart, ToolCall, ToolSpec, check_tool_results
from ..reply_rules import FormatKind, ReplyRules, ResponseFormat, ToolChoice, check_tool_names

Conversation: TypeAlias = str | Sequence[Message | Mapping[str, Any]]
"""Messages in order; a text is one of the user's."""

_Kind = TypeVar("_Kind")
_ROLES = ("system", "developer", "user", "assistant", "tool")
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
_MODES: tuple[Literal["none", "auto", "required"], ...] = ("none", "auto", "required")
_MEDIA = ("image_url", "input_audio", "file", "video_url", "audio_url")
_NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}


class ChatOptions(TypedDict, total=False):
    """What a chat can be asked for, beside how tokens are drawn.

    Attributes:
        tools: What the model may call.
        tool_choice: ``auto``, ``none``, ``required``, or the one tool that must be called.
        parallel_tool_calls: Whether one answer may hold several calls; it may.
        response_format: What the text must be: a `ResponseFormat`, or OpenAI's shape of it.
        reasoning_effort: ``none`` to ``xhigh``, for models that know it.
        thinking_budget: Most tokens of reasoning.
        template_kwargs: Extra variables for the chat template.
        continue_final_message: Whether the answer goes on where the last message ends.
    """

    tools: Sequence[ToolSpec | Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | ToolChoice | None
    parallel_tool_calls: bool
    response_format: ResponseFormat | Mapping[str, Any] | None
    reasoning_effort: str | None
    thinking_budget: int | None
    template_kwargs: Mapping[str, Any] | None
    continue_final_message: bool


def to_chat(conversation: Conversation, options: ChatOptions) -> tuple[ChatPrompt, ReplyRules]:
    """The prompt, and what its answer must be made of.

    Raises:
        InvalidRequestError: A message or an option cannot be taken; names it.
    """
    if unknown := options.keys() - ChatOptions.__annotations__.keys():
        raise TypeError(f"there is no chat option {min(unknown)!r}")
    tools = tuple(
        _to_tool(tool, f"tools.{index}") for index, tool in enumerate(options.get("tools") or ())
    )
    choice = _to_choice(options.get("tool_choice"), tools)
    effort, budget = options.get("reasoning_effort"), options.get("thinking_budget")
    if effort is not None and effort not in _EFFORTS:
        raise _refusal("reasoning_effort", f"must be one of {', '.join(_EFFORTS)}")
    if budget is not None and budget < 0:
        raise _refusal("thinking_budget", "must be at least 0")
    continues = options.get("continue_final_message", False)
    prompt = ChatPrompt(
        messages=to_messages(conversation),
        # A model that may call none is told of none.
        tools=() if choice.mode == "none" else tools,
        reasoning_effort=effort,
        template_kwargs=options.get("template_kwargs") or {},
        add_generation_prompt=not continues,
        continue_final_message=continues,
    )
    rules = ReplyRules(
        tool_choice=choice,
        parallel_tool_calls=options.get("parallel_tool_calls", True),
        response_format=to_format(options.get("response_format")),
        thinking_budget=budget,
    )
    return prompt, rules


def to_messages(conversation: Conversation) -> tuple[Message, ...]:
    """The turns.

    Raises:
        InvalidRequestError: One of them cannot be taken; names it.
    """
    if isinstance(conversation, str):
        return (Message(role="user", content=(TextPart(conversation),)),)
    messages = tuple(
        given if isinstance(given, Message) else _to_message(given, f"messages.{index}")
        for index, given in enumerate(conversation)
    )
    if not messages:
        raise InvalidRequestError("The conversation holds no messages.", param="messages")
    check_tool_results(messages)
    return messages


def to_format(given: ResponseFormat | Mapping[str, Any] | None) -> ResponseFormat | None:
    """What the text must be; ``None`` for anything.

    Raises:
        InvalidRequestError: It has no shape that is known.
    """
    if given is None or isinstance(given, ResponseFormat):
        return given
    kind = _take(given, "type", str, "response_format")
    if kind == "text":
        return None
    if kind == "json_object":
        return ResponseFormat("json_object")
    if kind == "json_schema":
        named = _take(given, "json_schema", dict, "response_format")
        schema = _take(named, "schema", dict, "response_format.json_schema")
        return ResponseFormat("json_schema", schema)
    others = ", ".join(get_args(FormatKind))
    raise _refusal(
        "response_format.type",
        f"is '{kind}', not text, json_object or json_schema; ResponseFormat has {others}",
    )


def _to_message(given: Mapping[str, Any], where: str) -> Message:
    role = _take(given, "role", str, where)
    if role not in _ROLES:
        raise _refusal(f"{where}.role", f"is '{role}', not one of {', '.join(_ROLES)}")
    known = {"role", "content", "name"}
    if role == "assistant":
        known |= {"tool_calls", "reasoning", "reasoning_content", "refusal"}
    elif role == "tool":
        known |= {"tool_call_id"}
    _refuse_others(given, known, where)
    content, calls = given.get("content"), given.get("tool_calls") or ()
    if content is None:
        content = given.get("refusal")
    if content is None and not calls:
        raise _refusal(where, "has no content")
    reasoning = given.get("reasoning")
    return Message(
        role=role,
        content=_to_parts(content, f"{where}.content"),
        name=given.get("name"),
        tool_calls=tuple(
            _to_call(call, f"{where}.tool_calls.{index}") for index, call in enumerate(calls)
        ),
        tool_call_id=_take(given, "tool_call_id", str, where) if role == "tool" else None,
        reasoning=given.get("reasoning_content") if reasoning is None else reasoning,
    )


def _to_parts(content: Any, where: str) -> tuple[TextPart, ...]:
    if content is None:
        return ()
    if isinstance(content, str):
        return (TextPart(content),)
    if not isinstance(content, Sequence):
        raise _refusal(where, "must be a text or a list of parts")
    return tuple(_to_part(part, f"{where}.{index}") for index, part in enumerate(content))


def _to_part(given: TextPart | Mapping[str, Any], where: str) -> TextPart:
    if isinstance(given, TextPart):
        return given
    kind = _take(given, "type", str, where)
    if kind in _MEDIA:
        raise UnsupportedFeatureError(
            f"'{where}' is of type '{kind}', which this model cannot take.", param=f"{where}.type"
        )
    if kind not in ("text", "refusal"):
        raise _refusal(f"{where}.type", f"is '{kind}', which is not known")
    _refuse_others(given, {"type", kind}, where)
    return TextPart(_take(given, kind, str, where))


def _to_call(given: ToolCall | Mapping[str, Any], where: str) -> ToolCall:
    if isinstance(given, ToolCall):
        return given
    function = _take(given, "function", dict, where)
    call_id = _take(given, "id", str, where)
    name = _take(function, "name", str, f"{where}.function")
    arguments = function.get("arguments")
    if isinstance(arguments, Mapping):
        return ToolCall(call_id=call_id, name=name, arguments=arguments)
    return ToolCall.of_text(call_id, name, _take(function, "arguments", str, f"{where}.function"))


def _to_tool(given: ToolSpec | Mapping[str, Any], where: str) -> ToolSpec:
    if isinstance(given, ToolSpec):
        return given
    kind = _take(given, "type", str, where)
    if kind != "function":
        raise UnsupportedFeatureError(
            f"'{where}' is of type '{kind}'; only functions can be called.", param=f"{where}.type"
        )
    function = _take(given, "function", dict, where)
    where = f"{where}.function"
    _refuse_others(function, {"name", "description", "parameters", "strict"}, where)
    return ToolSpec(
        name=_take(function, "name", str, where),
        description=function.get("description"),
        parameters=function.get("parameters") or _NO_PARAMETERS,
        strict=bool(function.get("strict")),
    )


def _to_choice(
    given: str | Mapping[str, Any] | ToolChoice | None, tools: Sequence[ToolSpec]
) -> ToolChoice:
    if isinstance(given, Mapping):
        function = _take(given, "function", dict, "tool_choice")
        given = ToolChoice("named", _take(function, "name", str, "tool_choice.function"))
    elif not isinstance(given, ToolChoice):
        mode = next((mode for mode in _MODES if mode == (given or "auto")), None)
        if mode is None:
            raise _refusal("tool_choice", f"is '{given}', not {', '.join(_MODES)} or a tool")
        given = ToolChoice(mode)
    check_tool_names([tool.name for tool in tools], [given.name] if given.name is not None else [])
    if given.mode == "required" and not tools:
        raise _refusal("tool_choice", "is 'required', but there are no tools")
    return given if tools else ToolChoice("none")


def _take(given: Mapping[str, Any], name: str, kind: type[_Kind], where: str) -> _Kind:
    """A field that must be there."""
    if not isinstance(given, Mapping):
        raise _refusal(where, "must be a dictionary")
    value = given.get(name)
    if not isinstance(value, kind):
        what = "a text" if kind is str else "a dictionary"
        raise _refusal(f"{where}.{name}", "is missing" if value is None else f"must be {what}")
    return value


def _refuse_others(given: Mapping[str, Any], known: set[str], where: str) -> None:
    for name, value in given.items():
        if name not in known and value is not None:
            raise UnsupportedFeatureError(
                f"'{where}.{name}' is not known.", param=f"{where}.{name}"
            )


def _refusal(param: str, reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"'{param}' {reason}.", param=param)
