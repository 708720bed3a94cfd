"""The index of the disk tier: which records there are, how large, how long unused. SQLite, WAL.

It can be lost at any time: `reconcile` makes it again from the files. Its numbers of bytes are the
truth for the cap, so a row exists from before its file is there until after it is gone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .index_file import connect, connect_read_only, side_files
from .record import RecordKey

# What the index may grow by between two looks at its size.
GROWTH_BYTES = 2 * 1024**2

_ROW = """
SELECT record.id, digest, block_hash, kind, parent, num_tokens, num_bytes, created_unix, used_unix,
    hits FROM record JOIN namespace ON namespace.id = record.namespace
"""


@dataclass(frozen=True, slots=True)
class RecordRow:
    """What the index knows of a record. The times are for people; nothing is decided by them."""

    id: int
    namespace: str
    key: RecordKey
    parent: bytes | None
    num_tokens: int
    num_bytes: int
    created_unix: float
    used_unix: float
    hits: int


class RecordIndex:
    """One connection. Everything that writes wants the folder's lock and a `transaction`.

    Args:
        path: Made if missing, unless `read_only`.

    Raises:
        sqlite3.Error: It cannot be opened; see `is_damage`.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._db = connect_read_only(path) if read_only else connect(path)
        self._inode = path.stat().st_ino

    def is_current(self) -> bool:
        """Whether the file under the index's name is still the one that is open."""
        try:
            return self.path.stat().st_ino == self._inode
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")  # which had failed
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def file_bytes(self) -> int:
        """Length of the index's own files."""
        total = 0
        for path in (self.path, *side_files(self.path)):
            with suppress(FileNotFoundError):
                total += path.stat().st_size
        return total

    def stored_bytes(self) -> int:
        """Bytes of all records, in all namespaces."""
        [num_bytes] = self._db.execute("SELECT num_bytes FROM state").fetchone()
        return int(num_bytes)

    def reserved_bytes(self) -> int:
        """Bytes of records that are being written."""
        [num_bytes] = self._db.execute(
            "SELECT coalesce(sum(num_bytes), 0) FROM reservation"
        ).fetchone()
        return int(num_bytes)

    def data_version(self) -> int:
        """A number that changes when another connection has written."""
        [version] = self._db.execute("PRAGMA data_version").fetchone()
        return int(version)

    def namespaces(self) -> dict[str, str]:
        """Descriptions, by digest."""
        return dict(self._db.execute("SELECT digest, description FROM namespace"))

    def add_namespace(self, digest: str, description: str) -> None:
        """Describe a namespace; an empty object does not replace a description."""
        self._db.execute(
            "INSERT INTO namespace (digest, description) VALUES (?, ?) ON CONFLICT DO UPDATE"
            " SET description = excluded.description"
            " WHERE excluded.description NOT IN (description, '{}')",
            (digest, description),
        )

    def remove_namespace(self, digest: str) -> bool:
        """Forget a namespace unless it has records, also such as are being written."""
        removed = self._db.execute(
            "DELETE FROM namespace WHERE digest = ?"
            " AND NOT EXISTS (SELECT 1 FROM record WHERE namespace = namespace.id)"
            " AND NOT EXISTS (SELECT 1 FROM reservation WHERE namespace = namespace.id)",
            (digest,),
        )
        return removed.rowcount > 0

    def keys(self, namespace: str, *, after: int = 0) -> list[tuple[int, RecordKey, int]]:
        """Row ids, keys and bytes of the records that were added after the row ``after``."""
        found = self._db.execute(
            "SELECT id, block_hash, kind, num_bytes FROM record WHERE id > ? AND namespace = "
            "(SELECT id FROM namespace WHERE digest = ?) ORDER BY id",
            (after, namespace),
        )
        return [(row[0], RecordKey(row[1], row[2]), row[3]) for row in found]

    def rows(self, namespace: str) -> list[RecordRow]:
        """All records of a namespace, in the order of their texts' tokens."""
        return list(self._rows("WHERE digest = ? ORDER BY num_tokens, record.id", (namespace,)))

    def find(self, namespace: str, key: RecordKey) -> RecordRow | None:
        """One record."""
        where = "WHERE digest = ? AND kind = ? AND block_hash = ?"
        return next(self._rows(where, (namespace, key.kind, key.block_hash)), None)

    def oldest_leaves(
        self,
        limit: int,
        *,
        used_before_unix: float | None = None,
        namespaces: Sequence[str] | None = None,
    ) -> list[RecordRow]:
        """Least recently used records that are no other's parent; of these namespaces, if given."""
        where, values = "WHERE num_children = 0", list[object]()
        if used_before_unix is not None:
            where += " AND used_unix < ?"
            values.append(used_before_unix)
        if namespaces is not None:
            where += " AND digest IN (SELECT value FROM json_each(?))"
            values.append(json.dumps(namespaces))
        return list(self._rows(f"{where} ORDER BY used LIMIT ?", (*values, limit)))

    def _rows(self, where: str, values: Iterable[object]) -> Iterator[RecordRow]:
        for row in self._db.execute(_ROW + where, tuple(values)):
            yield RecordRow(row[0], row[1], RecordKey(row[2], row[3]), *row[4:])

    def is_reserved(self, namespace: str, key: RecordKey) -> bool:
        """Whether somebody is writing this record."""
        found = self._db.execute(
            "SELECT 1 FROM reservation JOIN namespace ON namespace.id = reservation.namespace "
            "WHERE digest = ? AND kind = ? AND block_hash = ?",
            (namespace, key.kind, key.block_hash),
        )
        return found.fetchone() is not None

    def reserve(self, owner: str, namespace: str, key: RecordKey, num_bytes: int) -> None:
        """Note that an owner begins to write a record."""
        self._db.execute(
            "INSERT INTO reservation SELECT ?, id, ?, ?, ? FROM namespace WHERE digest = ?",
            (owner, key.kind, key.block_hash, num_bytes, namespace),
        )

    def owners(self) -> set[str]:
        """Who is writing a record, or was when it died."""
        return {owner for (owner,) in self._db.execute("SELECT owner FROM reservation")}

    def reservation(self, owner: str) -> tuple[str, RecordKey] | None:
        """Namespace and key of the record that an owner is writing."""
        found = self._db.execute(
            "SELECT digest, block_hash, kind FROM reservation "
            "JOIN namespace ON namespace.id = reservation.namespace WHERE owner = ?",
            (owner,),
        ).fetchone()
        return None if found is None else (found[0], RecordKey(found[1], found[2]))

    def release(self, owner: str) -> None:
        """Forget what an owner was writing."""
        self._db.execute("DELETE FROM reservation WHERE owner = ?", (owner,))

    def add(
        self,
        namespace: str,
        key: RecordKey,
        *,
        parent: bytes | None,
        num_tokens: int,
        num_bytes: int,
        at_unix: float,
    ) -> None:
        """A record whose file is there, as the most recently used one."""
        values = (key.kind, key.block_hash, parent, num_tokens, num_bytes, at_unix, at_unix)
        self._db.execute(
            "INSERT INTO record (namespace, kind, block_hash, parent, num_tokens, num_bytes,"
            " created_unix, used_unix, used)"
            " SELECT id, ?, ?, ?, ?, ?, ?, ?, ? FROM namespace WHERE digest = ?",
            (*values, self._tick(), namespace),
        )

    def remove(self, row_id: int) -> None:
        """A record whose file is gone."""
        self._db.execute("DELETE FROM record WHERE id = ?", (row_id,))

    def touch(self, namespace: str, uses: Iterable[tuple[RecordKey, int]]) -> None:
        """Make records the most recently used ones, and count how often they were of use."""
        used, now = self._tick(), time.time()
        self._db.executemany(
            "UPDATE record SET used = ?, used_unix = ?, hits = hits + ? WHERE namespace ="
            " (SELECT id FROM namespace WHERE digest = ?) AND kind = ? AND block_hash = ?",
            [(used, now, n, namespace, key.kind, key.block_hash) for key, n in uses],
        )

    def recount(self) -> None:
        """Work out again what is kept as sums."""
        self._db.execute(
            "UPDATE state SET num_bytes = (SELECT coalesce(sum(num_bytes), 0) FROM record)"
        )
        counted = (
            "(SELECT count(*) FROM record AS child WHERE child.namespace = record.namespace"
            " AND child.kind = record.kind AND child.parent = record.block_hash"
            " AND child.id <> record.id)"
        )
        self._db.execute(
            f"UPDATE record SET num_children = {counted} WHERE num_children <> {counted}"
        )

    def summary(self) -> list[tuple[str, str, int, int, int, float, float]]:
        """Digest, kind, records, bytes, hits, first creation and last use of every kind."""
        return self._db.execute(
            "SELECT digest, kind, count(*), sum(num_bytes), sum(hits), min(created_unix),"
            " max(used_unix) FROM record JOIN namespace ON namespace.id = record.namespace"
            " GROUP BY namespace.id, kind ORDER BY digest, kind"
        ).fetchall()

    def _tick(self) -> int:
        [clock] = self._db.execute("UPDATE state SET clock = clock + 1 RETURNING clock").fetchone()
        return int(clock)
