"""How long the disk cache takes, with 100,000 records in 20 namespaces.

Prints the time to list them, to open a tier on them, to ask for one, and to write and read.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from pippin.core.cache.disk.maintenance import list_namespaces
from pippin.core.cache.disk.record import Namespace, Record, RecordKey
from pippin.core.cache.disk.store import RecordStore
from pippin.core.cache.disk.tier import DiskTier


@contextmanager
def timed(what: str, *, num_bytes: int = 0, count: int = 1) -> Iterator[None]:
    """Print how long the block takes."""
    started_at = time.perf_counter()
    yield
    seconds = time.perf_counter() - started_at
    speed = f", {num_bytes / seconds / 1e6:.0f} MB/s" if num_bytes else ""
    print(f"{what}: {seconds * 1000 / count:.4g} ms{speed}")


def namespace_of(number: int) -> Namespace:
    """One of many models."""
    return Namespace(
        model=f"m{number}", fingerprint=str(number), layout="28 full", block_size=32, dtype="bf16"
    )


def make_keys(count: int) -> list[RecordKey]:
    """A chain of block hashes."""
    return [RecordKey(hashlib.md5(b"%d" % i).digest(), "block:0") for i in range(count)]


def fill(folder: Path, num_namespaces: int, keys: list[RecordKey]) -> None:
    """Tiny files with headers, as if the index had been lost: the first opening adopts them."""
    with closing(RecordStore(folder)) as store:
        for number in range(num_namespaces):
            namespace = namespace_of(number)
            with store.exclusive() as index:
                index.add_namespace(namespace.digest, namespace.to_json())
                parent = None
                for key in keys:
                    path = store.folder.record_path(namespace.digest, key)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.touch()
                    index.add(
                        namespace.digest,
                        key,
                        parent=parent,
                        num_tokens=32,
                        num_bytes=0,
                        at_unix=time.time(),
                    )
                    parent = key.block_hash


def main() -> None:
    """Measure, in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--record-bytes", type=int, default=2 * 1024**2)
    parser.add_argument("--folder", type=Path, help="where to make the temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        keys = make_keys(options.records // 20)
        with timed("make the records"):
            fill(folder, 20, keys)
        with timed("list all namespaces"):
            assert sum(s.records["block:0"] for s in list_namespaces(folder)) == len(keys) * 20
        with timed("open a tier"):
            tier = DiskTier(folder, namespace_of(0), max_bytes=64 * 1024**3)
            assert tier.wait_ready(600)
        with timed("ask for a record, each", count=len(keys)):
            assert all(tier.contains(keys))
        tier.close()
        namespace = namespace_of(99)
        with closing(DiskTier(folder, namespace, max_bytes=64 * 1024**3)) as tier:
            assert tier.wait_ready(600)
            payload = [os.urandom(options.record_bytes)]
            new = make_keys(200)
            size = len(new) * options.record_bytes
            with timed("write 200 records", num_bytes=size):
                for key in new:
                    record = Record(key=key, parent=None, num_tokens=32, payload=payload)
                    while not tier.put(record):
                        tier.flush(1)
                assert tier.flush(600)
            with timed("read them (from the page cache)", num_bytes=size):
                fetch = tier.fetch(new)
                while not fetch.is_done:
                    time.sleep(0.0005)
            assert all(record is not None for record in fetch.take())


if __name__ == "__main__":
    main()
