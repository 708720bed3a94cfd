"""What a caller wants an answer to be made of, beside how it is sampled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from .errors import InvalidRequestError

FormatKind: TypeAlias = Literal[
    "json_object", "json_schema", "regex", "choice", "grammar", "structural_tag"
]


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether the model must call.

    Attributes:
        mode: ``named`` is ``required`` of the tool `name`.
    """

    mode: Literal["none", "auto", "required", "named"] = "auto"
    name: str | None = None


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """What the content must be.

    Attributes:
        value: The schema, pattern, list of choices, Lark grammar or structural tag; ``None`` with
            ``json_object``.
    """

    kind: FormatKind
    value: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyRules:
    """All of it.

    Attributes:
        parallel_tool_calls: Whether one answer may hold several calls.
        response_format: ``None`` for free text.
        thinking_budget: Most tokens of reasoning; ``None`` for any number.
    """

    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    thinking_budget: int | None = None


def check_tool_names(names: Sequence[str], chosen: Iterable[str]) -> None:
    """See that every tool has a name of its own, and that those chosen are among them.

    Raises:
        InvalidRequestError: It is not so; names the field, in the chat API's words.
    """
    if len(set(names)) < len(names):
        raise InvalidRequestError("Two tools have the same name.", param="tools")
    for name in chosen:
        if name not in names:
            raise InvalidRequestError(
                f"'tool_choice' names '{name}', which is not among the tools.", param="tool_choice"
            )
