"""Stop strings in streamed text: find them across deltas and never show a part of one.

A stop string counts with the character that completes it, so the first one completed wins; of those
that one character completes, the longest. Nothing is ever held for a longer match that might
follow: the answer has ended already.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StopScan:
    """What one delta led to.

    Attributes:
        text: Text that is now safe to show.
        matched_stop: The stop string that ended the answer; the scanner takes no text after it.
    """

    text: str
    matched_stop: str | None = None


class StopStringScanner:
    """Scans one answer in time linear in its length, whatever the stop strings.

    Source: Aho & Corasick 1975, "Efficient string matching: an aid to bibliographic search".

    Args:
        stops: Non-empty strings; of equal ones the first counts.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        # A state is the longest end of the text that begins a stop string; 0 is the empty one. It
        # is all that must be known of the text which is held back.
        self._next: list[dict[str, int]] = [{}]
        self._depth = [0]
        self._begins = [""]  # a stop string whose first `depth` characters are the state's text
        self._match: list[str | None] = [None]
        for stop in stops:
            self._add(stop)
        self._fallback = [0] * len(self._next)
        self._link()
        # Most text is nowhere near a stop string; the regular expression skips it in C.
        firsts = "".join(map(re.escape, self._next[0]))
        self._first_character = re.compile(f"[{firsts}]") if firsts else None
        self._state = 0

    @property
    def num_held(self) -> int:
        """Characters that are held back."""
        return self._depth[self._state]

    def feed(self, text: str, *, armed: bool = True) -> StopScan:
        """Scan the next delta.

        Unless `armed`, a stop string that the delta completes does not count: it is plain text, in
        which a later one may still begin.
        """
        state = self._state
        position = 0
        while position < len(text):
            if state == 0:
                found = self._first_character and self._first_character.search(text, position)
                if not found:
                    break
                position = found.start()
            state = self._step(state, text[position])
            position += 1
            matched = self._match[state]
            if matched is not None and armed:
                return StopScan(self._take(text, position - len(matched), state=0), matched)
        # Nothing follows a leaf: only a shorter end of the text can go on to be a stop string.
        while state and not self._next[state]:
            state = self._fallback[state]
        return StopScan(self._take(text, len(text) - self._depth[state], state=state))

    def close(self) -> str:
        """Text that was held back for a stop string which did not come."""
        return self._take("", 0, state=0)

    def _take(self, text: str, stop: int, *, state: int) -> str:
        """Held text and ``text[:stop]``; a negative `stop` leaves an end of the held text out."""
        num_held = self.num_held
        held = self._begins[self._state][: num_held + min(stop, 0)]
        self._state = state
        return held + text[:stop] if stop > 0 else held

    def _step(self, state: int, character: str) -> int:
        following = self._next[state].get(character)
        while following is None and state:
            state = self._fallback[state]
            following = self._next[state].get(character)
        return following or 0

    def _add(self, stop: str) -> None:
        state = 0
        for character in stop:
            following = self._next[state].get(character)
            if following is None:
                following = len(self._next)
                self._next[state][character] = following
                self._next.append({})
                self._depth.append(self._depth[state] + 1)
                self._begins.append(stop)
                self._match.append(None)
            state = following
        self._match[state] = stop

    def _link(self) -> None:
        """Find for every state the next shorter end of its text that begins a stop string.

        A state whose own text is no stop string inherits the match of that shorter end.
        """
        queue = deque(self._next[0].values())
        while queue:
            state = queue.popleft()
            if self._match[state] is None:
                self._match[state] = self._match[self._fallback[state]]
            for character, following in self._next[state].items():
                self._fallback[following] = self._step(self._fallback[state], character)
                queue.append(following)
