"""What the engine sees: nothing blocks, nothing wrong comes back, trouble is told once."""

import logging
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from disk_records import NAMESPACE, OTHER, content_of, folder_bytes, key_of, make_record
from small_disk import fill, mounted_disk

from pippin.core.cache.disk.folder import TierFolder
from pippin.core.cache.disk.reader import Fetch
from pippin.core.cache.disk.record import Namespace, Record, RecordKey
from pippin.core.cache.disk.store import RecordStore
from pippin.core.cache.disk.tier import DiskTier
from pippin.core.errors import ConfigError

MB = 1024**2
DIGEST = NAMESPACE.digest


def open_tier(folder: Path, namespace: Namespace = NAMESPACE, **options: float) -> DiskTier:
    settings = {"max_bytes": 64 * MB, "min_free_bytes": 0, **options}
    tier = DiskTier(folder, namespace, **settings)  # type: ignore[arg-type]
    assert tier.wait_ready(10)
    return tier


def fetch(tier: DiskTier, *keys: RecordKey) -> list[Record | None]:
    done = threading.Event()
    found = tier.fetch(keys, lambda _: done.set())
    assert done.wait(10)
    assert found.is_done
    return found.take()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


def test_records_come_back_in_this_process_and_the_next(tmp_path: Path) -> None:
    numbers = range(20)
    with closing(open_tier(tmp_path)) as tier:
        for number in numbers:
            assert tier.put(make_record(number))
        assert all(tier.contains([key_of(number) for number in numbers]))
        assert tier.flush(10)
        found = fetch(tier, *map(key_of, numbers))
        assert [content_of(r) for r in found] == [content_of(make_record(n)) for n in numbers]
        stats = tier.stats()
        assert (stats.spilled, stats.restored, stats.num_records) == (20, 20, 20)
        assert (stats.spilled_bytes, stats.restored_bytes) == (200_000, 200_000)
    with closing(open_tier(tmp_path)) as tier, closing(open_tier(tmp_path, OTHER)) as other:
        assert tier.contains(map(key_of, (1, 21, 2))) == [True, False, True]
        assert not any(other.contains(map(key_of, numbers)))
        assert fetch(other, key_of(1)) == [None]
        tier.put(make_record(1))
        assert tier.flush(10)
        assert (tier.stats().spilled, tier.stats().dropped) == (0, 0)
        keys = [key_of(3), key_of(99), key_of(0)]
        first, second, third = fetch(tier, *keys)
        assert second is None
        assert [content_of(r) for r in (first, third)] == [
            content_of(make_record(n)) for n in (3, 0)
        ]
        assert (tier.stats().missing, tier.stats().corrupt) == (0, 0)


def test_a_cap_that_could_hold_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least"):
        DiskTier(tmp_path, NAMESPACE, max_bytes=MB)


@contextmanager
def folder_locked(folder: Path) -> Iterator[None]:
    """Somebody else holds the lock for a while."""
    with TierFolder(folder).locked():
        yield


def test_a_full_queue_refuses_and_a_queued_record_is_found(tmp_path: Path) -> None:
    with closing(open_tier(tmp_path, max_queued_bytes=25_000)) as tier:
        with folder_locked(tmp_path):
            assert [tier.put(make_record(number)) for number in range(4)] == [
                *(True, True, False, False)
            ]
            assert tier.put(make_record(1))
            assert tier.contains([key_of(1), key_of(2)]) == [True, False]
            assert content_of(fetch(tier, key_of(1))[0]) == content_of(make_record(1))
            assert not tier.flush(0.05)
            assert tier.stats().queued_bytes == 20_000
        assert tier.flush(10)
        assert (tier.stats().spilled, tier.stats().dropped) == (2, 2)
        # Alone, any record is taken.
        assert tier.put(make_record(9, num_bytes=100_000))


