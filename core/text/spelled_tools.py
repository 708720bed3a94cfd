"""Tools for models whose chat template has no place for them: told and recalled in plain text.

The form is the one that most open models were trained on: a JSON object between
``<tool_call>`` tags, and results between ``<tool_response>`` tags.
"""

from __future__ import annotations

import json
from dataclasses import replace

from ..messages import ChatPrompt, Message, TextPart, ToolCall, ToolSpec

_INTRODUCTION = """You can call these functions. Each line describes one as JSON:
<tools>
{tools}
</tools>

To call one, write its name and an object of arguments, and nothing after it:
<tool_call>
{{"name": "function's name", "arguments": {{"argument's name": "value"}}}}
</tool_call>"""


def describe_tool(tool: ToolSpec) -> dict[str, object]:
    """The form in which templates take tools.

    Source: huggingface.co/docs/transformers, "Tool use".
    """
    function: dict[str, object] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": {**function, "parameters": dict(tool.parameters)}}


def spell_out_tools(prompt: ChatPrompt) -> ChatPrompt:
    """The same conversation without tools, calls and results but in its texts."""
    messages = [_spell_out(message) for message in prompt.messages]
    if prompt.tools:
        lines = [json.dumps(describe_tool(tool), ensure_ascii=False) for tool in prompt.tools]
        text = _INTRODUCTION.format(tools="\n".join(lines))
        if messages and messages[0].role in ("system", "developer"):
            first = messages.pop(0)
            parts = (*first.content, TextPart(f"\n\n{text}"))
            messages.insert(0, replace(first, content=parts))
        else:
            messages.insert(0, Message(role="system", content=(TextPart(text),)))
    return replace(prompt, tools=(), messages=tuple(messages))


def _spell_out(message: Message) -> Message:
    if message.role == "tool":
        text = f"<tool_response>\n{message.text}\n</tool_response>"
        return Message(role="user", content=(TextPart(text),))
    if not message.tool_calls:
        return message
    calls = "\n".join(_spell_call(call) for call in message.tool_calls)
    text = f"{message.text}\n{calls}" if message.text else calls
    return replace(message, content=(TextPart(text),), tool_calls=())


def _spell_call(call: ToolCall) -> str:
    body = json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"
