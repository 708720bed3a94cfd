"""What one token stands for, read from the tokenizer's own description of its decoder.

Two families are understood: byte-level BPE, where every character of a token's name stands for one
byte, and sentencepiece, where ``▁`` is a space and ``<0xE4>`` a byte. Anything else is opaque and
left to the tokenizer itself. Used by `Tokenizer` only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class LazyTable(dict[int, T], Generic[T]):
    """Token id to whatever `make` says, worked out on first use.

    A vocabulary has up to 260,000 entries of which an answer touches a few hundred. Two threads
    that miss the same id both compute the same value, so no lock is needed.
    """

    def __init__(self, make: Callable[[int], T]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, token_id: int) -> T:
        value = self._make(token_id)
        self[token_id] = value
        return value


@dataclass(frozen=True, slots=True)
class ByteLevelRules:
    """Every character of a token's name is one byte.

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", 2.2, with
    the byte alphabet published for it: printable Latin-1 stands for itself, the other bytes for
    U+0100 onwards.
    """

    def piece(self, name: str) -> bytes:
        """Bytes of the token called `name`; names outside the alphabet are plain text."""
        try:
            return bytes(map(_BYTE_OF_CHARACTER.__getitem__, name))
        except KeyError:
            return name.encode("utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class SentencePieceRules:
    """Names are text with a mark for the space; single bytes have names of their own.

    Attributes:
        space_mark: Character that stands for a space.
        has_byte_tokens: Whether ``<0xE4>`` is a byte or just text.
        num_stripped_spaces: Most spaces that the start of the whole text loses.
        first_drops_marks: Whether the first token's marks stand for nothing.
    """

    space_mark: str
    has_byte_tokens: bool
    num_stripped_spaces: int = 0
    first_drops_marks: bool = False

    def piece(self, name: str) -> str | int:
        """Text of the token called `name`, or the value of the byte that it stands for."""
        if self.has_byte_tokens and len(name) == 6 and name[:3] == "<0x" and name[5] == ">":
            try:
                return int(name[3:5], 16)
            except ValueError:
                return name
        return name.replace(self.space_mark, " ")

    def first_piece(self, name: str) -> str | int:
        """The same for the token that begins the text."""
        if self.first_drops_marks:
            name = name.replace(self.space_mark, "")
        return self.piece(name)


def read_rules(decoder: Mapping[str, Any] | None) -> ByteLevelRules | SentencePieceRules | None:
    """Rules for the ``decoder`` entry of a ``tokenizer.json``; ``None`` for an opaque one."""
    if decoder is None:
        return None
    steps = decoder.get("decoders", ()) if decoder.get("type") == "Sequence" else (decoder,)
    if [step.get("type") for step in steps] == ["ByteLevel"]:
        return ByteLevelRules()
    return _read_sentencepiece(steps)


def _read_sentencepiece(steps: Any) -> SentencePieceRules | None:
    mark = ""
    has_byte_tokens = fused = first_drops_marks = False
    num_stripped_spaces = 0
    for step in steps:
        match step:
            # Marks are replaced before bytes are joined: in the other order, bytes that spell the
            # mark itself would turn into a space.
            case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": " "} if len(
                pattern
            ) == 1 and not (mark or has_byte_tokens or fused):
                mark = pattern
            case {"type": "Metaspace", "replacement": str(pattern)} if not (
                mark or has_byte_tokens or fused
            ):
                mark = pattern
                first_drops_marks = step.get("prepend_scheme") != "never"
            case {"type": "ByteFallback"} if not fused:
                has_byte_tokens = True
            case {"type": "Fuse"}:
                fused = True
            case {"type": "Strip", "content": " ", "start": int(start), "stop": 0} if fused:
                num_stripped_spaces += start
            case _:
                return None
    if not mark:
        return None
    return SentencePieceRules(
        space_mark=mark,
        has_byte_tokens=has_byte_tokens,
        num_stripped_spaces=num_stripped_spaces,
        first_drops_marks=first_drops_marks,
    )


def _make_byte_alphabet() -> dict[str, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update((chr(0x100 + rank), byte) for rank, byte in enumerate(others))
    return alphabet


_BYTE_OF_CHARACTER = _make_byte_alphabet()
