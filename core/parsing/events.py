"""What an answer consists of, as it comes: neutral between providers.

Whatever the cuts between the texts that a parser was fed, the events say the same: deltas of one
kind that follow one another are to be joined.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """What the model thinks before, or between, what it says."""

    text: str


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """What the model says. No part of a marker is ever in it."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A call begins: its name is whole. If the call breaks off, no `ToolCallEnd` follows.

    Attributes:
        index: Of the calls of one answer, from 0.
    """

    index: int
    call_id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """More of the arguments of the call that began last: JSON text, which all deltas make up."""

    index: int
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolCallEnd:
    """The arguments are whole, and an object in JSON."""

    index: int


ReplyEvent: TypeAlias = ReasoningDelta | ContentDelta | ToolCallStart | ToolCallDelta | ToolCallEnd
