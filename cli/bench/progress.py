"""How far a run is, on stderr: a line that lives on a terminal, and a line for each load.

Drawing takes a millisecond or two in which nothing is read from the server, so it is done twice a
second and no more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from ..console import format_duration
from .answer import Answer

_INTERVAL_S = 0.5


class BenchProgress:
    """Told of everything that happens.

    Args:
        console: On stderr.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._num_done = self._num_failed = self._num_tokens = 0
        self._begun_at = 0.0

    def say(self, line: str) -> None:
        """Print a line."""
        self._console.print(line, markup=False, soft_wrap=True)

    def count(self, answer: Answer) -> None:
        """One more has ended."""
        self._num_done += 1
        self._num_failed += answer.failure is not None
        self._num_tokens += answer.output_tokens or 0

    def say_state(self, what: str) -> None:
        """Print how it has ended."""
        self.say(f"{what}: {self._state()}")

    @asynccontextmanager
    async def show(
        self, what: str, *, total: float | None, is_timed: bool = False
    ) -> AsyncIterator[None]:
        """Show one load for as long as the block lasts.

        Args:
            total: Requests, or seconds if `is_timed`.
        """
        self._num_done = self._num_failed = self._num_tokens = 0
        self._begun_at = time.perf_counter()
        is_live = self._console.is_terminal and not self._console.is_dumb_terminal
        columns = (
            TextColumn("{task.description}"),
            BarColumn(24),
            TextColumn("{task.fields[now]}"),
        )
        with Progress(
            *columns, console=self._console, transient=True, auto_refresh=False, disable=not is_live
        ) as bar:
            task = bar.add_task(what, total=total, now="")
            drawing = asyncio.create_task(self._keep_drawing(bar, task, is_timed=is_timed))
            try:
                yield
            finally:
                drawing.cancel()

    async def _keep_drawing(self, bar: Progress, task: TaskID, *, is_timed: bool) -> None:
        while True:
            done = time.perf_counter() - self._begun_at if is_timed else self._num_done
            bar.update(task, completed=done, now=self._state(), refresh=True)
            await asyncio.sleep(_INTERVAL_S)

    def _state(self) -> str:
        elapsed_s = time.perf_counter() - self._begun_at
        parts = [f"{self._num_done:,} done"]
        if self._num_failed:
            parts.append(f"{self._num_failed:,} failed")
        if self._num_tokens:
            parts.append(f"{self._num_tokens / elapsed_s:,.0f} tok/s")
        return ", ".join([*parts, format_duration(elapsed_s)])
