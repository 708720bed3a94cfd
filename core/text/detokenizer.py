"""Token ids to text, one id at a time. Only whole characters come out.

Whatever the ids, ``"".join(map(feed, ids)) + close()`` is what `Tokenizer.decode` makes of all of
them, and the work for one token does not grow with the answer. (With a decoder that is not
understood, this holds as long as later tokens leave complete text alone.)
`Tokenizer.make_detokenizer` picks the class.
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Callable, Mapping, Set
from typing import Protocol

from .pieces import SentencePieceRules

# A token that leaves a character open is completed by at most three more bytes. Tokens that show
# nothing for longer than this are broken, and holding them would make each step dearer.
MAX_WINDOW = 32


class Detokenizer(Protocol):
    """Text of one answer as it becomes complete."""

    def feed(self, token_id: int) -> str:
        """Text that this token completes; ``""`` while a character is open."""

    def close(self) -> str:
        """What is still held; an unfinished character comes out as U+FFFD."""


class ByteLevelDetokenizer:
    """For tokens that are runs of bytes.

    Args:
        pieces: Token id to its bytes; empty for ids that show nothing.
    """

    def __init__(self, pieces: Mapping[int, bytes]) -> None:
        self._pieces = pieces
        self._open = b""  # start of a character, at most three bytes

    def feed(self, token_id: int) -> str:
        """See `Detokenizer.feed`."""
        data = self._open + self._pieces[token_id]
        text, num_used = utf_8_decode(data, "replace", False)
        self._open = data[num_used:]
        return text

    def close(self) -> str:
        """See `Detokenizer.close`."""
        text = self._open.decode("utf-8", "replace")
        self._open = b""
        return text


class SentencePieceDetokenizer:
    """For tokens that are text with marks for spaces, beside tokens for single bytes.

    A run of byte tokens is held until it ends: the decoder makes one U+FFFD of each byte of a run
    that is not valid as a whole, so nothing of it is certain before. A run ends with the word.

    Args:
        pieces: Token id to its text or byte; ``None`` for ids that are left out.
        first_piece: The same for the token that begins the text.
    """

    def __init__(
        self,
        rules: SentencePieceRules,
        pieces: Mapping[int, str | int | None],
        first_piece: Callable[[int], str | int | None],
    ) -> None:
        self._pieces = pieces
        self._first_piece = first_piece
        self._run = bytearray()
        self._at_first_token = rules.first_drops_marks
        self._num_to_strip = rules.num_stripped_spaces

    def feed(self, token_id: int) -> str:
        """See `Detokenizer.feed`."""
        piece = self._pieces[token_id]
        if piece is None:
            return ""
        if self._at_first_token:
            self._at_first_token = False
            piece = self._first_piece(token_id)
        if isinstance(piece, int):
            self._run.append(piece)
            return ""
        text = self._end_run() + (piece or "") if self._run else piece or ""
        return self._strip(text) if self._num_to_strip else text

    def close(self) -> str:
        """See `Detokenizer.close`."""
        return self._strip(self._end_run())

    def _end_run(self) -> str:
        try:
            text = self._run.decode("utf-8")
        except UnicodeDecodeError:
            text = "\ufffd" * len(self._run)
        self._run.clear()
        return text

    def _strip(self, text: str) -> str:
        while self._num_to_strip and text.startswith(" "):
            text = text[1:]
            self._num_to_strip -= 1
        if text:
            self._num_to_strip = 0
        return text


class WindowDetokenizer:
    """For tokenizers whose decoder is not understood: decodes a short window again and again.

    The window is the tokens of the last delta, which give the decoder its context, and the tokens
    behind them. The new text is what the latter add.

    Args:
        decode: Token ids to text, as the tokenizer does it.
        skipped_ids: Ids that show nothing.
    """

    def __init__(self, decode: Callable[[list[int]], str], skipped_ids: Set[int]) -> None:
        self._decode = decode
        self._skipped_ids = skipped_ids
        self._context: list[int] = []
        self._context_text = ""
        self._new: list[int] = []

    def feed(self, token_id: int) -> str:
        """See `Detokenizer.feed`."""
        if token_id in self._skipped_ids:
            return ""
        self._new.append(token_id)
        text = self._decode(self._context + self._new)
        is_open = (
            len(text) <= len(self._context_text)
            or text.endswith("\ufffd")
            or not text.startswith(self._context_text)
        )
        if is_open and len(self._new) < MAX_WINDOW:
            return ""
        return self._release(text)

    def close(self) -> str:
        """See `Detokenizer.close`."""
        return self._release(self._decode(self._context + self._new)) if self._new else ""

    def _release(self, text: str) -> str:
        delta = text[len(self._context_text) :]
        self._context, self._new = self._new, []
        self._context_text = self._decode(self._context)
        return delta