def test_closing_writes_what_is_queued_as_far_as_time_allows(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    for number in range(10):
        tier.put(make_record(number))
    tier.close()
    with closing(open_tier(tmp_path)) as tier:
        assert all(tier.contains(map(key_of, range(10))))
        with folder_locked(tmp_path):
            tier.put(make_record(10))
            tier.put(make_record(11))
            tier.close(timeout_s=0.05)
            assert not tier.put(make_record(12))
            assert fetch(tier, key_of(1)) == [None]


def test_what_another_process_writes_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pippin.core.cache.disk.writer._LOOK_S", 0.02)
    with closing(open_tier(tmp_path)) as tier, closing(open_tier(tmp_path)) as other:
        other.put(make_record(1))
        assert other.flush(10)
        wait_until(lambda: tier.contains([key_of(1)]) == [True])
        assert content_of(fetch(tier, key_of(1))[0]) == content_of(make_record(1))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_damaged_record_is_a_miss_once_and_then_gone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(open_tier(tmp_path)) as tier:
        for number in range(3):
            tier.put(make_record(number))
        assert tier.flush(10)
        paths = [TierFolder(tmp_path).record_path(DIGEST, key_of(n)) for n in range(3)]
        for path in paths[:2]:
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)
        found = fetch(tier, *map(key_of, range(3)))
        assert found[:2] == [None, None]
        assert content_of(found[2]) == content_of(make_record(2))
        assert tier.contains(map(key_of, range(3))) == [False, False, True]
        assert tier.flush(10)
        assert not paths[0].exists()
        assert tier.stats().corrupt == 2
        assert len(warnings(caplog)) == 1
        tier.put(make_record(0))
        assert tier.flush(10)
        assert content_of(fetch(tier, key_of(0))[0]) == content_of(make_record(0))


def test_a_record_that_somebody_deleted_is_a_miss_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(open_tier(tmp_path)) as tier:
        tier.put(make_record(0))
        assert tier.flush(10)
        TierFolder(tmp_path).record_path(DIGEST, key_of(0)).unlink()
        assert fetch(tier, key_of(0)) == [None]
        assert tier.contains([key_of(0)]) == [False]
        assert tier.stats().missing == 1
        assert tier.flush(10)
        assert not warnings(caplog)


def test_a_failure_to_read_that_may_pass_costs_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Record:
        raise OSError(24, "Too many open files")

    with closing(open_tier(tmp_path)) as tier:
        tier.put(make_record(0))
        assert tier.flush(10)
        with monkeypatch.context() as patch:
            patch.setattr("pippin.core.cache.disk.tier.read_record", fail)
            assert fetch(tier, key_of(0)) == [None]
        assert content_of(fetch(tier, key_of(0))[0]) == content_of(make_record(0))
        assert tier.stats().corrupt == 0


def test_used_records_outlive_others(tmp_path: Path) -> None:
    with closing(open_tier(tmp_path, max_bytes=8 * MB)) as tier:
        for number in range(40):
            tier.put(make_record(number, num_bytes=100_000))
        fetch(tier, key_of(0))
        tier.touch([key_of(1), key_of(1)])
        assert tier.flush(10)
        for number in range(40, 75):
            tier.put(make_record(number, num_bytes=100_000))
        assert tier.flush(20)
        assert tier.contains(map(key_of, range(4))) == [True, True, False, False]
        assert tier.stats().evicted > 0
        assert tier.stats().num_bytes <= 8 * MB


def test_fetches_are_taken_in_order_and_can_be_cancelled() -> None:
    fetched: list[RecordKey] = []
    calls: list[Fetch] = []
    keys = [key_of(number) for number in range(10)]
    fetch = Fetch(keys, calls.append)

    def read(key: RecordKey) -> Record | None:
        fetched.append(key)
        if len(fetched) == 3:
            fetch.work(read)  # as another thread would: the third answer comes last
        if len(fetched) == 6:
            fetch.cancel()
        if key == keys[1]:
            raise RuntimeError("a bug")
        return make_record(keys.index(key))

    assert (fetch.take(), fetch.is_done) == ([], False)
    fetch.work(read)
    assert fetched == keys[:6]
    taken = fetch.take()
    assert [None if record is None else record.key for record in taken] == [
        *(keys[0], None, *keys[2:6]),
        *[None] * 4,
    ]
    assert fetch.is_done
    assert calls == [fetch]
    assert fetch.take() == []


def test_a_fetch_of_nothing_is_done(tmp_path: Path) -> None:
    with closing(open_tier(tmp_path)) as tier:
        assert fetch(tier) == []


