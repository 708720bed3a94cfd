"""What a caller gives, before tokenizing: provider-neutral prompts.

Adapters build these from their wire formats; `engine.prompt_builder` turns them into token ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from .errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class TextPart:
    """Plain text inside a message."""

    text: str


ContentPart: TypeAlias = TextPart  # images, audio and video join this union with their issue


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that an assistant message of the history made.

    Attributes:
        arguments: Decoded JSON object, the form chat templates iterate over; the text as it was
            written if it is none, as of a call that the token limit cut off.
    """

    call_id: str
    name: str
    arguments: Mapping[str, Any] | str

    @classmethod
    def of_text(cls, call_id: str, name: str, arguments: str) -> ToolCall:
        """A call whose arguments are as a model writes them."""
        try:
            decoded = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            decoded = None
        return cls(
            call_id=call_id,
            name=name,
            arguments=decoded if isinstance(decoded, dict) else arguments,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: ``system``, ``developer``, ``user``, ``assistant`` or ``tool``.
        content: Parts in order; empty for an assistant turn that only calls tools.
        name: Who speaks, where the API lets the caller say so.
        tool_calls: Calls that this assistant turn made.
        tool_call_id: The call that a ``tool`` message answers.
        reasoning: What the assistant thought before this turn, if the caller kept it.
    """

    role: str
    content: Sequence[ContentPart] = ()
    name: str | None = None
    tool_calls: Sequence[ToolCall] = ()
    tool_call_id: str | None = None
    reasoning: str | None = None

    @property
    def text(self) -> str:
        """All text parts, joined."""
        return "".join(part.text for part in self.content)


def check_tool_results(messages: Sequence[Message]) -> None:
    """See that each result answers a call that was made before.

    Raises:
        InvalidRequestError: One does not; names it, in the chat API's words.
    """
    call_ids: set[str] = set()
    for index, message in enumerate(messages):
        call_ids.update(call.call_id for call in message.tool_calls)
        if message.tool_call_id is not None and message.tool_call_id not in call_ids:
            raise InvalidRequestError(
                f"Messages with role 'tool' must be a response to a preceding message with "
                f"'tool_calls': none before 'messages.{index}' has the id "
                f"'{message.tool_call_id}'.",
                param=f"messages.{index}.tool_call_id",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """A tool that the model may call.

    Attributes:
        parameters: JSON schema of the arguments' object.
        strict: Whether arguments must follow the schema.
    """

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPrompt:
    """A conversation to be rendered with the model's chat template.

    Attributes:
        tools: What the model may call; the template tells it.
        reasoning_effort: ``none`` to ``xhigh``, for templates that know it; ``None`` says nothing.
        template_kwargs: Extra variables for the template (``chat_template_kwargs`` on the wire).
        add_generation_prompt: Whether the template opens a new assistant turn.
        continue_final_message: Whether the answer goes on where the last message ends.
    """

    messages: Sequence[Message]
    tools: Sequence[ToolSpec] = ()
    reasoning_effort: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Raw text, tokenized with the special tokens the model's tokenizer adds by itself."""

    text: str
    add_special_tokens: bool = True


@dataclass(frozen=True, slots=True)
class TokensPrompt:
    """Token ids, taken as they are."""

    token_ids: Sequence[int]


Prompt: TypeAlias = ChatPrompt | TextPrompt | TokensPrompt
