"""Calls with a tag around every argument, as in XML: arguments become JSON one by one.

Strings go out as they come. Anything else waits until it is whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .argument_types import is_text, property_schema, to_json
from .call_reader import CallContext, copy_object
from .scanner import MalformedError, Pull, Scanner, Write
from .values import escape

_NAME = re.compile(
    r"""\s*(?:(?:name|key|tool)\s*=)?\s*["']?([^"'\s<>=]+)["']?(?:\s+\w+="[^"]*")*\s*"""
)
_STRING_FLAG = re.compile(r"""\b(?:string="(true|false)"|type="(\w+)")""")
CDATA = ("<![CDATA[", "]]>")


@dataclass(frozen=True, slots=True, kw_only=True)
class TagCalls:
    """Reads one call.

    Attributes:
        name_ends: What ends the tool's name.
        argument: Begins an argument, before its name.
        key_end: Ends the argument's name, and attributes if there are any.
        value: Stands between name and value, in dialects with a tag for each.
        value_end: Ends the value.
        call_end: Ends the call.
        json: Begins and ends a JSON object in the place of all arguments.
        knows_cdata: Whether a value may be a CDATA section, as in XML.
    """

    name_ends: tuple[str, ...]
    argument: str
    key_end: str
    value: str = ""
    value_end: str
    call_end: str
    json: tuple[str, str] | None = None
    knows_cdata: bool = False

    def __call__(self, context: CallContext, marker: str) -> Pull[None]:
        """See `CallReader`."""
        scanner, out = context.scanner, context.out
        head, end = yield from scanner.word_until((*self.name_ends, self.argument, self.call_end))
        name = _name(head)
        context.start(name)
        scanner.advance(-len(end) if end in (self.argument, self.call_end) else 0)
        openings = (self.argument, self.call_end, *(self.json or ())[:1])
        num_arguments = 0
        while True:
            yield from scanner.skip_space()
            tag = yield from scanner.accept(openings)
            if tag == self.call_end:
                break
            if self.json and tag == self.json[0]:
                yield from self._copy_json(scanner, out.arguments, self.json[1])
                context.end()
                return
            if not tag:
                raise MalformedError
            out.arguments(", " if num_arguments else "{")
            num_arguments += 1
            yield from self._copy_argument(scanner, out.arguments, context.schemas.get(name))
        out.arguments("}" if num_arguments else "{}")
        context.end()

    def _copy_argument(
        self, scanner: Scanner, write: Write, schema: Mapping[str, Any] | None
    ) -> Pull[None]:
        head, _ = yield from scanner.word_until((self.key_end,))
        if self.value:
            yield from scanner.skip_space()
            if not (yield from scanner.accept((self.value,))):
                raise MalformedError
        key = head.strip() if self.value else _name(head)
        argument = property_schema(schema, key)
        flag = _STRING_FLAG.search(head)
        if flag:
            argument = {"type": "string"} if {*flag.groups()} & {"true", "string"} else {}
        write(f'"{escape(key)}": ')
        yield from self._copy_value(scanner, write, argument)

    def _copy_value(
        self, scanner: Scanner, write: Write, schema: Mapping[str, Any] | None
    ) -> Pull[None]:
        is_cdata = self.knows_cdata and bool((yield from scanner.accept(CDATA[:1])))
        end = CDATA[1] if is_cdata else self.value_end
        if not is_cdata:
            yield from scanner.accept(("\n",))
        copy = _copy_all_until if is_cdata else _copy_until
        if is_text(schema):
            write('"')
            yield from copy(scanner, end, lambda piece: write(escape(piece)))
            write('"')
        else:
            pieces: list[str] = []
            yield from copy(scanner, end, pieces.append)
            write(to_json("".join(pieces), schema))
        if is_cdata:
            yield from scanner.skip_space()
            if not (yield from scanner.accept((self.value_end,))):
                raise MalformedError

    def _copy_json(self, scanner: Scanner, write: Write, end: str) -> Pull[None]:
        yield from scanner.word_until((self.key_end,))
        yield from scanner.skip_space()
        yield from copy_object(scanner, write)
        for marker in (end, self.call_end):
            yield from scanner.skip_space()
            yield from scanner.accept((marker,))


def _name(head: str) -> str:
    match = _NAME.fullmatch(head)
    if match is None:
        raise MalformedError
    return match[1]


def _copy_all_until(scanner: Scanner, end: str, write: Write) -> Pull[None]:
    if not (yield from scanner.until((end,), write)):
        raise MalformedError


def _copy_until(scanner: Scanner, end: str, write: Write) -> Pull[None]:
    """Write what stands before `end`, without one line break next to it."""
    held = ""

    def hold(text: str) -> None:
        nonlocal held
        text = held + text
        held = "\n" if text.endswith("\n") else ""
        if len(text) > len(held):
            write(text[: len(text) - len(held)])

    yield from _copy_all_until(scanner, end, hold)
