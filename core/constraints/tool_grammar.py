"""How a tool dialect writes calls, in pieces from which grammars are put together.

Texts are plain text with markers spelled out: whether a marker is a token of its own depends on
the model's tokenizer, and the grammar builder looks there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..messages import ToolSpec


@dataclass(frozen=True, slots=True)
class Json:
    """JSON that follows a schema. A part of a larger schema brings its ``$defs`` along."""

    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TextUntil:
    """Text that ends with the first `end`, which is part of it.

    Attributes:
        patterns: Regular expressions, as in `Pattern`, that all match what stands before.
    """

    end: str
    patterns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pattern:
    """Text that matches a regular expression (Rust's syntax, no anchors)."""

    regex: str


@dataclass(frozen=True, slots=True)
class Maybe:
    """Pieces that may be left out together."""

    pieces: Sequence[Piece]


@dataclass(frozen=True, slots=True)
class Either:
    """One of several rows of pieces."""

    options: Sequence[Sequence[Piece]]


@dataclass(frozen=True, slots=True)
class Members:
    """Rows of pieces in their order, and whether each must be there; a text between any two."""

    rows: Sequence[tuple[Sequence[Piece], bool]]
    between: str


@dataclass(frozen=True, slots=True)
class Items:
    """Pieces `least` to `most` times (``None``: any number of times), with a text between."""

    pieces: Sequence[Piece]
    between: str
    least: int = 0
    most: int | None = None


Piece: TypeAlias = str | Json | TextUntil | Pattern | Maybe | Either | Members | Items


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolGrammar:
    """What the calls of an answer look like: ``begin call (between call)* end``.

    Attributes:
        call: One call of a tool, its own markers included. Arguments follow the given `parameters`,
            which may be looser than what the caller wrote. An end-of-sequence token that ends the
            answer is left out.
        trigger: Begins calls wherever it stands in free text, and begins nothing else: a prefix of
            ``begin``, or of every call where that is empty. Empty where only an answer's very start
            can be a call.
        plain: Stands in the place of a call, once and first, before text; `between` follows that.
        text_end: A token that may end text, be it before a call or at the answer's end.
    """

    call: Callable[[ToolSpec], Sequence[Piece]]
    trigger: str
    begin: str = ""
    between: str = ""
    end: str = ""
    plain: str = ""
    text_end: str = ""
