"""Where in the text each token stands, for callers that get log probabilities.

A detokenizer says what text comes out, not whose it is: the bytes of one character may be spread
over tokens, and several tokens may be held until a run ends.
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Set
from typing import NamedTuple

from .tokenizer import Tokenizer


class TokenSpan(NamedTuple):
    """Half-open range of characters.

    A token that only begins or continues a character starts where this character does.
    """

    start: int
    stop: int


class TokenSpanTracker:
    """Follows the detokenizer of one text that leaves special tokens out, but for some.

    Exact for valid text. In bytes that spell no character, spans are only kept in order and within
    the delta that shows them.
    """

    def __init__(self, tokenizer: Tokenizer, shown_ids: Set[int] = frozenset()) -> None:
        self._tokenizer = tokenizer
        self._shown_ids = shown_ids
        self._num_shown = 0
        # The same text by the tokens' bytes alone: it knows borders that the deltas hide, but also
        # has the space that some decoders drop at the start.
        self._num_spelled = 0
        self._open = b""
        self._pending_starts: list[int] = []

    def add(self, token_id: int, text: str) -> list[TokenSpan]:
        """Take a token and what the detokenizer made of it.

        Returns:
            Spans that have become certain, one a token in order; none while `text` is empty.
        """
        self._pending_starts.append(self._num_spelled)
        if token_id not in self._tokenizer.special_ids or token_id in self._shown_ids:
            data = self._open + self._tokenizer.token_bytes(token_id)
            spelled, num_used = utf_8_decode(data, "replace", False)
            self._open = data[num_used:]
            self._num_spelled += len(spelled)
        return self._settle(text) if text else []

    def close(self, text: str) -> list[TokenSpan]:
        """Spans of the tokens that are left, given what closing the detokenizer has released."""
        return self._settle(text)

    def _settle(self, text: str) -> list[TokenSpan]:
        if not self._pending_starts:
            return []
        low = self._num_shown
        high = self._num_shown = low + len(text)
        first = self._pending_starts[0]
        num_dropped = max(0, self._num_spelled - first - len(text))
        starts = [
            min(max(low + start - first - num_dropped, low), high) for start in self._pending_starts
        ]
        self._pending_starts.clear()
        return list(map(TokenSpan, starts, [*starts[1:], high]))
