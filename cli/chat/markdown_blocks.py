"""Markdown that grows: which blocks are finished, and how a block looks."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import JustifyMethod
from rich.markdown import Heading, Markdown

# Without HTML: it would be left out, and a model that writes about tags means them to be seen.
_PARSER = MarkdownIt(options_update={"html": False}).enable(["strikethrough", "table"])


def split_blocks(text: str) -> list[str]:
    """The blocks that a text is made of, each with the empty lines after it."""
    lines = [f"{line}\n" for line in text.split("\n")]
    lines[-1] = lines[-1][:-1]
    # Levels tell the blocks of the text from those inside of one.
    starts = [
        token.map[0] for token in _PARSER.parse(text) if token.map is not None and token.level == 0
    ]
    borders = [0, *starts[1:], len(lines)]
    return ["".join(lines[start:end]) for start, end in pairwise(borders)]


class BlockSplitter:
    """Tells which blocks are finished, as text comes in any pieces.

    Attributes:
        rest: What is not finished.
    """

    def __init__(self) -> None:
        self.rest = ""

    def feed(self, text: str) -> str:
        """The blocks that nothing to come can change, together; or an empty text."""
        self.rest += text
        if "\n" not in text:
            return ""
        # A line that is not complete may yet become anything. And the last block may go on: an item
        # may follow, or a line that belongs to the paragraph.
        complete = self.rest[: self.rest.rindex("\n") + 1]
        finished = "".join(split_blocks(complete)[:-1])
        self.rest = self.rest[len(finished) :]
        return finished

    def close(self) -> str:
        """All that is left."""
        rest, self.rest = self.rest, ""
        return rest


class _LeftHeading(Heading):
    LEVEL_ALIGN: ClassVar[dict[str, JustifyMethod]] = {}


class AnswerMarkdown(Markdown):
    """Markdown as models mean it: tags are text, and a line's end is one."""

    elements = Markdown.elements | {"heading_open": _LeftHeading}

    def __init__(self, text: str) -> None:
        # Colours of the terminal, which suit its background, and addresses that can be copied.
        super().__init__(text, code_theme="ansi_dark", hyperlinks=False)
        self.parsed = _PARSER.parse(text)
        for token in self.parsed:
            for child in token.children or ():
                _break_line(child)


def _break_line(token: Token) -> None:
    if token.type == "softbreak":
        token.type = "hardbreak"
