"""Which of a Messages request's tools the model is told of, and whether it has to call one.

A tool with ``defer_loading`` stays hidden until something in the conversation loads it: a
``tool_reference`` in the result of a search that the caller runs, or a ``tool_addition``. Chat
templates have one list of tools, at the head, so a loaded tool joins that list.

Source: platform.claude.com/docs/en/agents-and-tools/tool-use/tool-search-tool.
"""

from __future__ import annotations

from pippin.core.errors import InvalidRequestError, UnsupportedFeatureError
from pippin.core.messages import ToolSpec
from pippin.core.reply_rules import ToolChoice

from ..schemas.anthropic_messages import (
    NamedToolChoiceWire,
    PromptFields,
    ServerToolWire,
    ToolChangeBlockWire,
    ToolReferenceBlockWire,
    ToolResultBlockWire,
    ToolWire,
)


def to_tools(wire: PromptFields) -> tuple[ToolSpec, ...]:
    """The tools, in the order given.

    Raises:
        InvalidRequestError: One cannot be taken, or the conversation loads one that is not there.
    """
    tools = _tools_by_name(wire)
    offered = {name for name, tool in tools.items() if not tool.defer_loading}
    if tools and not offered:
        raise InvalidRequestError(
            "All tools have 'defer_loading' set. At least one tool must not.", param="tools"
        )
    for where, name, is_removal in _changes(wire):
        if name not in tools:
            raise InvalidRequestError(
                f"'{where}' names the tool '{name}', which 'tools' does not hold.", param=where
            )
        (offered.discard if is_removal else offered.add)(name)
    if isinstance(wire.tool_choice, NamedToolChoiceWire):
        offered.add(wire.tool_choice.name)
    return tuple(
        ToolSpec(
            name=name,
            description=tool.description,
            parameters=tool.input_schema,
            strict=bool(tool.strict),
        )
        for name, tool in tools.items()
        if name in offered
    )


def to_tool_choice(wire: PromptFields) -> ToolChoice:
    """Whether to call.

    Raises:
        InvalidRequestError: There is nothing to call.
    """
    choice = wire.tool_choice
    if choice is None or choice.type == "none":
        return ToolChoice("auto" if choice is None else "none")
    names = {tool.name for tool in to_tools(wire)}
    if isinstance(choice, NamedToolChoiceWire):
        if choice.name not in names:
            raise InvalidRequestError(
                f"'tool_choice' names '{choice.name}', which 'tools' does not hold.",
                param="tool_choice.name",
            )
        return ToolChoice("named", choice.name)
    if not names:
        raise InvalidRequestError("'tool_choice' goes with 'tools' only.", param="tool_choice")
    return ToolChoice("required" if choice.type == "any" else "auto")


def _tools_by_name(wire: PromptFields) -> dict[str, ToolWire]:
    tools = dict[str, ToolWire]()
    for index, tool in enumerate(wire.tools or ()):
        if isinstance(tool, ServerToolWire):
            raise UnsupportedFeatureError(
                f"'tools.{index}' is of type '{tool.type}'; this server takes tools that the "
                "caller runs and describes by an 'input_schema' only.",
                param=f"tools.{index}.type",
            )
        if tool.name in tools:
            raise InvalidRequestError(
                f"Two tools have the name '{tool.name}'.", param=f"tools.{index}.name"
            )
        tools[tool.name] = tool
    return tools


def _changes(wire: PromptFields) -> list[tuple[str, str, bool]]:
    """Where tools are loaded and taken away, in order: the field, the tool, whether away."""
    changes = []
    for index, message in enumerate(wire.messages):
        for number, block in enumerate(message.content):
            where = f"messages.{index}.content.{number}"
            if isinstance(block, ToolChangeBlockWire):
                is_removal = block.type == "tool_removal"
                changes.append((f"{where}.tool.name", block.tool.name, is_removal))
            elif isinstance(block, ToolResultBlockWire):
                changes += [
                    (f"{where}.content.{position}.tool_name", part.tool_name, False)
                    for position, part in enumerate(block.content or ())
                    if isinstance(part, ToolReferenceBlockWire)
                ]
    return changes
