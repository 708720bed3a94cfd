"""What is written, and how much the terminal can do."""

from __future__ import annotations

import os
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from rich.console import Console, RenderableType
from rich.text import Text

from ..console import make_data_console, make_talk_console


class Screen:
    """Answers go to stdout, everything else to stderr.

    Attributes:
        is_plain: Write neither colours nor cursor movements: into a file or a pipe, on a dumb
            terminal, or because the user wants none.
        can_edit: Lines can be edited with the cursor.
    """

    def __init__(self) -> None:
        is_dumb = os.environ.get("TERM", "dumb") in ("dumb", "unknown", "")
        self.can_edit = not is_dumb and _is_terminal(sys.stdin) and _is_terminal(sys.stdout)
        self.is_plain = is_dumb or bool(os.environ.get("NO_COLOR")) or not _is_terminal(sys.stdout)
        plain = Console(stderr=True, force_terminal=False, highlight=False)
        self.talk = plain if self.is_plain else make_talk_console()
        self.data = make_data_console()

    def say(self, text: str) -> None:
        """A dim line for people."""
        self.talk.print(Text(text, "dim"), soft_wrap=self.is_plain)

    def show(self, renderable: RenderableType) -> None:
        """Something larger for people."""
        self.talk.print(renderable)

    def complain(self, text: str) -> None:
        """A line about what went wrong."""
        self.talk.print(Text(" ".join(text.split()), "red"), soft_wrap=self.is_plain)

    @contextmanager
    def quiet_keys(self) -> Iterator[None]:
        """What is typed meanwhile waits for the next prompt instead of showing in the answer."""
        if not _is_terminal(sys.stdin):
            yield
            return
        before = termios.tcgetattr(sys.stdin)
        quiet = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, quiet)
        try:
            yield
        finally:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def is_piped() -> bool:
    """Whether stdin is no terminal, so that all of it is the one prompt."""
    return not _is_terminal(sys.stdin)


def _is_terminal(stream: IO[str] | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()
