"""Records whose content follows from their number, and a look at a disk cache from outside."""

import hashlib
import random
from pathlib import Path

from pippin.core.cache.disk.record import Namespace, Record, RecordKey

NAMESPACE = Namespace(
    model="tiny", fingerprint="f" * 32, layout="2 full", block_size=32, dtype="float32"
)
OTHER = Namespace(
    model="other", fingerprint="0" * 32, layout="2 full", block_size=32, dtype="float32"
)


def key_of(number: int, kind: str = "block:0") -> RecordKey:
    return RecordKey(hashlib.md5(b"%d" % number).digest(), kind)


def make_record(
    number: int, *, num_bytes: int = 10_000, parent: int | None = None, kind: str = "block:0"
) -> Record:
    """A record with two buffers, together ``num_bytes`` long."""
    content = random.Random(number).randbytes(num_bytes)
    return Record(
        key=key_of(number, kind),
        parent=None if parent is None else key_of(parent).block_hash,
        num_tokens=32,
        payload=[content[: num_bytes // 3], memoryview(content)[num_bytes // 3 :]],
        metadata={"tokens": [number, number + 1]},
    )


def content_of(record: Record | None) -> bytes | None:
    return None if record is None else b"".join(record.payload)


def folder_bytes(folder: Path) -> int:
    """Room that all files take: their length, or what the disk gave them if that is more."""
    total = 0
    for path in folder.rglob("*"):
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        if path.is_file():
            total += max(status.st_size, status.st_blocks * 512)
    return total
