"""What must hold between the tools of a request and its choice among them, in OpenAI's words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pippin.core.errors import InvalidRequestError


def check_tool_names(names: Sequence[str], chosen: Iterable[str]) -> None:
    """See that every tool has a name of its own, and that those chosen are among them.

    Raises:
        InvalidRequestError: It is not so; names the field.
    """
    if len(set(names)) < len(names):
        raise InvalidRequestError("Two tools have the same name.", param="tools")
    for name in chosen:
        if name not in names:
            raise InvalidRequestError(
                f"'tool_choice' names '{name}', which is not among the tools.", param="tool_choice"
            )
