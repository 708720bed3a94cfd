"""Shows on stderr how a model gets ready: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from pippin.core.models.progress import Stage


class LoadDisplay:
    """A `pippin.core.models.progress.Progress` for people. Use it as a context manager.

    Calls may come from another thread than the one that opened it.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            DownloadColumn(binary_units=True),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> LoadDisplay:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def start(self, stage: Stage, text: str, *, total_bytes: int | None = None) -> None:
        """Begin a stage: a bar, or a line where bars cannot be drawn."""
        self.finish()
        if self._console.is_terminal:
            self._task = self._bars.add_task(text, total=total_bytes)
        else:
            self.note(text)

    def update(self, done_bytes: int, *, total_bytes: int | None = None) -> None:
        """Move the bar. Lines would be too many, so elsewhere nothing happens."""
        if self._task is not None:
            self._bars.update(self._task, completed=done_bytes)
            if total_bytes is not None:
                self._bars.update(self._task, total=total_bytes)

    def note(self, text: str) -> None:
        """Say one line above the bars."""
        self._console.print(text, markup=False, soft_wrap=True)

    def finish(self) -> None:
        """End the current stage."""
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None
