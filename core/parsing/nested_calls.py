"""MiniMax M3's calls: arguments are elements with values inside, to any depth."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .argument_types import json_types, property_schema, to_json
from .call_reader import CallContext
from .scanner import MalformedError, Pull, Scanner
from .values import escape

_MAX_DEPTH = 32
_TAG = re.compile(r"[\w.:$-]+")
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
    schema = context.schemas.get(match[1])
    separator = "{"
    while True:
        yield from scanner.skip_space()
        if (yield from scanner.accept((f"{namespace}</invoke>",))):
            break
        if not (yield from scanner.accept((f"{namespace}<",))):
            raise MalformedError
        key, value = yield from _read_element(scanner, namespace, schema, 0)
        out.arguments(f'{separator}"{escape(key)}": {value}')
        separator = ", "
    out.arguments("{}" if separator == "{" else "}")
    context.end()


def _read_element(
    scanner: Scanner, namespace: str, parent: Mapping[str, Any] | None, depth: int
) -> Pull[tuple[str, str]]:
    """Read an element whose ``<`` was read; its name, and its value as JSON."""
    tag, _ = yield from scanner.word_until((">",))
    if depth > _MAX_DEPTH or not _TAG.fullmatch(tag):
        raise MalformedError
    items = (parent or {}).get("items")
    schema = items if isinstance(items, Mapping) else property_schema(parent, tag)
    text: list[str] = []
    children: list[tuple[str, str]] = []
    close = f"{namespace}</{tag}>"
    while True:
        marker = yield from scanner.until((close, f"{namespace}<"), text.append)
        if not marker:
            raise MalformedError
        if marker == close:
            break
        children.append((yield from _read_element(scanner, namespace, schema, depth + 1)))
    if not children:
        return tag, _empty(schema) if not "".join(text).strip() else to_json("".join(text), schema)
    is_list = json_types(schema or {}) == {"array"} or all(key == "item" for key, _ in children)
    if is_list:
        return tag, "[" + ", ".join(value for _, value in children) + "]"
    return tag, "{" + ", ".join(f'"{escape(key)}": {value}' for key, value in children) + "}"


def _empty(schema: Mapping[str, Any] | None) -> str:
    types = json_types(schema or {})
    return "[]" if types == {"array"} else "{}" if types == {"object"} else '""'
