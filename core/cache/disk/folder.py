"""Where the disk tier's files lie, and the lock under which they appear and vanish.

    kv/v1/lock, index.sqlite             one for all namespaces and processes
    kv/v1/owners/NAME.lock, NAME.part    a tier that is alive, and the file that it is writing
    kv/v1/NAMESPACE/namespace.json       what the namespace is
    kv/v1/NAMESPACE/a/b/HASH.KIND        a record

Whoever changes what lies under a final name, or the index, holds the lock. Readers need none.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .record import FORMAT_VERSION, RecordKey

_NAMESPACE = re.compile(r"[0-9a-f]{32}", re.ASCII)
_RECORD = re.compile(r"([0-9a-f]{32})\.([a-z0-9_]+(?:-[0-9]+)?)", re.ASCII)


class TierFolder:
    """Paths inside one folder of the disk tier, this format version's share of it."""

    def __init__(self, folder: Path) -> None:
        self.base = folder
        self.root = folder / f"v{FORMAT_VERSION}"
        self.index_path = self.root / "index.sqlite"
        self.owners = self.root / "owners"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one, of all threads and processes, that changes anything."""
        # What lies below tells what people said to a model.
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.owners.mkdir(exist_ok=True)
        # Opened anew each time: somebody may have deleted the whole folder.
        with (self.root / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def namespace_path(self, namespace: str) -> Path:
        """Folder of a namespace."""
        return self.root / namespace

    def record_path(self, namespace: str, key: RecordKey) -> Path:
        """File of a record."""
        name = key.block_hash.hex()
        # A colon is a path separator to parts of macOS.
        return self.root / namespace / name[0] / name[1] / f"{name}.{key.kind.replace(':', '-')}"

    def namespaces(self) -> list[str]:
        """Namespaces that have a folder."""
        if not self.root.is_dir():
            return []
        return sorted(p.name for p in self.root.iterdir() if _NAMESPACE.fullmatch(p.name))

    def files(self, namespace: str) -> Iterator[tuple[RecordKey | None, os.DirEntry[str]]]:
        """All files of a namespace's records; the key is ``None`` if it has no business there."""
        for outer in _entries(self.namespace_path(namespace)):
            if not outer.is_dir(follow_symlinks=False):
                continue
            for inner in _entries(outer.path):
                for entry in _entries(inner.path):
                    match = _RECORD.fullmatch(entry.name)
                    expected = outer.name + inner.name == entry.name[:2]
                    known = match is not None and expected
                    yield (_parse(*match.groups()) if match and known else None), entry

    def free_bytes(self) -> int:
        """Bytes of the disk that anybody may still use."""
        return shutil.disk_usage(self.root).free

    def remove_other_versions(self) -> None:
        """Delete what other format versions left, unless a process uses it. Needs the lock."""
        for path in self.base.glob("v[0-9]*"):
            if path.name != self.root.name and not any(
                is_alive(lock) for lock in path.glob("owners/*.lock")
            ):
                shutil.rmtree(path, ignore_errors=True)


class Owner:
    """A tier that is alive: it holds a lock that the system drops when the process dies.

    To be made under the folder's lock, so that nobody takes it for dead before it holds its own.
    """

    def __init__(self, folder: TierFolder) -> None:
        self.name = uuid.uuid4().hex
        self._lock_path = folder.owners / f"{self.name}.lock"
        self.part_path = folder.owners / f"{self.name}.part"
        self._file = self._lock_path.open("a")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Be dead."""
        with suppress(OSError):
            self.part_path.unlink(missing_ok=True)
            self._lock_path.unlink(missing_ok=True)
        self._file.close()


def is_alive(lock_path: Path) -> bool:
    """Whether the owner with this lock file holds it."""
    try:
        with lock_path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _parse(name: str, kind: str) -> RecordKey:
    return RecordKey(bytes.fromhex(name), kind.replace("-", ":"))


def _entries(path: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as found:
            return list(found)
    except (FileNotFoundError, NotADirectoryError):
        return []
