"""The prefixes of a namespace as a tree: texts that begin alike, and where they part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from pippin.core.cache.disk.index import RecordRow
from pippin.core.cache.disk.record import RecordKey

from .byte_size import format_bytes

_PREVIEW_CHARS = 72


@dataclass(slots=True)
class Prefix:
    """A run of blocks that no other text parts from.

    Attributes:
        key: Its first record, which may have the tokens.
        start, end: Tokens of the text before it, and with it.
    """

    key: RecordKey
    start: int
    end: int
    num_records: int = 0
    num_bytes: int = 0
    hits: int = 0
    branches: list[Prefix] = field(default_factory=list)

    def to_json(self, preview: Callable[[RecordKey], str]) -> dict[str, Any]:
        """Everything below, and the first text of each."""
        return {
            "block_hash": self.key.block_hash.hex(),
            "text": preview(self.key),
            **{name: getattr(self, name) for name in ("start", "end", "num_records")},
            **{name: getattr(self, name) for name in ("num_bytes", "hits")},
            "branches": [branch.to_json(preview) for branch in self.branches],
        }


def build_tree(rows: Sequence[RecordRow], block_size: int) -> list[Prefix]:
    """Prefixes that nothing stored comes before, those with the most hits first.

    Args:
        rows: In the order of their tokens.
    """
    records: dict[bytes, list[RecordRow]] = {}
    for row in rows:
        records.setdefault(row.key.block_hash, []).append(row)
    children: dict[bytes | None, list[bytes]] = {}
    for block_hash, group in records.items():
        parent = next((row.parent for row in group if row.parent in records), None)
        children.setdefault(parent, []).append(block_hash)
    roots: list[Prefix] = []
    waiting = [(block_hash, roots) for block_hash in children.get(None, [])]
    while waiting:
        block_hash, siblings = waiting.pop()
        first = records[block_hash][0]
        prefix = Prefix(first.key, max(0, first.num_tokens - block_size), first.num_tokens)
        siblings.append(prefix)
        following = [block_hash]
        while len(following) == 1:
            [block_hash] = following
            group = records[block_hash]
            prefix.end = max(row.num_tokens for row in group)
            prefix.num_records += len(group)
            prefix.num_bytes += sum(row.num_bytes for row in group)
            prefix.hits = max(prefix.hits, *(row.hits for row in group))
            following = children.get(block_hash, [])
        waiting.extend((child, prefix.branches) for child in following)
    cut_tree(roots, len(records))  # sorts
    return roots


def cut_tree(roots: list[Prefix], limit: int) -> int:
    """Keep ``limit`` prefixes, those near the roots and with many hits; how many that cuts off."""
    num_cut, level = 0, [roots]
    while level:
        below = []
        for siblings in level:
            siblings.sort(key=lambda prefix: (-prefix.hits, -prefix.end))
            num_cut += sum(1 + _num_below(prefix) for prefix in siblings[limit:])
            del siblings[limit:]
            limit -= len(siblings)
            below += [prefix.branches for prefix in siblings]
        level = below
    return num_cut


def _num_below(prefix: Prefix) -> int:
    count, waiting = 0, list(prefix.branches)
    while waiting:
        count += 1
        waiting += waiting.pop().branches
    return count


def show_tree(
    console: Console, roots: Sequence[Prefix], preview: Callable[[RecordKey], str]
) -> None:
    """Print prefixes, one a line."""
    tree = Tree("", hide_root=True)
    waiting = [(tree, root) for root in reversed(roots)]
    while waiting:
        place, prefix = waiting.pop()
        numbers = (
            f"{prefix.start:,}-{prefix.end:,} tokens  {format_bytes(prefix.num_bytes)}"
            f"  {prefix.hits:,} hits  "
        )
        branch = place.add(Text(numbers) + Text(preview(prefix.key), style="italic"))
        waiting += [(branch, child) for child in reversed(prefix.branches)]
    console.print(tree)


def make_decoder(model_path: str) -> Callable[[Sequence[int]], str]:
    """What turns ids into one line of text, or shows the ids if the tokenizer is not there."""
    try:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(Path(model_path) / "tokenizer.json"))
    # The library raises plain exceptions for files that it does not understand.
    except Exception:
        tokenizer = None

    def decode(token_ids: Sequence[int]) -> str:
        if tokenizer is None:
            text = " ".join(map(str, token_ids))
        else:
            decoded = tokenizer.decode(list(token_ids), skip_special_tokens=False)
            text = " ".join(decoded.split())
        return text if len(text) <= _PREVIEW_CHARS else f"{text[: _PREVIEW_CHARS - 1]}…"

    return decode
