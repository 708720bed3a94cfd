"""Calls that look like code: Python's ``[f(a=1)]``, and Gemma's ``call:f{a:1}``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .call_reader import CallContext
from .scanner import MalformedError, Pull
from .values import PYTHON, Syntax, copy_value, escape

_WORD = re.compile(r"[\w.:/-]*")
_KEY = re.compile(r"\w*")


@dataclass(frozen=True, slots=True)
class PythonCalls:
    """Reads a list of calls with keyword arguments, or calls one behind the other."""

    def __call__(self, context: CallContext, marker: str) -> Pull[None]:
        """See `CallReader`. Without a marker, only calls of tools that were given are calls."""
        scanner = context.scanner
        yield from scanner.skip_space()
        is_list = bool((yield from scanner.accept(("[",))))
        if not is_list and not marker:
            raise MalformedError
        while True:
            yield from scanner.skip_space()
            yield from self._read_call(context, is_bare=not marker)
            char = yield from scanner.skip_space()
            if char == "," and is_list:
                scanner.advance()
            elif is_list or not re.match(r"\w", char):
                break
        if is_list and not (yield from scanner.accept(("]",))):
            raise MalformedError
        scanner.mark()

    def _read_call(self, context: CallContext, *, is_bare: bool) -> Pull[None]:
        scanner, write = context.scanner, context.out.arguments
        name = yield from scanner.run(_WORD)
        if (yield from scanner.need()) != "(":
            raise MalformedError
        scanner.advance()
        context.start(name, must_be_known=is_bare)
        separator = "{"
        while (yield from scanner.skip_space()) != ")":
            key = yield from scanner.run(_KEY)
            if not key or (yield from scanner.skip_space()) != "=":
                raise MalformedError
            scanner.advance()
            write(f'{separator}"{escape(key)}": ')
            separator = ", "
            yield from scanner.skip_space()
            yield from copy_value(scanner, write, PYTHON)
            char = yield from scanner.skip_space()
            if char == ",":
                scanner.advance()
            elif char != ")":
                raise MalformedError
        scanner.advance()
        write("{}" if separator == "{" else "}")
        context.end()


@dataclass(frozen=True, slots=True)
class GemmaCalls:
    """Reads ``call:name{...}``, once or more often."""

    syntax: Syntax

    def __call__(self, context: CallContext, marker: str) -> Pull[None]:
        """See `CallReader`."""
        scanner = context.scanner
        yield from scanner.skip_space()
        if not (yield from scanner.accept(("call:",))):
            raise MalformedError
        while True:
            name = yield from scanner.run(_WORD)
            if (yield from scanner.skip_space()) != "{":
                raise MalformedError
            context.start(name)
            yield from copy_value(scanner, context.out.arguments, self.syntax)
            context.end()
            yield from scanner.skip_space()
            if not (yield from scanner.accept(("call:",))):
                return
