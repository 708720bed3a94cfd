"""Arguments that a dialect writes as values inside of values in its own way, without JSON.

What a schema says beyond types, members, items and texts is left to JSON, which the readers of
these dialects take in the place of any value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..constraints.tool_grammar import Either, Items, Members, Piece
from ..messages import ToolSpec
from .argument_grammar import has_only, json_piece, object_schema, refers_elsewhere, text_pieces
from .argument_types import json_types, resolve
from .nested_calls import TAG

_Schema: TypeAlias = Mapping[str, Any]
# What lies deeper is JSON: schemas may hold themselves.
_MAX_DEPTH = 8
_OF_TEXT = {"enum", "pattern", "minLength", "maxLength"}
_OF_OBJECTS = {"properties", "required", "additionalProperties", "$defs", "definitions", "$schema"}
_OF_ARRAYS = {"items", "minItems", "maxItems"}
_BARE_KEY = re.compile(r"[\w$@./-]+")


@dataclass(frozen=True, slots=True)
class GemmaCall:
    """``call:name{key:value}``, between two markers.

    Attributes:
        quote: What strings lie between.
    """

    open: str
    close: str
    quote: str

    def __call__(self, tool: ToolSpec) -> Sequence[Piece]:
        """See `ToolGrammar.call`."""
        root = tool.parameters
        value: list[Piece] = [json_piece(root, root)]
        if "properties" in resolve(root, root) and not refers_elsewhere(root):
            value = self._value({"type": "object", **root}, root, 0, strict=tool.strict)
        head = f"{self.open}call:{tool.name}"
        if isinstance(value[0], str):
            head += str(value.pop(0))
        return [head, *value, self.close]

    def _value(self, schema: object, root: _Schema, depth: int, *, strict: bool) -> list[Piece]:
        def write(inner: object) -> list[Piece]:
            return self._value(inner, root, depth + 1, strict=strict)

        schema = _resolved(schema, root)
        types, options = json_types(schema), _options(schema)
        if depth > _MAX_DEPTH:
            return [json_piece(schema, root)]
        if options is not None:
            return [Either([write(option) for option in options])]
        if types == {"string"} and has_only(schema, _OF_TEXT, strict=strict):
            text = text_pieces(schema, {"type": "string"}, self.quote, strict=strict)
            return [self.quote, *(text or ())]
        if (members := _members(schema, strict=strict)) is not None:
            rows = [([self._key(key), *write(each)], is_due) for key, each, is_due in members]
            return ["{", Members(rows, ","), "}"]
        if _is_list(schema, strict=strict):
            items = write(schema["items"])
            return ["[", Items(items, ",", schema.get("minItems", 0), schema.get("maxItems")), "]"]
        return [json_piece(schema, root)]

    def _key(self, key: str) -> str:
        return f"{key}:" if _BARE_KEY.fullmatch(key) else f"{self.quote}{key}{self.quote}:"


@dataclass(frozen=True, slots=True)
class ElementCall:
    """``<invoke name="f"><key>value</key></invoke>``, to any depth, a mark before every tag."""

    mark: str
    tail: str

    def __call__(self, tool: ToolSpec) -> Sequence[Piece]:
        """See `ToolGrammar.call`."""
        root, schema = tool.parameters, object_schema(tool)
        required = schema.get("required") or ()
        rows: list[tuple[Sequence[Piece], bool]] = []
        for key, argument in (schema.get("properties") or {}).items():
            if TAG.fullmatch(key):
                written = self._element(key, argument, root, 0, strict=tool.strict)
                rows.append((written, key in required))
            elif tool.strict:
                raise ValueError(f"the name {key!r} cannot be written in this model's calls")
        head = f'{self.mark}<invoke name="{tool.name}">'
        return [head, Members(rows, ""), f"{self.mark}</invoke>{self.tail}"]

    def _element(
        self, key: str, schema: object, root: _Schema, depth: int, *, strict: bool
    ) -> list[Piece]:
        def write(name: str, inner: object) -> list[Piece]:
            return self._element(name, inner, root, depth + 1, strict=strict)

        schema = _resolved(schema, root)
        members = _members(schema, strict=strict) if depth < _MAX_DEPTH else None
        value: list[Piece] | None
        if members is not None and all(TAG.fullmatch(name) for name, _, _ in members):
            rows = [(write(name, each), is_due) for name, each, is_due in members]
            value = [Members(rows, ""), self.mark]
        elif depth < _MAX_DEPTH and _is_list(schema, strict=strict):
            items = write("item", schema["items"])
            value = [Items(items, "", schema.get("minItems", 0), schema.get("maxItems")), self.mark]
        else:
            value = text_pieces(schema, schema, self.mark, strict=strict)
        value = value or [json_piece(schema, root), self.mark]
        return [f"{self.mark}<{key}>", *value, f"</{key}>"]


def _resolved(schema: object, root: _Schema) -> _Schema:
    return resolve(schema, root) if isinstance(schema, Mapping) else {}


def _options(schema: _Schema) -> list[object] | None:
    """The schemas of which any one is enough, where a schema says nothing else."""
    options, kinds, choices = schema.get("anyOf"), schema.get("type"), schema.get("enum")
    if isinstance(options, list) and has_only(schema, {"anyOf"}) and "type" not in schema:
        return options
    if isinstance(kinds, list) and len(kinds) > 1 and choices is None:
        return [{**schema, "type": kind} for kind in kinds]
    if not isinstance(choices, list) or kinds is not None or not has_only(schema, {"enum"}):
        return None
    is_mixed = json_types(schema) != {"string"} and any(isinstance(each, str) for each in choices)
    return [{"enum": [each]} for each in choices] if is_mixed else None


def _members(schema: _Schema, *, strict: bool) -> list[tuple[str, object, bool]] | None:
    """Name, schema and whether it is required, of an object's members; ``None`` if not all are."""
    properties, required = schema.get("properties"), schema.get("required") or ()
    if not isinstance(properties, Mapping) or json_types(schema) != {"object"}:
        return None
    is_all = set(required) <= set(properties) and has_only(schema, _OF_OBJECTS)
    if strict and not is_all:
        return None
    return [(name, each, name in required) for name, each in properties.items()]


def _is_list(schema: _Schema, *, strict: bool) -> bool:
    """Whether it is of a list whose items are all of one schema."""
    is_known = isinstance(schema.get("items"), Mapping) and json_types(schema) == {"array"}
    return is_known and has_only(schema, _OF_ARRAYS, strict=strict)
