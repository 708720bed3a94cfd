"""Arguments that a dialect writes without quotes: what a tool's schema says they are."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

from .values import escape

_LONGEST_CHAIN = 32
"""Most references that are followed to get to one schema."""
_MAX_LITERAL = 100_000
"""Longest text that is tried as a Python literal, in characters."""


def resolve(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema without ``const``, and without ``$ref`` where that leads to another.

    Args:
        root: The schema that references are looked up in.
    """
    for _ in range(_LONGEST_CHAIN):
        target: Any = root if "$ref" in schema else None
        for key in str(schema.get("$ref")).split("/")[1:]:
            known = isinstance(target, Mapping)
            target = target.get(key.replace("~1", "/").replace("~0", "~")) if known else None
        if not isinstance(target, Mapping) or target is root:
            break
        schema = {**target, **{key: schema[key] for key in schema if key != "$ref"}}
    if "const" not in schema:
        return schema
    return {**{key: schema[key] for key in schema if key != "const"}, "enum": [schema["const"]]}


def property_schema(
    schema: Mapping[str, Any] | None, name: str, root: Mapping[str, Any] | None = None
) -> Mapping[str, Any] | None:
    """The schema of one member, resolved, if there is one.

    Args:
        root: See `resolve`; by default the schema itself.
    """
    root = root or schema or {}
    properties = resolve(schema or {}, root).get("properties")
    found = properties.get(name) if isinstance(properties, Mapping) else None
    return resolve(found, root) if isinstance(found, Mapping) else None


def json_types(schema: Mapping[str, Any]) -> set[str]:
    """The types that a schema lets through, as far as it names them."""
    kind = schema.get("type")
    if isinstance(kind, str):
        return {kind}
    if isinstance(kind, list):
        return {entry for entry in kind if isinstance(entry, str)}
    choices = schema.get("enum")
    if isinstance(choices, list) and choices and all(isinstance(each, str) for each in choices):
        return {"string"}
    found: set[str] = set()
    for key in ("anyOf", "oneOf"):
        for option in schema.get(key) or ():
            found |= json_types(option) if isinstance(option, Mapping) else set()
    return found


def is_text(schema: Mapping[str, Any] | None) -> bool:
    """Whether an argument is always a string, so that its text can be passed on as it comes."""
    return schema is not None and json_types(schema) == {"string"}


def to_json(text: str, schema: Mapping[str, Any] | None) -> str:
    """An argument's text as JSON: what its schema allows, else what it looks like, else a string.

    Text that is JSON already is kept as it is.
    """
    types = json_types(schema) if schema is not None else set()
    bare = text.strip()
    if types == {"string"}:
        return f'"{escape(text)}"'
    encoded = _as_json(bare)
    if encoded is not None and (not types or "string" not in types or _type(encoded) in types):
        return encoded
    return f'"{escape(text)}"'


def _as_json(text: str) -> str | None:
    try:
        json.loads(text, parse_constant=_refuse)
        return text
    except (ValueError, RecursionError):
        pass
    try:
        # Models that saw much Python write True, None and single quotes.
        value = ast.literal_eval(text) if len(text) <= _MAX_LITERAL else None
        return None if value is None and text != "None" else json.dumps(value, allow_nan=False)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return _WORDS.get(text.lower())


_WORDS = {"true": "true", "false": "false", "null": "null"}


def _type(encoded: str) -> str:
    kinds = {"{": "object", "[": "array", '"': "string", "t": "boolean", "f": "boolean"}
    kind = kinds.get(encoded[0], "null" if encoded == "null" else "number")
    return "integer" if kind == "number" and encoded.lstrip("-").isdigit() else kind


def _refuse(constant: str) -> None:
    raise ValueError(constant)
