"""Finished blocks are finished: however a text is cut, it looks the same in the end."""

import io

from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from pippin.cli.chat.markdown_blocks import AnswerMarkdown, BlockSplitter

LINES = st.sampled_from(
    [
        *("word", "", "", "- item", "  more", "1. first", "2. second", "# head", "> quote"),
        *("```", "~~~py", "x = 1", "    code", "---", "| a | b |", "|---|---|", "| 1 | 2 |"),
        *("<b>tag</b>", "\u2028", "  - inner", "===", "#", "**bold", "bold**"),
    ]
)
TEXTS = st.lists(LINES, max_size=12).map("\n".join)


def split(text: str, cuts: list[int]) -> list[str]:
    splitter, blocks, start = BlockSplitter(), list[str](), 0
    for end in [*sorted(cut % (len(text) + 1) for cut in cuts), len(text)]:
        blocks.append(splitter.feed(text[start:end]))
        start = end
    return [block for block in [*blocks, splitter.close()] if block]


def looks(text: str) -> list[str]:
    console = Console(file=io.StringIO(), width=60)
    console.print(AnswerMarkdown(text))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]


@given(TEXTS, st.lists(st.integers(0, 200)))
@example("text\n#foo\n", list(range(11)))
@example("\u2028\n---\nword\nword", [])
@example("- a\n\n  still a\n\nend", list(range(20)))
def test_any_cut_gives_the_same_text_and_look(text: str, cuts: list[int]) -> None:
    blocks = split(text, cuts)
    assert "".join(blocks) == text
    assert [line for block in blocks for line in looks(block)] == looks(text)


def test_a_block_is_out_as_soon_as_the_next_one_begins() -> None:
    splitter = BlockSplitter()
    assert splitter.feed("one\nstill one\n\n") == ""
    assert splitter.feed("```\ncode\n") == "one\nstill one\n\n"
    assert splitter.feed("\nmore code\n```\n") == ""
    assert splitter.feed("two\n") == "```\ncode\n\nmore code\n```\n"
    assert splitter.close() == "two\n"


def test_tags_and_line_ends_are_shown() -> None:
    assert looks("a <think>b</think>\n<div>c</div>") == ["a <think>b</think>", "<div>c</div>"]
