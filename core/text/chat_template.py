"""A conversation to prompt text, through the model's own chat template.

The template runs in transformers' sandboxed jinja. It writes its special tokens itself, so the text
is to be encoded with ``add_special_tokens=False``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..errors import InvalidRequestError
from ..messages import ChatPrompt, Message, ToolCall
from .tokenizer import Tokenizer

# Variables that pippin sets, and parameters of transformers' renderer that are no variables.
RESERVED_TEMPLATE_KWARGS = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "conversations",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "self",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)


def render_chat(tokenizer: Tokenizer, prompt: ChatPrompt) -> str:
    """Render the conversation with the model's template.

    Raises:
        InvalidRequestError: The model has no template, a template variable has a reserved name,
            there are no messages, or the template refuses them.
    """
    if not tokenizer.has_chat_template:
        raise InvalidRequestError(
            "This model has no chat template, so it cannot hold a conversation; "
            "use /v1/completions with a plain prompt instead.",
            param="messages",
        )
    if not prompt.messages:
        raise InvalidRequestError("messages is empty.", param="messages")
    for name in prompt.template_kwargs:
        if name in RESERVED_TEMPLATE_KWARGS:
            raise InvalidRequestError(
                f"chat_template_kwargs may not set '{name}': the server sets it.",
                param="chat_template_kwargs",
            )
    try:
        return _render(tokenizer, prompt, arguments_as_json=False)
    except Exception as error:  # a template is a program and can fail in any way
        refusal = error
    # Most templates want the arguments of tool calls as an object. A few join them to a string.
    if any(message.tool_calls for message in prompt.messages):
        try:
            return _render(tokenizer, prompt, arguments_as_json=True)
        except Exception:
            pass  # the first refusal is the one that speaks of the usual form
    reason = " ".join(str(refusal).split()) or type(refusal).__name__
    raise InvalidRequestError(
        f"The model's chat template refused the conversation: {reason}", param="messages"
    ) from refusal


def _render(tokenizer: Tokenizer, prompt: ChatPrompt, *, arguments_as_json: bool) -> str:
    tool_names: dict[str, str] = {}
    turns: list[dict[str, Any]] = []
    for message in prompt.messages:
        turn = _to_turn(tokenizer, message)
        if message.tool_calls:
            turn["tool_calls"] = _to_calls(message.tool_calls, arguments_as_json=arguments_as_json)
            tool_names.update((call.call_id, call.name) for call in message.tool_calls)
        if message.tool_call_id is not None:
            turn["tool_call_id"] = message.tool_call_id
            # Some templates head a result with the tool's name, which few callers repeat.
            name = tool_names.get(message.tool_call_id)
            if name is not None:
                turn.setdefault("name", name)
        turns.append(turn)
    return tokenizer.apply_chat_template(
        turns, add_generation_prompt=prompt.add_generation_prompt, **prompt.template_kwargs
    )


def _to_turn(tokenizer: Tokenizer, message: Message) -> dict[str, Any]:
    role = message.role
    if role == "developer" and not tokenizer.chat_template_knows_developer:
        role = "system"
    # An assistant turn that only calls tools has the content "": most templates test it for truth,
    # several join it to other text, and some fail when the key is not there.
    content: str | list[dict[str, str]] = message.text
    if tokenizer.chat_template_wants_parts:
        content = [{"type": "text", "text": part.text} for part in message.content]
    turn: dict[str, Any] = {"role": role, "content": content}
    if message.name is not None:
        turn["name"] = message.name
    if message.reasoning is not None:
        turn["reasoning_content"] = message.reasoning
    return turn


def _to_calls(calls: Sequence[ToolCall], *, arguments_as_json: bool) -> list[dict[str, Any]]:
    """The form that transformers' documentation on tool use prescribes for templates."""
    return [
        {
            "type": "function",
            "id": call.call_id,
            "function": {
                "name": call.name,
                "arguments": json.dumps(call.arguments, ensure_ascii=False)
                if arguments_as_json
                else dict(call.arguments),
            },
        }
        for call in calls
    ]
