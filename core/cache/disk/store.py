"""Files and index as one thing that many processes may change, within one cap.

Bytes are reserved in the index before they are written and stay there until they are deleted, both
under the folder's lock, so the cap holds at every moment. A process may die between any two lines.
"""

from __future__ import annotations

import enum
import errno
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .folder import Owner, TierFolder
from .index import GROWTH_BYTES, RecordIndex, RecordRow
from .index_file import delete_index, is_damage
from .reconcile import Repairs, drop_unfinished, reconcile
from .record import Namespace, Record, RecordKey
from .record_file import disk_bytes, encode_record, write_and_sync

logger = logging.getLogger(__name__)


class WriteOutcome(enum.Enum):
    """What became of a record."""

    WRITTEN = "written"
    KNOWN = "known"  # it was there, or somebody else is writing it
    REFUSED = "refused"  # larger than all that may be kept, or the folder was deleted meanwhile


class RecordStore:
    """For one thread. Its methods wait for the disk and for other processes.

    All of them raise `OSError` or `sqlite3.Error` if the disk or the folder fails them; the folder
    is then as if the process had died there, and a later call goes on.

    Args:
        max_bytes: Cap over all files of the folder; ``None`` for no more than there is.
        min_free_bytes: What is left free on the disk.

    Attributes:
        on_evicted: Hears of records that were deleted to make room.
        num_bytes: Bytes in the folder when last looked at.
        repairs: What the last opening had to put right.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int | None = None,
        min_free_bytes: int = 0,
    ) -> None:
        self.folder = TierFolder(folder)
        self.max_bytes = max_bytes
        self.min_free_bytes = min_free_bytes
        self.num_bytes = 0
        self.repairs = Repairs()
        self.on_evicted: Callable[[RecordRow], None] = lambda row: None
        self._owner: Owner | None = None
        self._index: RecordIndex | None = None

    @property
    def index(self) -> RecordIndex | None:
        """The index, for reading, while it is open. It may be another object after each call."""
        return self._index

    @contextmanager
    def exclusive(self) -> Iterator[RecordIndex]:
        """Lock the folder, and open a transaction on an index that agrees with the files."""
        with self.folder.locked():
            index = self._open()
            try:
                with index.transaction():
                    yield index
            except sqlite3.Error as error:
                if is_damage(error):
                    self.close()
                    delete_index(self.folder.index_path)
                raise

    def _open(self) -> RecordIndex:
        if self._index is not None and self._index.is_current():
            return self._index
        try:
            return self._open_anew()
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            logger.warning("disk_cache_index_rebuilt folder=%s error=%s", self.folder.base, error)
            delete_index(self.folder.index_path)
            return self._open_anew()

    def _open_anew(self) -> RecordIndex:
        self.close()
        index = RecordIndex(self.folder.index_path)
        try:
            self._owner = Owner(self.folder)
            self.repairs = reconcile(self.folder, index)
        except BaseException:
            index.close()
            raise
        self._index = index
        return index

    def close(self) -> None:
        """Let go of the folder."""
        if self._index is not None:
            self._index.close()
        if self._owner is not None:
            self._owner.close()
        self._index = self._owner = None

    def write(self, namespace: Namespace, record: Record) -> WriteOutcome:
        """Store a record, unless it is there.

        Raises:
            OSError: Also if there is no room left (``ENOSPC``).
        """
        pieces = encode_record(namespace.digest, record)
        num_bytes = disk_bytes(sum(memoryview(piece).nbytes for piece in pieces))
        has_room = True
        with self.exclusive() as index:
            assert self._owner is not None
            owner = self._owner
            drop_unfinished(self.folder, index, owner.name)
            if index.find(namespace.digest, record.key) is not None:
                return WriteOutcome.KNOWN
            if index.is_reserved(namespace.digest, record.key):
                return WriteOutcome.KNOWN
            if self._too_large(index, num_bytes):
                return WriteOutcome.REFUSED
            has_room = self._make_room(index, num_bytes)
            if has_room:
                self._describe(namespace)
                index.add_namespace(namespace.digest, namespace.to_json())
                index.reserve(owner.name, namespace.digest, record.key, num_bytes)
                owner.part_path.write_bytes(b"")
        # Not inside: the evictions that did happen must be committed.
        if not has_room:
            raise OSError(errno.ENOSPC, "no more room beside what others keep on the disk")
        try:
            with owner.part_path.open("r+b") as part:
                write_and_sync(part, pieces)
        except BaseException:
            owner.part_path.unlink(missing_ok=True)
            raise
        with self.exclusive() as index:
            if index.reservation(owner.name) != (namespace.digest, record.key):
                return WriteOutcome.REFUSED  # somebody deleted the index or the folder meanwhile
            path = self.folder.record_path(namespace.digest, record.key)
            path.parent.mkdir(parents=True, exist_ok=True)
            owner.part_path.rename(path)
            index.add(
                namespace.digest,
                record.key,
                parent=record.parent,
                num_tokens=record.num_tokens,
                num_bytes=num_bytes,
                at_unix=time.time(),
            )
            index.release(owner.name)
        return WriteOutcome.WRITTEN

    def remove(self, namespace: str, keys: Iterable[RecordKey]) -> None:
        """Delete records that are of no use to anybody."""
        with self.exclusive() as index:
            for key in keys:
                row = index.find(namespace, key)
                self.folder.record_path(namespace, key).unlink(missing_ok=True)
                if row is not None:
                    index.remove(row.id)

    def touch(self, namespace: str, uses: Iterable[tuple[RecordKey, int]]) -> None:
        """Note how often records were of use, which also makes them the last to be evicted."""
        with self.exclusive() as index:
            index.touch(namespace, uses)

    def delete(self, index: RecordIndex, row: RecordRow) -> None:
        """Delete one record, inside `exclusive`."""
        # First the file: as long as it takes room, the index has to say so.
        self.folder.record_path(row.namespace, row.key).unlink(missing_ok=True)
        index.remove(row.id)

    def is_short_of_disk(self) -> bool:
        """Whether others have filled the disk so far that records should go."""
        return self.folder.free_bytes() < self.min_free_bytes

    def shrink(self) -> None:
        """Evict what goes beyond the cap or what the disk has to spare."""
        with self.exclusive() as index:
            self._make_room(index, 0)

    def _too_large(self, index: RecordIndex, num_bytes: int) -> bool:
        return self.max_bytes is not None and num_bytes > self.max_bytes - _own_bytes(index)

    def _make_room(self, index: RecordIndex, needed: int) -> bool:
        """Evict until ``needed`` bytes fit; whether they do."""
        stored, reserved = index.stored_bytes(), index.reserved_bytes()
        # Deleting records moves bytes from one term to the other.
        limit = stored + self.folder.free_bytes() - self.min_free_bytes
        if self.max_bytes is not None:
            limit = min(limit, self.max_bytes - _own_bytes(index))
        limit -= reserved + needed
        if limit >= 0 or not needed:
            # One by one: with the end of a text gone, what came before it may be the next.
            while stored > limit and (victims := index.oldest_leaves(1)):
                self.delete(index, victims[0])
                self.on_evicted(victims[0])
                stored -= victims[0].num_bytes
        self.num_bytes = stored + reserved + index.file_bytes()
        return stored <= limit

    def _describe(self, namespace: Namespace) -> None:
        path = self.folder.namespace_path(namespace.digest) / "namespace.json"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_text(namespace.to_json(), encoding="utf-8")


def _own_bytes(index: RecordIndex) -> int:
    return index.file_bytes() + GROWTH_BYTES
