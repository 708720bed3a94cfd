"""One or many: what callers may give for a prompt or a conversation, told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import TypeAlias, TypeGuard, cast

from ..messages import Message, Prompt, TextPrompt, TokensPrompt
from .conversation import Conversation

TextOrTokens: TypeAlias = str | Sequence[int] | TextPrompt | TokensPrompt
"""A prompt that no chat template touches."""


def to_prompts(given: TextOrTokens | Sequence[TextOrTokens]) -> list[Prompt]:
    """All prompts, in order."""
    if isinstance(given, str | TextPrompt | TokensPrompt) or (
        len(given) > 0 and isinstance(given[0], Integral)
    ):
        return [to_prompt(cast("TextOrTokens", given))]
    return [to_prompt(prompt) for prompt in cast("Sequence[TextOrTokens]", given)]


def to_conversations(given: Conversation | Sequence[Conversation]) -> list[Conversation]:
    """All conversations, in order."""
    if isinstance(given, str) or is_conversation(given):
        return [cast("Conversation", given)]
    return list(cast("Sequence[Conversation]", given))


def is_conversation(given: object) -> TypeGuard[Sequence[Message | Mapping[str, object]]]:
    """Whether these are messages."""
    return (
        isinstance(given, Sequence) and len(given) > 0 and isinstance(given[0], Message | Mapping)
    )


def to_prompt(given: TextOrTokens) -> Prompt:
    """One prompt."""
    if isinstance(given, str):
        return TextPrompt(given)
    if isinstance(given, TextPrompt | TokensPrompt):
        return given
    return TokensPrompt(tuple(map(int, given)))
