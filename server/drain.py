"""Whether the server is about to stop, and what still runs. Lives on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Drain:
    """Counts requests that do work, and tells when the last one has ended."""

    def __init__(self) -> None:
        self._started = False
        self._num_running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def is_draining(self) -> bool:
        """Whether new work is refused."""
        return self._started

    @property
    def num_running(self) -> int:
        """Requests that have begun and not ended."""
        return self._num_running

    def start(self) -> None:
        """Refuse new work from now on. Harmless twice."""
        self._started = True

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count one request for as long as the block lasts."""
        self._num_running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._num_running -= 1
            if not self._num_running:
                self._idle.set()

    async def wait_idle(self) -> None:
        """Return when nothing runs."""
        await self._idle.wait()