def test_a_folder_that_cannot_be_written_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(open_tier(tmp_path)) as tier:
        tier.put(make_record(1))

    def refuse(self: TierFolder) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(TierFolder, "locked", refuse)
        with closing(open_tier(tmp_path, retry_s=0.05)) as tier:
            assert content_of(fetch(tier, key_of(1))[0]) == content_of(make_record(1))
            assert not tier.put(make_record(2))
            assert not tier.stats().is_writing
            time.sleep(0.06)
            assert tier.put(make_record(2))
            assert tier.flush(10)
            assert tier.stats().dropped == 2
            assert len(warnings(caplog)) == 1
            patch.undo()
            time.sleep(0.06)
            assert tier.put(make_record(2))
            assert tier.flush(10)
            assert tier.stats().is_writing
            assert tier.contains([key_of(1), key_of(2)]) == [True, True]
    assert len(warnings(caplog)) == 1


def test_what_is_queued_when_the_disk_fails_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    are_queued = threading.Event()

    def fail(*_: object) -> None:
        assert are_queued.wait(10)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(RecordStore, "write", fail)
    with closing(open_tier(tmp_path)) as tier:
        for number in range(3):
            assert tier.put(make_record(number))
        are_queued.set()
        assert tier.flush(10)
        assert not tier.put(make_record(3))
        stats = tier.stats()
        assert (stats.dropped, stats.queued_bytes, stats.is_writing) == (4, 0, False)
        assert not any(tier.contains(map(key_of, range(4))))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted_disk(tmp_path / "disk") as disk:
        yield disk


def test_a_full_disk_ends_spilling_until_there_is_room(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(open_tier(small_disk / "kv", retry_s=0.05)) as tier:
        for number in range(20):
            tier.put(make_record(number, num_bytes=100_000))
        assert tier.flush(10)
        filler = fill(small_disk)
        for number in range(20, 30):
            tier.put(make_record(number, num_bytes=100_000))
            time.sleep(0.02)
        tier.flush(10)
        stats = tier.stats()
        assert stats.dropped > 0
        assert len(warnings(caplog)) <= 1
        found = fetch(tier, *map(key_of, range(30)))
        for number, record in enumerate(found):
            expected = content_of(make_record(number, num_bytes=100_000))
            assert record is None or content_of(record) == expected
        filler.unlink()
        time.sleep(0.06)
        before = tier.stats().spilled
        assert tier.put(make_record(50, num_bytes=100_000))
        assert tier.flush(10)
        assert tier.stats().spilled == before + 1


def test_a_read_only_disk_is_read(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    with closing(open_tier(small_disk / "kv")) as tier:
        tier.put(make_record(1))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with closing(open_tier(small_disk / "kv")) as tier:
        assert content_of(fetch(tier, key_of(1))[0]) == content_of(make_record(1))
        assert not tier.put(make_record(2))
    assert len(warnings(caplog)) == 1


def test_a_disk_that_others_fill_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pippin.core.cache.disk.writer._LOOK_S", 0.02)
    free = 10 * MB
    monkeypatch.setattr(TierFolder, "free_bytes", lambda self: free)
    with closing(open_tier(tmp_path, min_free_bytes=8 * MB)) as tier:
        for number in range(10):
            tier.put(make_record(number, num_bytes=100_000))
        assert tier.flush(10)
        assert tier.stats().num_records == 10
        free = 8 * MB - 450_000
        wait_until(lambda: tier.stats().evicted == 5)
        assert tier.contains(map(key_of, (4, 5))) == [False, True]


def test_writes_leave_no_more_than_the_cap_at_any_moment(tmp_path: Path) -> None:
    largest = 0
    with (
        closing(open_tier(tmp_path, max_bytes=8 * MB)) as tier,
        closing(open_tier(tmp_path, OTHER, max_bytes=8 * MB)) as other,
    ):
        for number in range(150):
            tier.put(make_record(number, num_bytes=60_000))
            other.put(make_record(number, num_bytes=90_000))
            if number % 5 == 0:
                largest = max(largest, folder_bytes(tmp_path))
        while not (tier.flush(0.01) and other.flush(0.01)):
            largest = max(largest, folder_bytes(tmp_path))
    assert 5 * MB < largest <= 8 * MB
    assert [path.name for path in tmp_path.iterdir()] == ["v1"]
