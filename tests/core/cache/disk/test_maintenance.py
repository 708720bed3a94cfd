"""What people do from outside, also while a server uses the folder."""

import time
from contextlib import closing
from pathlib import Path

import pytest
from disk_records import NAMESPACE, OTHER, folder_bytes, key_of, make_record

from pippin.core.cache.disk.folder import TierFolder
from pippin.core.cache.disk.maintenance import (
    Pruned,
    list_namespaces,
    list_records,
    prune,
    read_metadata,
    verify,
)
from pippin.core.cache.disk.reconcile import Repairs
from pippin.core.cache.disk.record import Namespace
from pippin.core.cache.disk.store import RecordStore
from pippin.core.cache.disk.tier import DiskTier
from pippin.core.errors import PippinError

DAY = 86_400.0


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten blocks ten days ago and a checkpoint, and five blocks of another model just now."""
    now = time.time()
    with closing(RecordStore(tmp_path)) as store:
        with monkeypatch.context() as patch:
            patch.setattr("time.time", lambda: now - 10 * DAY)
            for number in range(10):
                parent = number - 1 if number else None
                store.write(NAMESPACE, make_record(number, parent=parent))
            store.write(NAMESPACE, make_record(9, kind="state"))
        for number in range(5):
            store.write(OTHER, make_record(number))
        store.touch(OTHER.digest, [(key_of(0), 3)])
    return tmp_path


def num_records(folder: Path) -> dict[str, int]:
    return {s.namespace.model: sum(s.records.values()) for s in list_namespaces(folder)}


def test_namespaces_are_summed_up(folder: Path) -> None:
    found = {summary.digest: summary for summary in list_namespaces(folder)}
    assert set(found) == {NAMESPACE.digest, OTHER.digest}
    ours, other = found[NAMESPACE.digest], found[OTHER.digest]
    assert (ours.namespace, other.namespace) == (NAMESPACE, OTHER)
    assert ours.records == {"block:0": 10, "state": 1}
    assert (ours.num_tokens, other.num_tokens) == (320, 160)
    assert (ours.num_bytes, other.num_bytes) == (11 * 12_288, 5 * 12_288)
    assert (ours.hits, other.hits) == (0, 3)
    assert ours.used_unix is not None
    assert time.time() - ours.used_unix == pytest.approx(10 * DAY, abs=60)


def test_looking_at_a_folder_that_is_not_there_does_not_make_it(tmp_path: Path) -> None:
    folder = tmp_path / "kv"
    assert list_namespaces(folder) == []
    assert prune(folder) == Pruned()
    assert verify(folder).num_records == 0
    assert not folder.exists()


def test_a_lost_index_is_made_again_to_look(folder: Path) -> None:
    TierFolder(folder).index_path.unlink()
    assert num_records(folder) == {"tiny": 11, "other": 5}


def test_records_come_with_their_texts(folder: Path) -> None:
    rows = list_records(folder, OTHER.digest)
    assert {row.key for row in rows} == {key_of(number) for number in range(5)}
    assert read_metadata(folder, OTHER.digest, key_of(3)) == {"tokens": [3, 4]}
    assert read_metadata(folder, OTHER.digest, key_of(99)) == {}


@pytest.mark.parametrize(
    ("conditions", "left"),
    [
        ({}, {}),
        ({"unused_for_s": 5 * DAY}, {"other": 5}),
        ({"unused_for_s": 20 * DAY}, {"tiny": 11, "other": 5}),
        ({"model": "tiny"}, {"other": 5}),
        ({"model": "other", "unused_for_s": 5 * DAY}, {"tiny": 11, "other": 5}),
        ({"orphaned": True}, {"tiny": 11, "other": 5}),
    ],
)
def test_only_what_meets_all_conditions_is_deleted(
    folder: Path, conditions: dict[str, float], left: dict[str, int]
) -> None:
    before = num_records(folder)
    size = folder_bytes(folder)
    expected = sum(before.values()) - sum(left.values())
    would = prune(folder, dry_run=True, **conditions)  # type: ignore[arg-type]
    assert (would.num_records, num_records(folder)) == (expected, before)
    calls: list[tuple[int, int]] = []
    done = prune(folder, on_progress=lambda *at: calls.append(at), **conditions)  # type: ignore[arg-type]
    assert done == would
    assert num_records(folder) == left
    assert size - folder_bytes(folder) >= done.num_bytes - 65_536
    assert calls[-1] == (expected, 16)
    assert verify(folder).repairs == Repairs()
    assert len(TierFolder(folder).namespaces()) == len(left)


def test_models_that_are_gone_are_orphans(folder: Path) -> None:
    with closing(RecordStore(folder)) as store:
        for name in ("here", "gone"):
            (folder / name).mkdir()
            namespace = Namespace(
                model=name,
                fingerprint=name,
                layout="",
                block_size=32,
                dtype="",
                model_path=str(folder / name),
            )
            store.write(namespace, make_record(1))
    (folder / "gone").rmdir()
    assert prune(folder, orphaned=True).num_records == 1
    assert num_records(folder) == {"tiny": 11, "other": 5, "here": 1}


def test_the_oldest_records_go_until_the_rest_has_the_size(folder: Path) -> None:
    target = 12 * 12_288 + 1000  # of sixteen records
    would = prune(folder, max_bytes=target, dry_run=True)
    assert prune(folder, max_bytes=target) == would == Pruned(num_records=4, num_bytes=4 * 12_288)
    # The end of the older text, not its beginning.
    left = {row.key for row in list_records(folder, NAMESPACE.digest)}
    assert left == {*map(key_of, range(6)), key_of(9, "state")}
    assert num_records(folder)["other"] == 5


def test_verify_reads_everything_and_deletes_what_is_damaged(folder: Path) -> None:
    tier = TierFolder(folder)
    damaged = tier.record_path(OTHER.digest, key_of(2))
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 4
    damaged.write_bytes(content)
    tier.record_path(OTHER.digest, key_of(3)).unlink()
    calls: list[tuple[int, int]] = []
    verified = verify(folder, on_progress=lambda *at: calls.append(at))
    assert [row.key for row in verified.damaged] == [key_of(2)]
    assert verified.repairs == Repairs(removed_rows=1)
    assert (verified.num_records, calls[-1]) == (15, (15, 15))
    assert not damaged.exists()
    again = verify(folder)
    assert (again.damaged, again.repairs, again.num_records) == ([], Repairs(), 14)


def test_a_server_goes_on_while_its_folder_is_cleared(folder: Path) -> None:
    with closing(DiskTier(folder, NAMESPACE, max_bytes=2**26, min_free_bytes=0)) as tier:
        assert tier.wait_ready(10)
        assert tier.contains([key_of(1)]) == [True]
        assert prune(folder).num_records == 16
        for number in range(20, 25):
            assert tier.put(make_record(number))
        assert tier.flush(10)
        assert tier.stats().spilled == 5
        assert num_records(folder) == {"tiny": 5}
    assert verify(folder).repairs == Repairs()


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "v1" / "index.sqlite").mkdir(parents=True)
    with pytest.raises(PippinError, match="cannot be used"):
        list_namespaces(tmp_path)
