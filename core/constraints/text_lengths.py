"""How long the texts of a grammar may be, if they are held to a length at all.

To count characters takes the lexer states of its own for each of them, a dozen and more, which all
answers under one grammar share and which stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MOST_CHARACTERS = 10_000
"""Sum of a grammar's different lengths. It takes up to 15 states a character, and `_LIMITS` of the
compiler leaves room for patterns beside that."""

_COUNTS = re.compile(r"\{[0-9]*,?([0-9]+)\}")
_EXAMPLES = ("const", "enum", "default", "examples")


class TextLengths:
    """Adds up the lengths in one grammar; what several texts share counts once."""

    def __init__(self) -> None:
        self._known: set[tuple[str, int]] = set()

    def check(self, schema: Mapping[str, Any], owner: str = "") -> None:
        """Count a schema's lengths.

        Raises:
            ValueError: That is too much; names the place.
        """
        for path, length in _lengths(schema, "#"):
            self._known.add(length)
            if sum(count for _, count in self._known) > MOST_CHARACTERS:
                raise ValueError(
                    f"{path}{owner} asks for texts of {length[1]} characters to be counted; "
                    f"{MOST_CHARACTERS} for all lengths together is the most"
                )

    def fit(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        """A schema that may be followed loosely, without its lengths if they are too much."""
        known = set(self._known)
        try:
            self.check(schema)
            return schema
        except ValueError:
            self._known = known
            loose: Mapping[str, Any] = _without_lengths(schema)
            return loose


def _lengths(schema: object, path: str) -> Iterator[tuple[str, tuple[str, int]]]:
    if isinstance(schema, Mapping):
        for key, value in schema.items():
            place = f"{path}/{key}"
            if key in ("minLength", "maxLength") and isinstance(value, int):
                yield place, (key, value)
            elif key == "pattern" and isinstance(value, str):
                yield from ((place, (value, int(count))) for count in _COUNTS.findall(value))
            elif key not in _EXAMPLES:
                yield from _lengths(value, place)
    elif isinstance(schema, Sequence) and not isinstance(schema, str):
        for index, each in enumerate(schema):
            yield from _lengths(each, f"{path}/{index}")


def _without_lengths(schema: Any) -> Any:
    if isinstance(schema, Mapping):
        return {
            key: value if key in _EXAMPLES else _without_lengths(value)
            for key, value in schema.items()
            if isinstance(value, Mapping) or key not in ("minLength", "maxLength", "pattern")
        }
    if isinstance(schema, Sequence) and not isinstance(schema, str):
        return [_without_lengths(each) for each in schema]
    return schema
