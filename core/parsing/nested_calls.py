"""MiniMax M3's calls: arguments are elements with values inside, to any depth."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .argument_types import is_text, json_types, property_schema, resolve, to_json
from .call_reader import CallContext
from .scanner import MalformedError, Pull, Scanner
from .values import escape

_MAX_DEPTH = 32
TAG = re.compile(r"[\w.:$-]+")
_NAME = re.compile(r"""\s*["']?([^"'\s>]+)["']?\s*""")


def read_nested_call(context: CallContext, marker: str) -> Pull[None]:
    """See `CallReader`: behind ``<invoke name=``, which the model's namespace stands before."""
    scanner, out = context.scanner, context.out
    namespace = marker[: marker.index("<invoke")]
    head, _ = yield from scanner.word_until((">",))
    match = _NAME.fullmatch(head)
    if match is None:
        raise MalformedError
    context.start(match[1])
    root = context.schemas.get(match[1], {})
    separator = "{"
    while True:
        yield from scanner.skip_space()
        if (yield from scanner.accept((f"{namespace}</invoke>",))):
            break
        if not (yield from scanner.accept((f"{namespace}<",))):
            raise MalformedError
        key, value = yield from _read_element(scanner, namespace, root, root, 0)
        out.arguments(f'{separator}"{escape(key)}": {value}')
        separator = ", "
    out.arguments("{}" if separator == "{" else "}")
    context.end()


def _read_element(
    scanner: Scanner, namespace: str, root: Mapping[str, Any], parent: Mapping[str, Any], depth: int
) -> Pull[tuple[str, str]]:
    """Read an element whose ``<`` was read; its name, and its value as JSON."""
    tag, _ = yield from scanner.word_until((">",))
    if depth > _MAX_DEPTH or not TAG.fullmatch(tag):
        raise MalformedError
    items = parent.get("items")
    schema: Mapping[str, Any] = property_schema(parent, tag, root) or {}
    if isinstance(items, Mapping):
        schema = resolve(items, root)
    text: list[str] = []
    children: list[tuple[str, str]] = []
    close = f"{namespace}</{tag}>"
    while True:
        marker = yield from scanner.until((close, f"{namespace}<"), text.append)
        if not marker:
            raise MalformedError
        if marker == close:
            break
        children.append((yield from _read_element(scanner, namespace, root, schema, depth + 1)))
    types = json_types(schema)
    if not children:
        is_empty = not is_text(schema) and not "".join(text).strip()
        return tag, _empty(types) if is_empty else to_json("".join(text), schema)
    if types == {"array"} or (types != {"object"} and all(key == "item" for key, _ in children)):
        return tag, "[" + ", ".join(value for _, value in children) + "]"
    return tag, "{" + ", ".join(f'"{escape(key)}": {value}' for key, value in children) + "}"


def _empty(types: set[str]) -> str:
    return "[]" if types == {"array"} else "{}" if types == {"object"} else '""'
