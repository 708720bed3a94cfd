"""Tools of a Responses request: what the model is told of them, and how its calls are shown.

A model knows functions with unique names and JSON arguments, and nothing else. So

- a function of a namespace goes by both names: ``crm`` and ``find`` are ``crm__find``;
- a custom tool, whose input is plain text, is a function with the one argument ``input``;
- searching the web is OpenAI's to do. Clients list it without being asked, as something that the
  model may use, so it is left out, and the answer says so (`left_out`); a choice cannot name it.

Source: platform.openai.com/docs/guides/function-calling.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from pippin.core.errors import InvalidRequestError, UnsupportedFeatureError
from pippin.core.messages import ToolSpec
from pippin.core.reply_rules import ToolChoice, check_tool_names

from ..schemas.openai_responses import (
    AllowedTools,
    CustomToolWire,
    FunctionToolWire,
    GrammarFormat,
    InputFields,
    NamedTool,
    NamespaceToolWire,
    WebSearchToolWire,
)

_INPUT = "input"


@dataclass(frozen=True, slots=True)
class OfferedTool:
    """A tool that the model may know.

    Attributes:
        spec: What it knows; goes by another name if the tool is in a namespace.
    """

    wire: FunctionToolWire | CustomToolWire
    spec: ToolSpec
    namespace: str | None

    @property
    def item_type(self) -> str:
        """Of its calls."""
        return "custom_tool_call" if isinstance(self.wire, CustomToolWire) else "function_call"

    @property
    def item_fields(self) -> dict[str, str]:
        """What its calls say of it."""
        namespace = {} if self.namespace is None else {"namespace": self.namespace}
        return {"name": self.wire.name, **namespace}


def name_for_model(name: str, namespace: str | None) -> str:
    """What the model calls a tool by."""
    return name if namespace is None else f"{namespace}__{name}"


def all_tools(wire: InputFields) -> dict[str, OfferedTool]:
    """All that can be called, by the names that the model knows.

    Raises:
        InvalidRequestError: Two have the same name, or one cannot be taken.
    """
    tools = list(_flat(wire))
    check_tool_names([tool.spec.name for tool in tools], ())
    return {tool.spec.name: tool for tool in tools}


def offered_tools(wire: InputFields) -> tuple[ToolSpec, ...]:
    """The tools that the model is told of: none if it may call none.

    Raises:
        InvalidRequestError: One cannot be taken, or one is chosen that is not there.
    """
    tools, choice = all_tools(wire), wire.tool_choice
    chosen: tuple[NamedTool, ...] = ()
    if isinstance(choice, AllowedTools):
        chosen = choice.tools
    elif isinstance(choice, NamedTool):
        chosen = (choice,)
    known = [name for name in tools for it in chosen if _is_meant(it, tools[name], name)]
    check_tool_names(known if chosen else list(tools), [it.name for it in chosen])
    if choice == "none":
        return ()
    names = known if isinstance(choice, AllowedTools) else tools
    return tuple(tools[name].spec for name in names)


def to_tool_choice(wire: InputFields) -> ToolChoice:
    """Whether to call.

    Raises:
        InvalidRequestError: There is nothing to call.
    """
    tools, choice = all_tools(wire), wire.tool_choice
    if isinstance(choice, NamedTool):
        return ToolChoice("named", choice.name)
    mode = choice.mode if isinstance(choice, AllowedTools) else choice
    if mode == "required" and not tools:
        raise InvalidRequestError(
            "'tool_choice' is 'required', but there are no tools that this server can have called.",
            param="tool_choice",
        )
    return ToolChoice(mode or "auto") if tools else ToolChoice("none")


def left_out(wire: InputFields) -> list[str]:
    """What the caller has to know about tools that the model is not told of."""
    return [
        f"tools.{index} of type {tool.type} is left out: this server cannot run it"
        for index, tool in enumerate(wire.tools or ())
        if isinstance(tool, WebSearchToolWire)
    ]


def echo_tools(wire: InputFields) -> list[dict[str, Any]]:
    """The tools as a response repeats them, without those that are left out."""
    return [_echo(tool) for tool in wire.tools or () if not isinstance(tool, WebSearchToolWire)]


def to_arguments(text: str) -> dict[str, str]:
    """What the model writes to give a custom tool an input."""
    return {_INPUT: text}


def to_input(arguments: str) -> str:
    """The input of a custom tool in what a model wrote, whole or cut off, or else all of it."""
    try:
        value = from_json(arguments, allow_partial="trailing-strings")
    except ValueError:
        return arguments
    text = value.get(_INPUT) if isinstance(value, dict) and len(value) <= 1 else None
    return text if isinstance(text, str) else "" if value == {} else arguments


def _flat(wire: InputFields) -> Iterator[OfferedTool]:
    for index, tool in enumerate(wire.tools or ()):
        where = f"tools.{index}"
        if isinstance(tool, NamespaceToolWire):
            for number, inner in enumerate(tool.tools):
                yield _offered(inner, f"{where}.tools.{number}", tool)
        elif not isinstance(tool, WebSearchToolWire):
            yield _offered(tool, where, None)


def _offered(
    tool: FunctionToolWire | CustomToolWire, where: str, namespace: NamespaceToolWire | None
) -> OfferedTool:
    if isinstance(tool, CustomToolWire):
        parameters = _input_schema(tool, where)
        is_strict = isinstance(tool.format, GrammarFormat)
    else:
        parameters = tool.parameters or {"type": "object", "properties": {}}
        is_strict = bool(tool.strict)
    told, space = [tool.description], None
    if namespace is not None:
        told.append(f"{namespace.name}: {namespace.description}")
        space = namespace.name
    spec = ToolSpec(
        name=name_for_model(tool.name, space),
        description="\n".join(filter(None, told)) or None,
        parameters=parameters,
        strict=is_strict,
    )
    return OfferedTool(tool, spec, space)


def _input_schema(tool: CustomToolWire, where: str) -> dict[str, Any]:
    text = {"type": "string"}
    if isinstance(tool.format, GrammarFormat):
        if tool.format.syntax != "regex":
            raise UnsupportedFeatureError(
                f"'{where}.format.syntax' is '{tool.format.syntax}': this server holds the input "
                "of a custom tool to a 'regex' only.",
                param=f"{where}.format.syntax",
            )
        text["pattern"] = f"^(?:{tool.format.definition})$"
    return {
        "type": "object",
        "properties": {_INPUT: text},
        "required": [_INPUT],
        "additionalProperties": False,
    }


def _is_meant(chosen: NamedTool, tool: OfferedTool, name: str) -> bool:
    return (chosen.type, chosen.name) == (tool.wire.type, name)


def _echo(tool: FunctionToolWire | CustomToolWire | NamespaceToolWire) -> dict[str, Any]:
    if isinstance(tool, NamespaceToolWire):
        return {
            "type": "namespace",
            "name": tool.name,
            "description": tool.description,
            "tools": [_echo(inner) for inner in tool.tools],
        }
    shown = {"type": tool.type, "name": tool.name, "description": tool.description}
    if isinstance(tool, CustomToolWire):
        form = tool.format.model_dump() if tool.format else {"type": "text"}
        return {**shown, "format": form}
    return {**shown, "parameters": tool.parameters, "strict": bool(tool.strict)}
