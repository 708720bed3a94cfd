"""Threads that read records, and the requests that they work on."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence

from .record import Record, RecordKey

logger = logging.getLogger(__name__)


class Fetch:
    """Records on their way from the disk. Any thread may call its methods."""

    def __init__(
        self, keys: Sequence[RecordKey], on_done: Callable[[Fetch], None] | None = None
    ) -> None:
        self._keys = tuple(keys)
        self._on_done = on_done
        self._lock = threading.Lock()
        self._answers: dict[int, Record | None] = {}
        self._num_begun = self._num_answered = self._num_taken = 0
        self._is_cancelled = False

    def take(self) -> list[Record | None]:
        """What has arrived since the last call, in the order of the keys, without gaps.

        ``None`` stands for a record that is missing or damaged, or was cancelled.
        """
        taken = []
        with self._lock:
            while self._num_taken in self._answers:
                taken.append(self._answers.pop(self._num_taken))
                self._num_taken += 1
        return taken

    @property
    def is_done(self) -> bool:
        """Whether the last key has been answered; what it was may still have to be taken."""
        return self._num_answered == len(self._keys)

    def cancel(self) -> None:
        """Answer keys not yet begun with ``None``. `on_done` is called all the same."""
        self._is_cancelled = True

    def work(self, read: Callable[[RecordKey], Record | None]) -> None:
        """Answer keys until none is left that nobody has begun. Several threads may do so."""
        while True:
            with self._lock:
                number = self._num_begun
                if number == len(self._keys):
                    return
                self._num_begun += 1
            record = None
            if not self._is_cancelled:
                try:
                    record = read(self._keys[number])
                except Exception:
                    logger.exception("disk_cache_read_failed")
            with self._lock:
                self._answers[number] = record
                self._num_answered += 1
                is_last = self.is_done
            if is_last:
                self.finish()

    def finish(self) -> None:
        """Tell whoever waits."""
        if self._on_done is not None:
            try:
                self._on_done(self)
            except Exception:
                logger.exception("disk_cache_callback_failed")


class Readers:
    """Threads that work on fetches, the oldest first, all of them on the same one.

    Args:
        read: Reads one record; ``None`` if it cannot be had.
    """

    def __init__(self, read: Callable[[RecordKey], Record | None], num_threads: int) -> None:
        self._read = read
        self._is_closed = False
        # A fetch for each thread: whoever comes late finds nothing left to begin.
        self._queue: queue.SimpleQueue[Fetch | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"disk-cache-reader-{i}", daemon=True)
            for i in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, keys: Sequence[RecordKey], on_done: Callable[[Fetch], None] | None) -> Fetch:
        """Begin to fetch. A fetch of nothing, or after `close`, is done at once."""
        fetch = Fetch(keys, on_done)
        if not keys:
            fetch.finish()
        elif self._is_closed:
            fetch.cancel()
            fetch.work(self._read)
        else:
            for _ in self._threads:
                self._queue.put(fetch)
        return fetch

    def close(self, timeout_s: float) -> None:
        """Cancel what has not begun, and end the threads."""
        self._is_closed = True
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(timeout_s)

    def _run(self) -> None:
        while (fetch := self._queue.get()) is not None:
            if self._is_closed:
                fetch.cancel()
            fetch.work(self._read)
