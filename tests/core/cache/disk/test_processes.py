"""Several processes on one folder, and what is left of it when they are killed."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import disk_hammer
import pytest
from disk_hammer import MAX_BYTES, NUM_RECORDS, record_bytes
from disk_records import NAMESPACE, OTHER, content_of, folder_bytes, key_of, make_record

from pippin.core.cache.disk.maintenance import verify
from pippin.core.cache.disk.reconcile import Repairs
from pippin.core.cache.disk.record import Namespace
from pippin.core.cache.disk.tier import DiskTier

# Killed this often; 200 is the figure to run by hand.
NUM_KILLS = int(os.environ.get("PIPPIN_TEST_KILLS", "20"))
SUPPORT = str(Path(disk_hammer.__file__).parent)


@contextmanager
def hammering(folder: Path, seed: int) -> Iterator["subprocess.Popen[str]"]:
    """A process that spills, killed with SIGKILL at the end."""
    process = subprocess.Popen(
        [sys.executable, disk_hammer.__file__, str(folder), str(seed)],
        env={**os.environ, "PYTHONPATH": SUPPORT},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        _, said = process.communicate(timeout=20)
        assert said == ""


def check_records(folder: Path, namespace: Namespace) -> int:
    """How many records a new start serves; all of them are right."""
    with closing(DiskTier(folder, namespace, max_bytes=MAX_BYTES, min_free_bytes=0)) as tier:
        assert tier.wait_ready(20)
        numbers = [n for n in range(NUM_RECORDS) if tier.contains([key_of(n)]) == [True]]
        fetch = tier.fetch([key_of(number) for number in numbers])
        deadline = time.monotonic() + 20
        while not fetch.is_done:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        for number, record in zip(numbers, fetch.take(), strict=True):
            expected = make_record(number, num_bytes=record_bytes(number))
            assert content_of(record) == content_of(expected)
        assert (tier.stats().corrupt, tier.stats().missing) == (0, 0)
    return len(numbers)


@pytest.mark.timeout(60 + 5 * NUM_KILLS)
def test_killed_at_any_moment_the_folder_serves_what_is_right_within_the_cap(
    tmp_path: Path,
) -> None:
    chosen = random.Random(5)
    num_served = 0
    for seed in range(NUM_KILLS):
        with hammering(tmp_path, seed) as process:
            # Some die while they start.
            if chosen.random() < 0.8:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
            time.sleep(chosen.random() * 0.3)
        assert folder_bytes(tmp_path) <= MAX_BYTES
        num_served += check_records(tmp_path, NAMESPACE) + check_records(tmp_path, OTHER)
        verified = verify(tmp_path)
        assert (verified.damaged, verified.unreadable) == ([], [])
        assert verify(tmp_path).repairs == Repairs()
        assert not list(tmp_path.rglob("*.part"))
        assert folder_bytes(tmp_path) <= MAX_BYTES
    assert num_served > 20 * NUM_KILLS


def test_processes_share_one_cap_also_when_one_is_killed(tmp_path: Path) -> None:
    sizes = []
    with hammering(tmp_path, 1), hammering(tmp_path, 2) as second:
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            sizes.append(folder_bytes(tmp_path))
            if len(sizes) > 20 and time.monotonic() > deadline - 1.5:
                second.kill()
    assert max(sizes) <= MAX_BYTES
    assert max(sizes) > MAX_BYTES * 2 // 3
    assert check_records(tmp_path, NAMESPACE) + check_records(tmp_path, OTHER) > 20
    assert verify(tmp_path).damaged == []
