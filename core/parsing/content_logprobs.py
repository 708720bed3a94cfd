"""Log probabilities of an answer's content: those of markers, thoughts and calls are left out.

A token may stand on both sides of a border, and a border may show only with later tokens. So a
token waits until all of its text is read, and is cut to what is content: the tokens of a part of
the content spell exactly this part.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TypeAlias

from ..request import PositionLogprobs
from .events import ContentDelta, ReplyEvent
from .output_parser import Piece

ScoredEvent: TypeAlias = tuple[ReplyEvent, Sequence[PositionLogprobs]]

# Bytes that are no whole character take the place of one while a token is cut.
_PARTIAL = "".join(map(chr, range(0xDC80, 0xDD00)))


class ContentLogprobs:
    """Follows one answer."""

    def __init__(self) -> None:
        self._waiting: deque[PositionLogprobs] = deque()
        # Half-open ranges of characters, and the part of the content that they belong to: parts
        # are told apart by the number of other events before them.
        self._ranges: deque[tuple[int, int, int]] = deque()
        self._num_read = 0
        self._part = 0

    def take(
        self,
        events: Sequence[ReplyEvent],
        pieces: Sequence[Piece],
        positions: Sequence[PositionLogprobs],
        *,
        is_last: bool,
    ) -> list[ScoredEvent]:
        """Join the events that one output led to with what they are made of.

        An event without text comes where a token has waited until its text was out.
        """
        self._waiting.extend(positions)
        first_part = self._part
        self._note_ranges(events, pieces)
        ready: dict[int, list[PositionLogprobs]] = {}
        while self._waiting:
            spelled = _spell(self._waiting[0])
            if spelled and spelled[-1][0] >= self._num_read and not is_last:
                break
            for part, position in self._cut(self._waiting.popleft(), spelled):
                ready.setdefault(part, []).append(position)
        part = first_part
        scored: list[ScoredEvent] = []
        if ready.get(part) and not (events and isinstance(events[0], ContentDelta)):
            scored.append((ContentDelta(""), ready.pop(part)))
        for event in events:
            if isinstance(event, ContentDelta):
                scored.append((event, ready.pop(part, ())))
            else:
                part += 1
                scored.append((event, ()))
        return scored

    def _note_ranges(self, events: Sequence[ReplyEvent], pieces: Sequence[Piece]) -> None:
        content: deque[tuple[int, str]] = deque()
        for piece in pieces:
            if piece.is_content:
                content.append((self._num_read, piece.text))
            self._num_read += len(piece.text)
        for event in events:
            if not isinstance(event, ContentDelta):
                self._part += 1
                continue
            rest = event.text
            while rest and content:
                start, text = content[0]
                if not rest.startswith(text):
                    rest = rest[1:]  # a line break that stands for a call
                    continue
                rest = rest[len(text) :]
                content.popleft()
                self._ranges.append((start, start + len(text), self._part))

    def _cut(
        self, position: PositionLogprobs, spelled: Sequence[tuple[int, str]]
    ) -> Iterator[tuple[int, PositionLogprobs]]:
        """The token as it stands in each part that has something of it."""
        while self._ranges and self._ranges[0][1] <= position.text_offset:
            self._ranges.popleft()
        for part, run in groupby(spelled, key=lambda it: self._part_of(it[0])):
            if part is None:
                continue
            shown = "".join(character for _, character in run)
            raw = shown.encode("utf-8", "surrogateescape")
            if raw == position.chosen.raw:
                yield part, position
            else:
                text = raw.decode("utf-8", "replace")
                yield part, replace(position, chosen=replace(position.chosen, text=text, raw=raw))

    def _part_of(self, place: int) -> int | None:
        return next((part for start, stop, part in self._ranges if start <= place < stop), None)


def _spell(position: PositionLogprobs) -> list[tuple[int, str]]:
    """What a token spells of the answer: places of characters, and these or bytes of them.

    Nothing of a token that the answer does not show.
    """
    text = position.chosen.raw.decode("utf-8", "surrogateescape")
    start, end = position.text_offset, position.text_end
    body = text.lstrip(_PARTIAL)
    head = text[: len(text) - len(body)]  # bytes that end the character at `start`
    tail = body[len(body.rstrip(_PARTIAL)) :]  # bytes that begin the one behind
    body = body.rstrip(_PARTIAL)
    if any(it in _PARTIAL for it in body):
        return [(start, it) for it in text]  # no text at all: not to be cut
    first = start + bool(head)
    num_dropped = max(0, len(body) - max(0, end - first))
    if body[:num_dropped].strip(" "):
        return []  # a special token, which the text leaves out
    body = body[num_dropped:]  # a decoder may drop spaces at the start of the answer
    spelled = [(start, it) for it in head]
    spelled += enumerate(body, first)
    return spelled + [(first + len(body), it) for it in tail]
