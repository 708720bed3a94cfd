"""Makes index and files agree again, whatever ended the process that last changed them.

A crash may leave a file without its row, a row without its file, or a half-written file; a lost
index leaves files only. Every opening of a folder ends here, so nothing else has to care.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from .folder import TierFolder, is_alive
from .index import RecordIndex
from .record import RecordKey
from .record_file import DamagedRecordError, disk_bytes, read_header

_T = TypeVar("_T")
_BATCH = 256


@dataclass(slots=True)
class Repairs:
    """What had to be put right.

    Attributes:
        adopted: Files that the index did not know, and knows now.
        removed_files: Files that were no whole record, and leftovers of dead processes.
        removed_rows: Records whose files are gone or have another length.
    """

    adopted: int = 0
    removed_files: int = 0
    removed_rows: int = 0


def reconcile(folder: TierFolder, index: RecordIndex) -> Repairs:
    """Trust the files, and correct the index. Needs the folder's lock, and no open transaction.

    Payloads are not read: a damaged one is found when it is fetched, or by `verify`.
    """
    repairs = Repairs()
    for digest in {*index.namespaces(), *folder.namespaces()}:
        with index.transaction():
            index.add_namespace(digest, describe_namespace(folder, digest))
        _reconcile_namespace(folder, index, digest, repairs)
    with index.transaction():
        index.recount()
        for name in index.owners().union(path.stem for path in folder.owners.iterdir()):
            lock, part = folder.owners / f"{name}.lock", folder.owners / f"{name}.part"
            if not is_alive(lock):
                drop_unfinished(folder, index, name)
                lock.unlink(missing_ok=True)
            elif index.reservation(name) is None and part.exists():
                # It began under an index that is lost, so nothing accounts for it.
                part.unlink()
                repairs.removed_files += 1
    folder.remove_other_versions()
    return repairs


def drop_unfinished(folder: TierFolder, index: RecordIndex, owner: str) -> None:
    """Delete what an owner had begun to write. Needs the folder's lock and a transaction."""
    reserved = index.reservation(owner)
    if reserved is not None:
        # It got its final name, but the row was not committed.
        if index.find(*reserved) is None:
            folder.record_path(*reserved).unlink(missing_ok=True)
        index.release(owner)
    (folder.owners / f"{owner}.part").unlink(missing_ok=True)


def describe_namespace(folder: TierFolder, digest: str) -> str:
    """The description that lies with a namespace's files; an empty object if there is none."""
    try:
        text = (folder.namespace_path(digest) / "namespace.json").read_text(encoding="utf-8")
        return json.dumps(dict(json.loads(text)))
    except (OSError, ValueError, TypeError):
        return "{}"


def _reconcile_namespace(
    folder: TierFolder, index: RecordIndex, digest: str, repairs: Repairs
) -> None:
    rows = {key: (row_id, num_bytes) for row_id, key, num_bytes in index.keys(digest)}
    unknown: list[tuple[float, RecordKey, os.DirEntry[str]]] = []
    for key, entry in folder.files(digest):
        if not entry.is_file(follow_symlinks=False):
            continue
        status = entry.stat(follow_symlinks=False)
        if key is not None and key not in rows:
            unknown.append((status.st_mtime, key, entry))
        elif key is not None and rows[key][1] == disk_bytes(status.st_size):
            del rows[key]
        else:
            Path(entry.path).unlink(missing_ok=True)
            repairs.removed_files += 1

    def adopt(found: tuple[float, RecordKey, os.DirEntry[str]]) -> None:
        modified_unix, key, entry = found
        try:
            header = read_header(Path(entry.path))
            if (header.namespace, header.key) != (digest, key):
                raise DamagedRecordError("it is another record's file")
        except DamagedRecordError:
            Path(entry.path).unlink(missing_ok=True)
            repairs.removed_files += 1
            return
        index.add(
            digest,
            key,
            parent=header.parent,
            num_tokens=header.num_tokens,
            num_bytes=disk_bytes(entry.stat(follow_symlinks=False).st_size),
            at_unix=modified_unix,
        )
        repairs.adopted += 1

    # What is left of the rows has no file. Oldest files first: that is how they will be evicted.
    repairs.removed_rows += len(rows)
    _in_batches(index, [row_id for row_id, _ in rows.values()], index.remove)
    _in_batches(index, sorted(unknown, key=lambda found: found[0]), adopt)


def _in_batches(index: RecordIndex, items: Sequence[_T], work: Callable[[_T], None]) -> None:
    # One transaction for everything would swell the log beyond what the cap allows for.
    for start in range(0, len(items), _BATCH):
        with index.transaction():
            for item in items[start : start + _BATCH]:
                work(item)
