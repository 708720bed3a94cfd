"""The thread that does everything slow to the folder: writes, deletes, keeps the index.

Others leave work in memory and go on. If the disk fails, the work is dropped: it was only a copy.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import TypeVar

from .catalog import Catalog
from .index import RecordRow
from .index_file import is_damage
from .record import Namespace, Record, RecordKey
from .stats import Tally
from .store import RecordStore, WriteOutcome

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_LOOK_S = 2.0
_RETRY_S = 30.0
# Some file systems free deleted bytes late, and must not be taken for full meanwhile.
_SHRINK_S = 30.0
# Uses noted in one transaction: more would swell the index's log.
_MAX_USES = 64


class SpillWriter:
    """Owner of a `RecordStore`, which its thread alone touches.

    Args:
        max_queued_bytes: Most bytes of payload that wait. One alone is always taken.
        retry_s: Seconds without writing after the disk failed.
    """

    def __init__(
        self,
        store: RecordStore,
        namespace: Namespace,
        catalog: Catalog,
        tally: Tally,
        *,
        max_queued_bytes: int,
        retry_s: float = _RETRY_S,
    ) -> None:
        self._store = store
        self._store.on_evicted = self._forget
        self._namespace = namespace
        self._digest = namespace.digest
        self._catalog = catalog
        self._tally = tally
        self._max_queued_bytes = max_queued_bytes
        self._retry_s = retry_s
        self._wake = threading.Condition()
        self._queue: deque[Record] = deque()
        # Queued or being written: found here until they are found on the disk.
        self._pending: dict[RecordKey, Record] = {}
        self._queued_bytes = 0
        self._uses: Counter[RecordKey] = Counter()
        self._useless: set[RecordKey] = set()
        self._is_busy = True
        self._is_hurried = False
        self._close_by: float | None = None
        self._has_failed = False
        self._paused_until = 0.0
        self._shrink_at = 0.0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="disk-cache-writer", daemon=True)
        self._thread.start()

    @property
    def num_bytes(self) -> int:
        """Bytes in the folder when last looked at."""
        return self._store.num_bytes

    @property
    def queued_bytes(self) -> int:
        """Payload that is not written yet."""
        return self._queued_bytes

    @property
    def queued_records(self) -> int:
        """Records that are not written yet."""
        return len(self._pending)

    @property
    def has_failed(self) -> bool:
        """Whether the disk refused what it was last asked to do."""
        return self._has_failed

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until the folder was looked at; whether it was."""
        return self._ready.wait(timeout_s)

    def pending(self, key: RecordKey) -> Record | None:
        """A record that is not written yet."""
        return self._pending.get(key)

    def put(self, record: Record) -> bool:
        """Queue a record; whether there was room."""
        num_bytes = record.payload_bytes
        with self._wake:
            if record.key in self._pending:
                return True
            has_room = self._queued_bytes + num_bytes <= self._max_queued_bytes
            is_open = self._close_by is None and time.monotonic() >= self._paused_until
            if not (is_open and (has_room or not self._pending)):
                self._tally.add(dropped=1)
                return False
            self._queue.append(record)
            self._pending[record.key] = record
            self._queued_bytes += num_bytes
            self._wake.notify_all()
        return True

    def touch(self, keys: Iterable[RecordKey]) -> None:
        """Note soon that records were of use."""
        with self._wake:
            self._uses.update(keys)

    def discard(self, key: RecordKey) -> None:
        """Delete a record soon; it is not found any more."""
        self._catalog.keys.discard(key)
        with self._wake:
            self._useless.add(key)
            self._wake.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until there is nothing left to do; whether there is."""
        with self._wake:
            self._is_hurried = True
            self._wake.notify_all()
            return self._wake.wait_for(
                lambda: not (self._queue or self._uses or self._useless or self._is_busy),
                timeout_s,
            )

    def close(self, timeout_s: float) -> None:
        """End the thread after what can be written in time."""
        with self._wake:
            self._close_by = time.monotonic() + timeout_s
            self._wake.notify_all()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        self._attempt(self._store.shrink)
        self._attempt(self._look_around)
        self._ready.set()
        look_at = time.monotonic() + _LOOK_S
        is_over = False
        while not is_over:
            with self._wake:
                self._is_busy = False
                self._wake.notify_all()
                self._wake.wait_for(self._has_work, max(0.0, look_at - time.monotonic()))
                self._is_busy = True
                record = self._queue.popleft() if self._queue else None
                self._is_hurried = self._is_hurried and record is not None
                close_by = self._close_by
            now = time.monotonic()
            is_over = close_by is not None and (record is None or now > close_by)
            if record is not None:
                self._write(record)
            if record is None or now >= look_at:
                self._attempt(self._write_notes)
            if now >= look_at:
                self._attempt(self._look_around)
                look_at = time.monotonic() + _LOOK_S
        self._drop_queue()
        self._attempt(self._store.close)
        with self._wake:
            self._is_busy = False
            self._wake.notify_all()

    def _has_work(self) -> bool:
        is_closing = self._close_by is not None
        return bool(self._queue or self._useless or self._is_hurried or is_closing)

    def _write(self, record: Record) -> None:
        outcome = self._attempt(lambda: self._store.write(self._namespace, record))
        num_bytes = record.payload_bytes
        if outcome is WriteOutcome.WRITTEN:
            self._tally.add(spilled=1, spilled_bytes=num_bytes)
        elif outcome is not WriteOutcome.KNOWN:
            self._tally.add(dropped=1)
        with self._wake:
            if outcome in (WriteOutcome.WRITTEN, WriteOutcome.KNOWN):
                self._catalog.keys.add(record.key)
            del self._pending[record.key]
            self._queued_bytes -= num_bytes
        if outcome is None and time.monotonic() < self._paused_until:
            self._drop_queue()
        elif outcome is WriteOutcome.WRITTEN and self._has_failed:
            self._has_failed = False
            logger.info("disk_cache_resumed folder=%s", self._store.folder.base)

    def _write_notes(self) -> None:
        with self._wake:
            useless, self._useless = self._useless, set()
            uses, self._uses = list(self._uses.items()), Counter()
        if time.monotonic() < self._paused_until:
            return  # they are hints
        if useless:
            self._store.remove(self._digest, useless)
        for start in range(0, len(uses), _MAX_USES):
            self._store.touch(self._digest, uses[start : start + _MAX_USES])

    def _look_around(self) -> None:
        self._catalog.refresh(self._store)
        now = time.monotonic()
        if now >= self._shrink_at and self._store.is_short_of_disk():
            self._shrink_at = now + _SHRINK_S
            self._store.shrink()

    def _forget(self, row: RecordRow) -> None:
        self._tally.add(evicted=1)
        if row.namespace == self._digest:
            self._catalog.keys.discard(row.key)

    def _drop_queue(self) -> None:
        with self._wake:
            self._tally.add(dropped=len(self._queue))
            for record in self._queue:
                del self._pending[record.key]
                self._queued_bytes -= record.payload_bytes
            self._queue.clear()

    def _attempt(self, work: Callable[[], _T]) -> _T | None:
        """What ``work`` returns, or ``None`` if the disk failed it."""
        folder = self._store.folder.base
        try:
            return work()
        except (OSError, sqlite3.Error) as error:
            if is_damage(error):
                # It was deleted, and is made again at the next use.
                logger.warning("disk_cache_index_damaged folder=%s error=%s", folder, error)
                return None
            if not self._has_failed:
                logger.warning(
                    "disk_cache_not_writable folder=%s error=%s (it is tried again every %.0f s)",
                    *(folder, error, self._retry_s),
                )
            self._has_failed = True
            self._paused_until = time.monotonic() + self._retry_s
        except Exception:
            logger.exception("disk_cache_fault folder=%s", folder)
        return None
