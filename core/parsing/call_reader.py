"""What the readers of tool calls share: what they are given, and how a dialect is described."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from .event_writer import EventWriter
from .scanner import MalformedError, Pull, Scanner, Write
from .values import copy_value

_NAME = re.compile(r"[\w.:/-]{1,200}")


@dataclass(frozen=True, slots=True)
class CallContext:
    """One answer's.

    Attributes:
        schemas: Of the arguments of each tool, by the tool's name.
    """

    scanner: Scanner
    out: EventWriter
    schemas: Mapping[str, Mapping[str, Any]]

    def start(self, name: str, call_id: str | None = None, *, must_be_known: bool = False) -> None:
        """Start a call. From here on its text cannot come out as content any more.

        Raises:
            MalformedError: That is no tool's name, or no name of a tool that the caller gave.
        """
        if not _NAME.fullmatch(name) or (must_be_known and name not in self.schemas):
            raise MalformedError
        self.out.start(name, call_id)
        self.scanner.end_call()

    def end(self) -> None:
        """End the call: all of its text was understood."""
        self.out.end()
        self.scanner.mark()
        self.scanner.begin_call()


CallReader: TypeAlias = Callable[[CallContext, str], Pull[None]]
"""Reads the calls behind an opening marker, which is given.

Raises `MalformedError`; if a call has started, reading goes on where that was found.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolDialect:
    """How a model writes calls.

    Attributes:
        read: Reads what follows one of `opens`.
        opens: Begin a call, or a list of them.
        wraps: Stand before `opens`, around all calls; may be missing.
        closes: End calls, and what wraps them; may be missing.
        call_end: Ends a call beside them, and must be there.
        bare: First characters of calls that may begin an answer without a marker; ``*`` for any.
        passes_json: Whether the arguments are JSON, of which nothing is changed.
        ends_reasoning: Whether a call that begins inside reasoning ends it: models that leave out
            the end marker, in dialects whose markers are special tokens.
        has_short_ids: Whether ids must be Mistral's.
    """

    read: CallReader
    opens: tuple[str, ...] = ()
    wraps: tuple[str, ...] = ()
    closes: tuple[str, ...] = ()
    call_end: str = ""
    bare: str = ""
    passes_json: bool = False
    ends_reasoning: bool = False
    has_short_ids: bool = False


def copy_object(scanner: Scanner, write: Write) -> Pull[None]:
    """Copy a JSON object that begins here.

    Raises:
        MalformedError: It is none.
    """
    if (yield from scanner.need()) != "{":
        raise MalformedError
    yield from copy_value(scanner, write)
