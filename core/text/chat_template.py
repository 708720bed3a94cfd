"""A conversation to prompt text, through the model's own chat template.

The template runs in transformers' sandboxed jinja. It writes its special tokens itself, so the text
is to be encoded with ``add_special_tokens=False``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import InvalidRequestError
from ..messages import ChatPrompt, Message, TextPart, ToolCall
from .spelled_tools import describe_tool, spell_out_tools
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
    if not tokenizer.chat_template_knows_tools:
        prompt = spell_out_tools(prompt)
    if tokenizer.chat_template_moves_rules:
        prompt = replace(prompt, messages=_with_rules_in_place(prompt.messages))
    refusals: list[Exception] = []
    for messages in _readings(prompt.messages):
        for form in _FORMS:
            try:
                return _render(tokenizer, form(messages), prompt, form is _with_json_arguments)
            except Exception as error:  # a template is a program and can fail in any way
                refusals.append(error)
    # The first refusal is the one that speaks of the usual form.
    reason = " ".join(str(refusals[0]).split()) or type(refusals[0]).__name__
    raise InvalidRequestError(
        f"The model's chat template refused the conversation: {reason}", param="messages"
    ) from refusals[0]


def _render(
    tokenizer: Tokenizer, messages: Sequence[Message], prompt: ChatPrompt, arguments_as_json: bool
) -> str:
    tool_names: dict[str, str] = {}
    turns: list[dict[str, Any]] = []
    for message in messages:
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
    variables = _effort_variables(tokenizer, prompt.reasoning_effort) | dict(prompt.template_kwargs)
    if prompt.tools:
        variables["tools"] = [describe_tool(tool) for tool in prompt.tools]
    if prompt.continue_final_message:
        variables["continue_final_message"] = True
    text = tokenizer.apply_chat_template(
        turns, add_generation_prompt=prompt.add_generation_prompt, **variables
    )
    for written in _unread_arguments(messages):
        if written not in text and json.dumps(written, ensure_ascii=False)[1:-1] not in text:
            raise ValueError("it does not show arguments that are no object")
    return text


def _effort_variables(tokenizer: Tokenizer, effort: str | None) -> dict[str, Any]:
    """What templates call how hard to think. One that knows nothing of it gets nothing."""
    if effort is None:
        return {}
    thinks = effort not in ("none", "minimal")
    level = {"none": "low", "minimal": "low", "xhigh": "high"}.get(effort, effort)
    variables = {"reasoning_effort": level, "enable_thinking": thinks, "thinking": thinks}
    return {name: value for name, value in variables.items() if tokenizer.chat_template_knows(name)}


def _unread_arguments(messages: Sequence[Message]) -> list[str]:
    calls = [call for message in messages for call in message.tool_calls]
    return [call.arguments for call in calls if isinstance(call.arguments, str)]


def _readings(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """What is to be tried with arguments that are no object, as of a call that broke off.

    OpenAI takes any text, and agents answer such a call by saying what is wrong with it. The model
    is best shown what it wrote, and then its own tokens may still be cached. A template that takes
    objects only is given one that holds the text.
    """
    yield messages
    if _unread_arguments(messages):
        yield [
            replace(message, tool_calls=tuple(map(_with_object, message.tool_calls)))
            for message in messages
        ]


def _with_object(call: ToolCall) -> ToolCall:
    if not isinstance(call.arguments, str):
        return call
    return replace(call, arguments={"arguments": call.arguments})


def _as_given(messages: Sequence[Message]) -> Sequence[Message]:
    return messages


def _with_json_arguments(messages: Sequence[Message]) -> Sequence[Message]:
    """Most templates want the arguments of tool calls as an object; a few join them to a string."""
    if not any(message.tool_calls for message in messages):
        raise ValueError("no calls")
    return messages


def _with_one_system_turn(messages: Sequence[Message]) -> Sequence[Message]:
    """Rules that come in the middle are told by the user, where they stand."""
    first, *rest = messages
    return _joined([first, *(_as_user(message) for message in rest)])


def _with_rules_in_place(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Rules at the head stay, later ones are told by the user.

    At the head, they would make the whole conversation new to the prefix cache.
    """
    turns = (i for i, it in enumerate(messages) if it.role not in ("system", "developer"))
    first = next(turns, len(messages))
    return (*messages[:first], *map(_as_user, messages[first:]))


def _without_system_turns(messages: Sequence[Message]) -> Sequence[Message]:
    """The user tells all rules."""
    return _joined([_as_user(message) for message in messages])


# From the conversation as it is to what the strictest templates take.
_FORMS = (_as_given, _with_json_arguments, _with_one_system_turn, _without_system_turns)


def _as_user(message: Message) -> Message:
    if message.role not in ("system", "developer"):
        return message
    return Message(role="user", content=message.content)


def _joined(messages: Sequence[Message]) -> list[Message]:
    """Neighbouring turns of the user, or of the assistant without calls, as one."""
    out: list[Message] = []
    for message in messages:
        last = out[-1] if out else None
        if (
            last is not None
            and last.role == message.role
            and message.role in ("user", "assistant")
            and not (last.tool_calls or message.tool_calls)
        ):
            parts = (*last.content, TextPart("\n\n"), *message.content)
            out[-1] = replace(last, content=parts, reasoning=message.reasoning or last.reasoning)
        else:
            out.append(message)
    return out


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
                "arguments": _to_arguments(call.arguments, as_json=arguments_as_json),
            },
        }
        for call in calls
    ]


def _to_arguments(arguments: Mapping[str, Any] | str, *, as_json: bool) -> dict[str, Any] | str:
    if isinstance(arguments, str):
        return arguments
    return json.dumps(arguments, ensure_ascii=False) if as_json else dict(arguments)
