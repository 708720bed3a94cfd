"""What people do to a disk cache from outside. All of it is safe while servers use the folder."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import PippinError
from .folder import TierFolder
from .index import RecordIndex, RecordRow
from .reconcile import Repairs
from .record import Namespace, RecordKey
from .record_file import DamagedRecordError, read_header, read_record
from .store import RecordStore

# Called with how much is done, and of how much.
OnProgress = Callable[[int, int], None]
# Which records are to go next, as long as there are any.
Choose = Callable[[RecordIndex], list[RecordRow]]
_BATCH = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceSummary:
    """One namespace as a whole.

    Attributes:
        records: How many there are of each kind.
        num_tokens: Tokens in its blocks, of the layer group that has the most.
        hits: How often records were of use.
    """

    digest: str
    namespace: Namespace
    records: dict[str, int] = field(default_factory=dict)
    num_tokens: int = 0
    num_bytes: int = 0
    hits: int = 0
    created_unix: float | None = None
    used_unix: float | None = None


@dataclass(slots=True, kw_only=True)
class Pruned:
    """What was deleted, or would be."""

    num_records: int = 0
    num_bytes: int = 0

    def count(self, rows: Sequence[RecordRow]) -> None:
        """Add records."""
        self.num_records += len(rows)
        self.num_bytes += sum(row.num_bytes for row in rows)


@dataclass(slots=True, kw_only=True)
class Verified:
    """What `verify` found.

    Attributes:
        repairs: Where index and files disagreed; they do not any more.
        damaged: Records with wrong content, now deleted.
        unreadable: Records that could not be read, for a reason that may pass.
    """

    repairs: Repairs
    num_records: int = 0
    num_bytes: int = 0
    damaged: list[RecordRow] = field(default_factory=list)
    unreadable: list[RecordRow] = field(default_factory=list)


def list_namespaces(folder: Path) -> list[NamespaceSummary]:
    """All namespaces, by digest."""
    if not TierFolder(folder).root.exists():
        return []
    with _told_errors(folder), closing(_open_index(folder)) as index:
        found = {digest: Namespace.from_json(text) for digest, text in index.namespaces().items()}
        rows = index.summary()
    summaries = []
    for digest, namespace in sorted(found.items()):
        own = [row for row in rows if row[0] == digest]
        blocks = [row[2] for row in own if row[1].startswith("block:")]
        summaries.append(
            NamespaceSummary(
                digest=digest,
                namespace=namespace,
                records={row[1]: row[2] for row in own},
                num_tokens=max(blocks, default=0) * namespace.block_size,
                num_bytes=sum(row[3] for row in own),
                hits=sum(row[4] for row in own),
                created_unix=min((row[5] for row in own), default=None),
                used_unix=max((row[6] for row in own), default=None),
            )
        )
    return summaries


def list_records(folder: Path, digest: str) -> list[RecordRow]:
    """All records of a namespace, those nearest to the start of a text first."""
    with _told_errors(folder), closing(_open_index(folder)) as index:
        return index.rows(digest)


def read_metadata(folder: Path, digest: str, key: RecordKey) -> dict[str, object]:
    """What was stored with a record; empty if it cannot be read."""
    with suppress(OSError, DamagedRecordError):
        return read_header(TierFolder(folder).record_path(digest, key)).metadata
    return {}


def prune(
    folder: Path,
    *,
    unused_for_s: float | None = None,
    max_bytes: int | None = None,
    model: str | None = None,
    orphaned: bool = False,
    dry_run: bool = False,
    on_progress: OnProgress = lambda done, total: None,
) -> Pruned:
    """Delete records that meet all conditions; without conditions, all of them.

    A record goes after those that continue its text.

    Args:
        unused_for_s: Only what was not used for so long, by the wall clock.
        max_bytes: Only as much as it takes until all records together have no more than this.
        model: Only of the model with this name.
        orphaned: Only of models whose folder does not exist any more.
        dry_run: Delete nothing, but say how much it would be.

    Raises:
        PippinError: The folder cannot be used.
    """
    store = RecordStore(folder)
    if not store.folder.root.exists():
        return Pruned()
    before = None if unused_for_s is None else time.time() - unused_for_s

    def choose(index: RecordIndex) -> list[RecordRow]:
        meant = [
            digest
            for digest, text in index.namespaces().items()
            if _is_meant(Namespace.from_json(text), model=model, orphaned=orphaned)
        ]
        if max_bytes is None:
            return index.oldest_leaves(_BATCH, used_before_unix=before, namespaces=meant)
        # One by one: with the end of a text gone, what came before it may be the oldest.
        limit = 1 if index.stored_bytes() > max_bytes else 0
        return index.oldest_leaves(limit, used_before_unix=before, namespaces=meant)

    with _told_errors(folder), closing(store):
        if dry_run:
            return _count_chosen(store, choose)
        return _delete_chosen(store, choose, on_progress)


def _count_chosen(store: RecordStore, choose: Choose) -> Pruned:
    pruned = Pruned()
    with suppress(_Undo), store.exclusive() as index:
        while rows := choose(index):
            for row in rows:
                index.remove(row.id)
            pruned.count(rows)
        raise _Undo
    return pruned


def _delete_chosen(store: RecordStore, choose: Choose, on_progress: OnProgress) -> Pruned:
    pruned = Pruned()
    with store.exclusive() as index:
        total = sum(row[2] for row in index.summary())
    has_more = True
    while has_more:
        # In pieces, so that servers need not wait long.
        piece_ends = pruned.num_records + _BATCH
        with store.exclusive() as index:
            while pruned.num_records < piece_ends and (rows := choose(index)):
                for row in rows:
                    store.delete(index, row)
                pruned.count(rows)
            has_more = bool(rows)
        on_progress(pruned.num_records, total)
    with store.exclusive() as index:
        for digest in index.namespaces():
            if index.remove_namespace(digest):
                shutil.rmtree(store.folder.namespace_path(digest), ignore_errors=True)
    return pruned


def verify(folder: Path, *, on_progress: OnProgress = lambda done, total: None) -> Verified:
    """Read every record, and repair or delete what is wrong.

    Raises:
        PippinError: The folder cannot be used.
    """
    store = RecordStore(folder)
    if not store.folder.root.exists():
        return Verified(repairs=Repairs())
    with _told_errors(folder), closing(store):
        with store.exclusive() as index:
            rows = [row for digest in index.namespaces() for row in index.rows(digest)]
        verified = Verified(repairs=store.repairs)
        for number, row in enumerate(rows, 1):
            try:
                read_record(
                    store.folder.record_path(row.namespace, row.key), row.namespace, row.key
                )
            except FileNotFoundError:
                continue  # a server has evicted it since
            except DamagedRecordError:
                verified.damaged.append(row)
                store.remove(row.namespace, [row.key])
            except OSError:
                verified.unreadable.append(row)
            verified.num_records += 1
            verified.num_bytes += row.num_bytes
            on_progress(number, len(rows))
    return verified


class _Undo(Exception):
    """Ends a transaction without effect."""


@contextmanager
def _told_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise PippinError(f"the disk cache in {folder} cannot be used: {error}") from error


def _open_index(folder: Path) -> RecordIndex:
    """The index as it is; made again from the files if it is missing or damaged."""
    path = TierFolder(folder).index_path
    with suppress(sqlite3.Error):
        return RecordIndex(path, read_only=True)
    with closing(RecordStore(folder)) as store, store.exclusive():
        pass
    return RecordIndex(path, read_only=True)


def _is_meant(namespace: Namespace, *, model: str | None, orphaned: bool) -> bool:
    path = namespace.model_path
    is_orphan = bool(path) and not Path(path).exists()
    return model in (None, namespace.model) and (is_orphan or not orphaned)
