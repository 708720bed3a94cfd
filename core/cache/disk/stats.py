"""Numbers of one disk tier."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskStats:
    """What one tier has done since it was opened, and what is there now.

    Attributes:
        folder: Where it keeps them.
        num_records: Records of this namespace that can be asked for.
        num_bytes: Bytes in the whole folder, all namespaces and the index, when last looked at.
        max_bytes: The cap on them.
        queued_bytes: Waiting to be written.
        spilled: Records written; `spilled_bytes` of payload.
        restored: Records read and found whole; `restored_bytes` of payload.
        dropped: Records refused or lost on their way: queue full, disk full, too large.
        evicted: Records deleted to make room, of any namespace.
        corrupt: Records found damaged, and deleted.
        missing: Records that were expected but that somebody else had deleted.
        is_writing: Whether the disk takes records; otherwise it is tried again from time to time.
    """

    folder: str
    num_records: int
    num_bytes: int
    max_bytes: int
    queued_bytes: int
    is_writing: bool
    spilled: int = 0
    spilled_bytes: int = 0
    restored: int = 0
    restored_bytes: int = 0
    dropped: int = 0
    evicted: int = 0
    corrupt: int = 0
    missing: int = 0


class Tally:
    """The counters of `DiskStats`, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, **amounts: int) -> None:
        """Add to counters by name."""
        with self._lock:
            self._counts.update(amounts)

    def counts(self) -> dict[str, int]:
        """All counters that are not zero."""
        with self._lock:
            return dict(self._counts)
