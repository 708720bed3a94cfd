"""How an answer shows while it comes: finished blocks for good, the last one live under them."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.segment import Segment, Segments
from rich.text import Text

from ..console import format_duration
from .backend import Delta
from .markdown_blocks import AnswerMarkdown, BlockSplitter, split_blocks
from .screen import Screen

# A model may repeat what a file holds, and so could steer the terminal.
_CONTROLS = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)])
del _CONTROLS[ord("\n")], _CONTROLS[ord("\t")]


def make_view(screen: Screen) -> LiveView | PlainView:
    """What this screen can show."""
    return PlainView() if screen.is_plain else LiveView(screen.data)


class PlainView:
    """The text as it is: the answer on stdout, what was thought before on stderr."""

    def __init__(self) -> None:
        self._last: Delta | None = None

    def __enter__(self) -> PlainView:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end_line()

    def feed(self, delta: Delta) -> None:
        """See `ReplyView.feed`."""
        if self._last is not None and self._last.is_reasoning and not delta.is_reasoning:
            self._end_line()
            print(file=sys.stderr)
        stream = sys.stderr if delta.is_reasoning else sys.stdout
        text = delta.text.translate(_CONTROLS) if stream.isatty() else delta.text
        print(text, end="", file=stream, flush=True)
        self._last = delta

    def refresh(self) -> None:
        """See `ReplyView.refresh`; it is all there."""

    def _end_line(self) -> None:
        last = self._last
        if last is not None and not last.text.endswith("\n"):
            print(file=sys.stderr if last.is_reasoning else sys.stdout, flush=True)


class LiveView:
    """Markdown, and what was thought dimmed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._blocks = BlockSplitter()
        self._is_reasoning = False
        self._is_first = True
        self._live = Live(
            self,
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._started_at = time.monotonic()

    def __enter__(self) -> LiveView:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._print(self._blocks.close())
        self._is_first = False  # no clock any more
        self._live.stop()

    def feed(self, delta: Delta) -> None:
        """See `ReplyView.feed`."""
        if delta.is_reasoning != self._is_reasoning:
            self._print(self._blocks.close())
            self._is_reasoning = delta.is_reasoning
        self._print(self._blocks.feed(delta.text.translate(_CONTROLS)))

    def refresh(self) -> None:
        """See `ReplyView.refresh`."""
        self._live.refresh()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """What is live: as much of the end of the last block as the screen holds."""
        if self._is_first and not self._blocks.rest.strip():
            waited_s = time.monotonic() - self._started_at
            yield Text(f"… {format_duration(waited_s)}" if waited_s >= 1 else "…", "dim")
            return
        if not self._blocks.rest.strip():
            return
        # Rich would cut the end off instead, and the cursor cannot reach what has scrolled away.
        height = max(1, console.height - 2)
        lines = self._lines(_end_of(self._blocks.rest, height))
        yield from _joined(lines[-height:])

    def _print(self, text: str) -> None:
        if text.strip():
            lines = self._lines(text)
            self._is_first = False  # of what stands below when this is printed
            self._console.print(Segments(_joined(lines)), end="")

    def _lines(self, text: str) -> list[list[Segment]]:
        """The blocks, with exactly one empty line before each."""
        options = self._console.options.update(height=None)
        shown: list[list[Segment]] = []
        for block in split_blocks(text):
            look = Text(block, "dim") if self._is_reasoning else AnswerMarkdown(block)
            lines = self._console.render_lines(look, options, pad=False)
            while lines and _is_empty(lines[-1]):
                lines.pop()
            while lines and _is_empty(lines[0]):
                lines.pop(0)
            if lines and (shown or not self._is_first):
                shown.append([])
            shown += lines
        return shown


def _joined(lines: list[list[Segment]]) -> list[Segment]:
    return [segment for line in lines for segment in (*line, Segment.line())]


def _is_empty(line: list[Segment]) -> bool:
    return not any(segment.text.strip() for segment in line)


def _end_of(block: str, num_lines: int) -> str:
    """Its last lines, with what the first ones say of them: to colour all would take its time."""
    lines = block.split("\n")
    head = 1 if block.startswith(("```", "~~~")) else 2 if "|" in lines[0] else 0
    if len(lines) <= num_lines + head:
        return block
    return "\n".join(lines[:head] + lines[-num_lines:])
