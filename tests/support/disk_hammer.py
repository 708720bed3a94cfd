"""A process that spills as fast as it can, until it is killed: ``disk_hammer.py FOLDER SEED``."""

import random
import sys
from pathlib import Path

from disk_records import NAMESPACE, OTHER, key_of, make_record

from pippin.core.cache.disk.tier import DiskTier

MAX_BYTES = 9 * 1024**2
NUM_RECORDS = 400


def record_bytes(number: int) -> int:
    """Length of a record's payload, from its number alone."""
    return 1000 + number * 7919 % 150_000


def hammer(folder: Path, seed: int) -> None:
    """Write chains of records of two namespaces within one cap, and read them, without end."""
    chosen = random.Random(seed)
    options = {"max_bytes": MAX_BYTES, "min_free_bytes": 0, "max_queued_bytes": 500_000}
    tiers = [DiskTier(folder, namespace, **options) for namespace in (NAMESPACE, OTHER)]
    print("ready", flush=True)
    while True:
        start = chosen.randrange(NUM_RECORDS - 8)
        for number in range(start, start + 8):
            record = make_record(
                number, num_bytes=record_bytes(number), parent=number - 1 if number % 8 else None
            )
            for tier in tiers:
                tier.put(record)
        tier = chosen.choice(tiers)
        tier.fetch([key_of(chosen.randrange(NUM_RECORDS)) for _ in range(8)])
        tier.flush(0.02)


if __name__ == "__main__":
    hammer(Path(sys.argv[1]), int(sys.argv[2]))
