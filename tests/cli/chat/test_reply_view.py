"""What stands on the screen when an answer has come, and that nothing in it can steer it."""

import io
import re
import sys

import pytest
from rich.console import Console

from pippin.cli.chat.backend import Delta
from pippin.cli.chat.reply_view import LiveView, PlainView

ANSWER = "# Head\n\ntext **bold**\n\n- a\n- b\n\n```\ncode\n```\n\nend"


def play(*deltas: Delta, height: int = 24) -> tuple[str, str]:
    """The whole output, and the lines that were printed for good."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=40, height=height, _environ={})
    with LiveView(console) as view:
        view.refresh()
        for delta in deltas:
            view.feed(delta)
            view.refresh()
    return file.getvalue(), final_screen(file.getvalue(), height)


def final_screen(output: str, height: int) -> str:
    """Plays the few movements that the view makes: up, to the line's begin, and wiping a line."""
    lines, row = [""], 0
    for part in re.split(r"(\x1b\[[0-9;?]*[a-zA-Z]|\n|\r)", output):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1] or 1)
            assert row >= len(lines) - height, "the cursor cannot reach what has scrolled away"
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part and part != "\r" and not part.startswith("\x1b"):
            lines[row] += part
    return "\n".join(line.rstrip() for line in lines).strip("\n")


def test_the_screen_ends_as_if_the_answer_had_come_at_once() -> None:
    _, at_once = play(Delta(ANSWER))
    _, in_pieces = play(*(Delta(char) for char in ANSWER))
    assert in_pieces == at_once
    assert at_once == "Head\n\ntext bold\n\n • a\n • b\n\n code\n\nend"


def test_reasoning_is_dim_and_apart() -> None:
    output, screen = play(Delta("I think\n\nso", is_reasoning=True), Delta("an"), Delta("swer"))
    assert screen == "I think\n\nso\n\nanswer"
    assert "\x1b[2mI think" in output
    assert "\x1b[2man" not in output


def test_a_block_larger_than_the_screen_shows_its_end_and_is_whole_at_last() -> None:
    lines = [f"line {number}" for number in range(50)]
    _, screen = play(*(Delta(f"{line}\n") for line in ["```", *lines, "```"]), height=10)
    assert screen.split() == " ".join(lines).split()


def test_what_steers_a_terminal_does_not_reach_it() -> None:
    output, screen = play(
        Delta("a\x1b]0;title\x07b\x9b31m\rc"), Delta("\x1b[2Jd", is_reasoning=True)
    )
    assert screen == "a]0;titleb31mc\n\n[2Jd"
    assert "\x1b]0" not in output
    assert "\x1b[2J" not in output
    assert "\x9b" not in output


def test_plain_text_goes_to_stdout_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with PlainView() as view:
        for delta in (Delta("hm", is_reasoning=True), Delta("# a\x1b"), Delta("b")):
            view.feed(delta)
    assert capsys.readouterr() == ("# a\x1bb\n", "hm\n\n")


def test_a_dumb_terminal_is_not_steered_either(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with PlainView() as view:
        view.feed(Delta("a\x1b[31m\n"))
    assert capsys.readouterr().out == "a[31m\n"
