"""The disk tier as the engine sees it: nothing here waits for the disk."""

from __future__ import annotations

import errno
import logging
import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import compress
from pathlib import Path

from ...errors import ConfigError
from .catalog import Catalog
from .folder import TierFolder
from .reader import Fetch, Readers
from .record import Namespace, Record, RecordKey
from .record_file import DamagedRecordError, read_record
from .stats import DiskStats, Tally
from .store import RecordStore
from .writer import SpillWriter

logger = logging.getLogger(__name__)

MIN_MAX_BYTES = 8 * 1024**2
# By default: this share of what is free or ours already, and never more than that.
_DEFAULT_SHARE = 0.1
_DEFAULT_MOST_BYTES = 16 * 1024**3
_MAX_FREE_BYTES = 2 * 1024**3


class DiskTier:
    """Records of one namespace in a folder that other tiers and processes may share.

    All methods return at once, but for those with a timeout. The first use of the folder (and its
    repair) goes on in the background; until it is done nothing is found.

    Args:
        folder: Made if missing. If it cannot be written, the tier only reads, and says so once.
        max_bytes: Cap over all files in the folder, at least 8 MiB.
        max_queued_bytes: Most bytes that wait for the disk.
        min_free_bytes: Bytes of the disk that are left to others; ``None`` is 5 %, 2 GiB at most.
        num_readers: Threads that read.
        retry_s: Seconds until writing is tried again after the disk failed.

    Raises:
        ConfigError: `max_bytes` is too small.
    """

    def __init__(
        self,
        folder: Path,
        namespace: Namespace,
        *,
        max_bytes: int,
        max_queued_bytes: int = 256 * 1024**2,
        min_free_bytes: int | None = None,
        num_readers: int = 2,
        retry_s: float = 30.0,
    ) -> None:
        if max_bytes < MIN_MAX_BYTES:
            raise ConfigError(f"a disk cache needs at least {MIN_MAX_BYTES} bytes, not {max_bytes}")
        if min_free_bytes is None:
            min_free_bytes = min(_disk_usage(folder).total // 20, _MAX_FREE_BYTES)
        self._max_bytes = max_bytes
        self._digest = namespace.digest
        # Its own, not the writer's: reading needs neither lock nor index.
        self._folder = TierFolder(folder)
        self._tally = Tally()
        self._catalog = Catalog(self._digest)
        self._has_warned = False
        self._warning_lock = threading.Lock()
        self._writer = SpillWriter(
            RecordStore(folder, max_bytes=max_bytes, min_free_bytes=min_free_bytes),
            namespace,
            self._catalog,
            self._tally,
            max_queued_bytes=max_queued_bytes,
            retry_s=retry_s,
        )
        self._readers = Readers(self._read, num_readers)

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until what lies in the folder is known; whether it is."""
        return self._writer.wait_ready(timeout_s)

    def put(self, record: Record) -> bool:
        """Have a record written soon, unless it is stored already; ``False`` if it was refused.

        Until it is written, it is found as if it were.
        """
        return record.key in self._catalog.keys or self._writer.put(record)

    def contains(self, keys: Iterable[RecordKey]) -> list[bool]:
        """Which records would be found, from memory. Another process may still delete them."""
        stored, pending = self._catalog.keys, self._writer.pending
        return [key in stored or pending(key) is not None for key in keys]

    def touch(self, keys: Iterable[RecordKey]) -> None:
        """Say that records were of use without being fetched, as when the memory had them too."""
        asked = list(keys)
        self._writer.touch(compress(asked, self.contains(asked)))

    def fetch(
        self, keys: Sequence[RecordKey], on_done: Callable[[Fetch], None] | None = None
    ) -> Fetch:
        """Read records, in this order as far as several readers go.

        Everything fetched is in memory until it is taken, so ask for no more than fits.

        Args:
            on_done: Called once, on a reader's thread, when the last key is answered.
        """
        return self._readers.submit(keys, on_done)

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait to be written."""
        return self._writer.queued_bytes

    @property
    def queued_records(self) -> int:
        """Records that are not written yet."""
        return self._writer.queued_records

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was put before is written or dropped; whether it is."""
        return self._writer.flush(timeout_s)

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what is queued as far as time allows, and end the threads."""
        self._readers.close(timeout_s)
        self._writer.close(timeout_s)

    def stats(self) -> DiskStats:
        """Where it stands now."""
        return DiskStats(
            folder=str(self._folder.base),
            num_records=len(self._catalog.keys),
            num_bytes=self._writer.num_bytes,
            max_bytes=self._max_bytes,
            queued_bytes=self._writer.queued_bytes,
            is_writing=not self._writer.has_failed,
            **self._tally.counts(),
        )

    def _read(self, key: RecordKey) -> Record | None:
        record = self._writer.pending(key)
        if record is None:
            try:
                record = read_record(self._folder.record_path(self._digest, key), self._digest, key)
            except FileNotFoundError:
                if key in self._catalog.keys:
                    self._tally.add(missing=1)
                    self._writer.discard(key)
                return None
            except DamagedRecordError as error:
                self._discard_damaged(key, error)
                return None
            except (OSError, MemoryError) as error:
                # Too many open files, say: the record may be fine.
                if getattr(error, "errno", None) == errno.EIO:
                    self._discard_damaged(key, error)
                else:
                    logger.warning("disk_cache_unreadable error=%s", error)
                return None
        self._writer.touch([key])
        self._tally.add(restored=1, restored_bytes=record.payload_bytes)
        return record

    def _discard_damaged(self, key: RecordKey, error: Exception) -> None:
        with self._warning_lock:
            level = logging.DEBUG if self._has_warned else logging.WARNING
            self._has_warned = True
        logger.log(
            level,
            "disk_cache_record_damaged namespace=%s block_hash=%s kind=%s error=%s",
            *(self._digest, key.block_hash.hex(), key.kind, error),
        )
        self._tally.add(corrupt=1)
        self._writer.discard(key)


def default_disk_bytes(folder: Path) -> int:
    """A modest cap for a folder, by the free space of its disk."""
    share = int(_disk_usage(folder).free * _DEFAULT_SHARE)
    return max(MIN_MAX_BYTES, min(share, _DEFAULT_MOST_BYTES))


def _disk_usage(folder: Path) -> shutil._ntuple_diskusage:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder)
