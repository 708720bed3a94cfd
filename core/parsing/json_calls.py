"""Calls whose arguments are one JSON object, which is passed on as it comes.

Either the whole call is an object, with the name and the arguments as members, or the name stands
in a header before the arguments.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from .call_reader import CallContext, copy_object
from .scanner import MalformedError, Pull, Scanner, Write
from .values import copy_value, read_colon, read_string

_NAME_KEYS = ("name", "tool_name", "function")
_ARGUMENT_KEYS = ("arguments", "parameters", "args")
_OTHER_KEYS = ("type", "id", "tool_call_id", "tool_plan")
_FENCE = re.compile(r"[\s`json]*")
_FENCE_END = re.compile(r"[\s`]*")


@dataclass(frozen=True, slots=True)
class JsonCalls:
    """Reads objects, alone, one behind the other or in a list.

    Attributes:
        name_is_key: Whether an object has one member: the name, with the arguments.
    """

    name_is_key: bool = False

    def __call__(self, context: CallContext, marker: str) -> Pull[None]:
        """See `CallReader`. Without a marker, only what calls a tool that was given is a call."""
        scanner = context.scanner
        # A code fence may stand before the list, as may spaces.
        fence = yield from scanner.run(_FENCE)
        if (yield from scanner.need()) == "[":
            scanner.advance()
            if (yield from scanner.skip_space()) == "]":
                scanner.advance()
                return
        while True:
            yield from _ObjectReader(context, self.name_is_key, is_bare=not marker).read()
            char = yield from scanner.skip_space()
            if char and char in ",;":
                scanner.advance()
                yield from scanner.skip_space()
            elif char != "{":
                break
        yield from scanner.accept(("]",))
        if "```" in fence:
            yield from scanner.run(_FENCE_END)
        scanner.mark()


class _ObjectReader:
    """Reads one object: its members may come in any order."""

    def __init__(self, context: CallContext, name_is_key: bool, *, is_bare: bool) -> None:
        self._context = context
        self._name_is_key = name_is_key
        self._is_bare = is_bare
        self._has_name = False
        self._has_arguments = False
        self._is_whole = False
        self._held: list[str] = []

    def read(self) -> Pull[None]:
        """Read it, and end the call as soon as it is whole."""
        try:
            yield from self._read_members()
        except MalformedError:
            # What is wrong behind a whole call is no part of it.
            if not self._is_whole:
                raise
        if not self._is_whole:
            if not self._has_name:
                raise MalformedError
            self._held = ["{}"]
            self._end()

    def _read_members(self) -> Pull[None]:
        scanner = self._context.scanner
        if (yield from scanner.need()) != "{":
            raise MalformedError
        scanner.advance()
        char = yield from scanner.skip_space()
        while char != "}":
            yield from self._read_member()
            if self._has_name and self._has_arguments and not self._is_whole:
                self._end()
            char = yield from scanner.skip_space()
            if char == ",":
                scanner.advance()
                yield from scanner.skip_space()
            elif char != "}":
                raise MalformedError
        scanner.advance()

    def _read_member(self) -> Pull[None]:
        scanner = self._context.scanner
        key = yield from read_string(scanner)
        char = yield from read_colon(scanner)
        if self._name_is_key and not self._has_name:
            self._start(key)
            yield from self._read_arguments(char)
        elif key in _NAME_KEYS and char == "{":
            yield from self._read_members()
        elif key in _NAME_KEYS and not self._has_name:
            self._start((yield from read_string(scanner)))
        elif key in _ARGUMENT_KEYS and not self._has_arguments:
            yield from self._read_arguments(char)
        elif self._is_bare and key not in _OTHER_KEYS:
            raise MalformedError
        else:
            yield from copy_value(scanner, lambda _: None)

    def _end(self) -> None:
        self._is_whole = True
        self._context.out.arguments("".join(self._held))
        self._context.end()

    def _start(self, name: str) -> None:
        self._context.start(name, must_be_known=self._is_bare)
        self._has_name = True

    def _read_arguments(self, char: str) -> Pull[None]:
        write: Write = self._context.out.arguments if self._has_name else self._held.append
        yield from _copy_arguments(self._context.scanner, write, char)
        self._has_arguments = True


def _copy_arguments(scanner: Scanner, write: Write, char: str) -> Pull[None]:
    """Copy arguments that are an object, an object's text in a string, or null."""
    if char == '"':
        text = (yield from read_string(scanner)).strip() or "{}"
        if not is_object(text):
            raise MalformedError
        write(text)
    elif char == "n":
        yield from copy_value(scanner, lambda _: None)
        write("{}")
    else:
        yield from copy_object(scanner, write)


def is_object(text: str) -> bool:
    """Whether a text is a JSON object that can be sent."""
    try:
        text.encode()
        return isinstance(json.loads(text, parse_constant=_refuse), dict)
    except (ValueError, RecursionError):
        return False


def _refuse(constant: str) -> None:
    raise ValueError(constant)


@dataclass(frozen=True, slots=True)
class HeadedCalls:
    """Reads one call: a header, then the object.

    Attributes:
        header: Matches all of the header; ``name`` and, if models write one, ``id``.
        header_ends: Markers that end it; the object's brace, where none does, is not taken.
        closes: May follow where there are no arguments.
        plain: Stands in the place of a name before what is content.
    """

    header: re.Pattern[str]
    header_ends: tuple[str, ...]
    closes: tuple[str, ...] = ()
    plain: str = ""

    def __call__(self, context: CallContext, marker: str) -> Pull[None]:
        """See `CallReader`."""
        scanner = context.scanner
        header, end = yield from scanner.word_until(self.header_ends)
        match = self.header.fullmatch(header)
        if match is None:
            raise MalformedError
        if end == "{":
            scanner.advance(-1)
        if match["name"] == self.plain:
            scanner.mark()
            return
        context.start(match["name"], match.groupdict().get("id"), must_be_known=not marker)
        yield from scanner.run(_FENCE)
        if (yield from scanner.accept(self.closes)):
            context.out.arguments("{}")
        else:
            yield from copy_object(scanner, context.out.arguments)
        context.end()
        yield from scanner.run(_FENCE)
        scanner.mark()


@dataclass(frozen=True, slots=True)
class MistralCalls:
    """Reads both of Mistral's forms: a list of objects, or names with headers."""

    objects: JsonCalls
    headed: HeadedCalls

    def __call__(self, context: CallContext, marker: str) -> Pull[None]:
        """See `CallReader`."""
        char = yield from context.scanner.skip_space()
        form = self.objects if char in ("[", "{") else self.headed
        yield from form(context, marker)
