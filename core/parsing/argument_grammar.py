"""Arguments that a dialect writes one by one and without quotes: what holds them to their schema.

Whatever is let through here, the dialect's reader (`argument_types.to_json`) takes for a value that
the schema allows. Where that cannot be, there is still JSON, which readers take, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Set
from typing import Any

from ..constraints.tool_grammar import Json, Piece, TextUntil
from ..messages import ToolSpec
from .argument_types import is_text, json_types, resolve, to_json

_ALTERNATIVES = ("$ref", "anyOf", "oneOf", "allOf", "not", "if")
_OF_WHOLES = ("enum", "minProperties", "maxProperties", "patternProperties", "propertyNames")
_DEPENDENCIES = ("dependentRequired", "dependentSchemas", "dependencies")
_NOTES = {"type", "title", "description", "default", "examples", "deprecated", "$comment", "format"}
_OTHER_REFERENCE = re.compile(r'"\$ref": "#(?!/(?:\$defs|definitions)/)')


def object_schema(tool: ToolSpec) -> Mapping[str, Any]:
    """The schema of all arguments, of which each is then held to its own.

    Raises:
        ValueError: The tool is strict, and not everything in its schema can be held to.
    """
    schema = resolve(tool.parameters, tool.parameters)
    if not tool.strict:
        return schema
    _refuse(schema, (*_ALTERNATIVES, *_OF_WHOLES, *_DEPENDENCIES), "parameters")
    if missing := set(schema.get("required") or ()) - set(schema.get("properties") or ()):
        raise ValueError(f"'required' names {min(missing)!r}, which is not among the 'properties'")
    if schema.get("additionalProperties") not in (None, True, False):
        raise ValueError("'additionalProperties' that is a schema cannot be enforced")
    if refers_elsewhere(tool.parameters):
        raise ValueError("'$ref' can only be followed into '$defs' and 'definitions'")
    return schema


def refers_elsewhere(root: Mapping[str, Any]) -> bool:
    """Whether a schema refers to more than definitions, which alone go along with its parts."""
    return _OTHER_REFERENCE.search(json.dumps(root)) is not None


def has_only(schema: Mapping[str, Any], keywords: Set[str], *, strict: bool = True) -> bool:
    """Whether a schema asks for nothing beside its type and these; if not strict, that is so."""
    return not strict or not set(schema) - _NOTES - keywords


def json_piece(argument: object, root: Mapping[str, Any]) -> Json:
    """An argument as JSON, with what it refers to."""
    definitions = {key: root[key] for key in ("$defs", "definitions") if key in root}
    return Json({**(argument if isinstance(argument, Mapping) else {}), **definitions})


def text_pieces(
    argument: Mapping[str, Any], shown: Mapping[str, Any] | None, end: str, *, strict: bool
) -> list[Piece] | None:
    """An argument without quotes, up to and with ``end``; ``None`` where it must be JSON.

    Args:
        argument: Its schema, resolved.
        shown: The schema that its reader goes by.

    Raises:
        ValueError: It is always text, and that cannot be held to all of the schema.
    """
    patterns, choices = [], argument.get("enum")
    is_free = not json_types(argument) or "string" in json_types(argument)
    is_known = is_text(shown)
    if isinstance(choices, list) and any(isinstance(each, str) for each in choices):
        texts = [each if isinstance(each, str) else json.dumps(each) for each in choices]
        read = [json.dumps(json.loads(to_json(text, shown))) for text in texts]
        kept = [t for t, r, each in zip(texts, read, choices, strict=True) if r == json.dumps(each)]
        if not is_known and len(kept) < len(texts):
            return None
        patterns.append("|".join(map(re.escape, kept)))
    elif not is_free or (strict and not is_known and not _is_plain(shown or {})):
        return None
    if strict and is_text(argument):
        _refuse(argument, _ALTERNATIVES, "a string")
        patterns += _text_patterns(argument)
    # A pattern in any case, since readers know the end by its marker alone, without line breaks.
    return [TextUntil(end, tuple(patterns) or ("(?s:.*)",))]


def _text_patterns(schema: Mapping[str, Any]) -> list[str]:
    patterns = []
    if "minLength" in schema or "maxLength" in schema:
        least, most = schema.get("minLength", 0), schema.get("maxLength", "")
        patterns.append(f"(?s:.{{{least},{most}}})")
    if (pattern := schema.get("pattern")) is not None:
        # It is looked for anywhere, unless it has anchors.
        is_tail = re.search(r"(?<!\\)(?:\\\\)*\$$", pattern) is not None
        inner = pattern.removeprefix("^")[: -1 if is_tail else None]
        before, behind = "" if pattern.startswith("^") else "(?s:.*)", "" if is_tail else "(?s:.*)"
        patterns.append(f"{before}(?:{inner}){behind}")
    # Readers drop a line break next to a tag.
    return [*patterns, r"(?s:[^\n](?:.*[^\n])?)?"] if patterns else []


def _is_plain(schema: Mapping[str, Any]) -> bool:
    """Whether any text is read as something that the schema allows, if it allows strings."""
    if not set(schema) - _NOTES - {"anyOf"}:
        return all(
            isinstance(each, Mapping) and _is_plain(each) for each in schema.get("anyOf", ())
        )
    return False


def _refuse(schema: Mapping[str, Any], keywords: tuple[str, ...], place: str) -> None:
    for keyword in keywords:
        if keyword in schema:
            raise ValueError(f"{keyword!r} of {place} cannot be enforced in this model's calls")
