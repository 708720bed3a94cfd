"""Values as models write them, copied out as JSON while they come.

Three ways of writing: JSON itself, whose own text is kept; Python literals; Gemma's objects, with
bare keys, and strings between markers instead of quotes.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from .scanner import MalformedError, Pull, Scanner, Write

_SPACE = re.compile(r"[ \t\n\r]*")
_PLAIN = re.compile(r"[^\"'\\\x00-\x1f]*")
_HEX = re.compile(r"[0-9a-fA-F]+")
_CODES = {"u": 4}
_PYTHON_CODES = {"x": 2, "u": 4, "U": 8}
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_LITERALS = {"true": "true", "false": "false", "null": "null"} | {
    "True": "true",
    "False": "false",
    "None": "null",
}
_CLOSERS = {"[": "]", "{": "}"}


@dataclass(frozen=True, slots=True)
class Syntax:
    """A way of writing values.

    Attributes:
        quotes: What strings lie between.
        word: A number, ``true`` and the like: any number of characters of one class.
        keeps_space: Whether space between values is copied.
        is_loose: Whether keys are bare, words may be strings, and strings have no escapes.
    """

    quotes: tuple[str, ...]
    word: re.Pattern[str] = re.compile(r"[\w.+-]*")
    keeps_space: bool = False
    is_loose: bool = False


JSON = Syntax(('"',), keeps_space=True)
PYTHON = Syntax(('"', "'"))


def gemma_syntax(quote: str) -> Syntax:
    """Gemma's, with the marker that its strings lie between; those of JSON are known, too."""
    return Syntax((quote, '"'), word=re.compile(r"[^,\]}:]*"), is_loose=True)


def escape(text: str) -> str:
    """Text as it stands inside a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def copy_value(scanner: Scanner, write: Write, syntax: Syntax = JSON) -> Pull[None]:
    """Read one value that begins here, and write it as JSON.

    Raises:
        MalformedError: It is none.
    """
    stack: list[str] = []
    may_close = False
    is_due = True
    while is_due or stack:
        char = yield from _skip_space(scanner, write, syntax)
        if stack and char == stack[-1] and (may_close or not is_due):
            scanner.advance()
            write(stack.pop())
            is_due = may_close = False
        elif not is_due:
            _expect(scanner, char, ",")
            write("," if syntax.keeps_space else ", ")
            is_due = True
        else:
            if stack and stack[-1] == "}":
                char = yield from _copy_key(scanner, write, syntax)
            may_close = char in _CLOSERS
            if may_close:
                scanner.advance()
                write(char)
                stack.append(_CLOSERS[char])
            else:
                yield from _copy_scalar(scanner, write, syntax)
                is_due = False


def read_string(scanner: Scanner) -> Pull[str]:
    """Read a JSON string that begins here, and decode it.

    Raises:
        MalformedError: It is none.
    """
    pieces: list[str] = []
    if (yield from scanner.need()) != '"':
        raise MalformedError
    scanner.advance()
    yield from _copy_quoted(scanner, pieces.append, '"', _CODES)
    return str(json.loads("".join(pieces)))


def read_colon(scanner: Scanner) -> Pull[str]:
    """Read the colon behind a key, and return the value's first character, unread."""
    _expect(scanner, (yield from scanner.skip_space()), ":")
    return (yield from scanner.skip_space())


def _expect(scanner: Scanner, char: str, expected: str) -> None:
    if char != expected:
        raise MalformedError
    scanner.advance()


def _skip_space(scanner: Scanner, write: Write, syntax: Syntax) -> Pull[str]:
    space = yield from scanner.run(_SPACE)
    if space and syntax.keeps_space:
        write(space)
    return (yield from scanner.need())


def _copy_key(scanner: Scanner, write: Write, syntax: Syntax) -> Pull[str]:
    """Copy a key and its colon, and return the value's first character, unread."""
    quote = yield from scanner.accept(syntax.quotes)
    if quote:
        yield from _copy_string(scanner, write, syntax, quote)
    elif syntax.is_loose:
        key = (yield from scanner.run(syntax.word)).strip()
        write(f'"{escape(key)}"')
    else:
        raise MalformedError
    _expect(scanner, (yield from _skip_space(scanner, write, syntax)), ":")
    write(":" if syntax.keeps_space else ": ")
    return (yield from _skip_space(scanner, write, syntax))


def _copy_scalar(scanner: Scanner, write: Write, syntax: Syntax) -> Pull[None]:
    quote = yield from scanner.accept(syntax.quotes)
    if quote:
        yield from _copy_string(scanner, write, syntax, quote)
        return
    word = (yield from scanner.run(syntax.word)).strip()
    if word in _LITERALS:
        write(_LITERALS[word])
    elif _NUMBER.fullmatch(word):
        write(word)
    elif syntax.is_loose and word and (yield from scanner.peek()):
        write(f'"{escape(word)}"')
    else:
        if syntax.keeps_space:
            write(word)  # all that came is to be seen
        raise MalformedError


def _copy_string(scanner: Scanner, write: Write, syntax: Syntax, quote: str) -> Pull[None]:
    if not syntax.is_loose or quote == '"':
        codes = _PYTHON_CODES if syntax is PYTHON else _CODES
        yield from _copy_quoted(scanner, write, quote, codes)
        return
    write('"')
    if not (yield from scanner.until((quote,), lambda text: write(escape(text)))):
        raise MalformedError
    write('"')


def _copy_quoted(
    scanner: Scanner, write: Write, quote: str, codes: Mapping[str, int]
) -> Pull[None]:
    """Copy a string whose opening quote was read.

    Args:
        codes: How many hexadecimal digits follow a backslash and a letter.
    """
    write('"')
    while True:
        plain = scanner.take(_PLAIN)
        if plain:
            write(plain)
        char = yield from scanner.need()
        if char == quote:
            break
        if char == "\\":
            scanner.advance()
            yield from _copy_escape(scanner, write, codes)
        elif char == "'":
            scanner.advance()
            write(char)
        elif char == '"' or char < " ":
            scanner.advance()
            write(escape(char))
        # Otherwise it came after the plain text was taken.
    scanner.advance()
    write('"')


def _copy_escape(scanner: Scanner, write: Write, codes: Mapping[str, int]) -> Pull[None]:
    """Copy what follows a backslash. One that begins no escape meant a backslash."""
    char = yield from scanner.need()
    scanner.advance()
    length = codes.get(char, 0)
    if length:
        digits = ""
        while len(digits) < length:
            digits += yield from scanner.need()
            scanner.advance()
        if not _HEX.fullmatch(digits) or int(digits, 16) > sys.maxunicode:
            raise MalformedError
        write("\\u" + digits if length == 4 else json.dumps(chr(int(digits, 16)))[1:-1])
    elif char == "'":
        write(char)
    else:
        write(("\\" if char in '"\\/bfnrt' else "\\\\") + (char if char >= " " else escape(char)))
