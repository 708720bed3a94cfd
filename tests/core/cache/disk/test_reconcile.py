"""Whatever is wrong with a folder, opening it makes index and files agree."""

import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from disk_records import NAMESPACE, content_of, key_of, make_record

from pippin.core.cache.disk.folder import Owner, TierFolder
from pippin.core.cache.disk.index import RecordIndex
from pippin.core.cache.disk.reconcile import Repairs
from pippin.core.cache.disk.record import Namespace, RecordKey
from pippin.core.cache.disk.record_file import read_record
from pippin.core.cache.disk.store import RecordStore

DIGEST = NAMESPACE.digest
NUM_RECORDS = 40


@pytest.fixture
def folder(tmp_path: Path) -> TierFolder:
    """Forty records, each the parent of the next, and the last ones used once."""
    folder = TierFolder(tmp_path / "kv")
    with closing(RecordStore(folder.base)) as store:
        for number in range(NUM_RECORDS):
            parent = number - 1 if number else None
            store.write(NAMESPACE, make_record(number, parent=parent))
        store.touch(DIGEST, [(key_of(number), 1) for number in range(30, NUM_RECORDS)])
    return folder


def reopen(folder: TierFolder, *, is_chain: bool = True) -> tuple[Repairs, dict[RecordKey, int]]:
    """What opening repaired, and the hits of all records, which are whole."""
    with closing(RecordStore(folder.base)) as store, store.exclusive() as index:
        rows = index.rows(DIGEST)
        for row in rows:
            found = read_record(folder.record_path(DIGEST, row.key), DIGEST, row.key)
            assert content_of(found) == content_of(make_record(found.metadata["tokens"][0]))
        assert index.stored_bytes() == sum(row.num_bytes for row in rows)
        assert len(index.oldest_leaves(100)) == 1 or not is_chain
        assert list(index.namespaces().values()) == [NAMESPACE.to_json()]
        return store.repairs, {row.key: row.hits for row in rows}


def test_nobody_else_may_look_into_the_folder(folder: TierFolder) -> None:
    assert folder.root.stat().st_mode & 0o777 == 0o700


def test_a_folder_in_order_is_left_alone(folder: TierFolder) -> None:
    repairs, hits = reopen(folder)
    assert repairs == Repairs()
    assert sum(hits.values()) == 10
    assert len(hits) == NUM_RECORDS


@pytest.mark.parametrize("names", [["index.sqlite"], ["index.sqlite-wal", "index.sqlite-shm"]])
def test_a_lost_index_or_log_is_made_again(folder: TierFolder, names: list[str]) -> None:
    store = RecordStore(folder.base)
    with store.exclusive():
        pass
    # As a power cut would: the store is not closed.
    copy = folder.base.with_name("copy")
    shutil.copytree(folder.base, copy)
    store.close()
    for name in names:
        (copy / "v1" / name).unlink()
    repairs, hits = reopen(TierFolder(copy))
    assert repairs.adopted == (NUM_RECORDS if "index.sqlite" in names else 0)
    assert set(hits) == {key_of(number) for number in range(NUM_RECORDS)}


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"no database" * 500,
        lambda content: content[: len(content) // 2],
        lambda content: content[:4096] + b"\xff" * (len(content) - 4096),
        lambda content: content[:100] + bytes(3996) + content[4096:],
    ],
    ids=["empty", "garbage", "half", "header only", "no schema"],
)
def test_a_damaged_index_is_made_again(
    folder: TierFolder, damage: Callable[[bytes], bytes]
) -> None:
    folder.index_path.write_bytes(damage(folder.index_path.read_bytes()))
    repairs, hits = reopen(folder)
    assert repairs == Repairs(adopted=NUM_RECORDS)
    assert set(hits) == {key_of(number) for number in range(NUM_RECORDS)}


def test_flipped_bits_in_the_index_never_cost_more_than_records(folder: TierFolder) -> None:
    content = folder.index_path.read_bytes()
    chosen = random.Random(3)
    for _ in range(30):
        flipped = bytearray(content)
        flipped[chosen.randrange(len(content))] ^= 1 << chosen.randrange(8)
        folder.index_path.write_bytes(flipped)
        _, hits = reopen(folder, is_chain=False)
        assert len(hits) >= NUM_RECORDS - 1
        with closing(RecordStore(folder.base)) as store:
            for number in range(NUM_RECORDS):
                store.write(NAMESPACE, make_record(number, parent=number - 1 if number else None))


def test_an_index_that_breaks_while_it_is_open_is_made_again(
    folder: TierFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*_: object) -> None:
        error = sqlite3.DatabaseError("malformed")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error

    with closing(RecordStore(folder.base)) as store:
        with store.exclusive():
            pass
        with monkeypatch.context() as patch:
            patch.setattr(RecordIndex, "touch", break_down)
            with pytest.raises(sqlite3.DatabaseError, match="malformed"):
                store.touch(DIGEST, [(key_of(1), 1)])
        store.write(NAMESPACE, make_record(NUM_RECORDS, parent=NUM_RECORDS - 1))
        assert store.repairs.adopted == NUM_RECORDS
    assert set(reopen(folder)[1]) == {key_of(number) for number in range(NUM_RECORDS + 1)}


def test_rows_without_files_and_files_without_rows(folder: TierFolder) -> None:
    with closing(RecordStore(folder.base)) as store, store.exclusive() as index:
        row = index.find(DIGEST, key_of(37))
        assert row is not None
        index.remove(row.id)
    folder.record_path(DIGEST, key_of(39)).unlink()
    truncated = folder.record_path(DIGEST, key_of(38))
    truncated.write_bytes(truncated.read_bytes()[:-5000])
    repairs, hits = reopen(folder)
    assert repairs == Repairs(adopted=1, removed_files=1, removed_rows=2)
    assert set(hits) == {key_of(number) for number in range(38)}
    assert not truncated.exists()


def test_sums_that_are_wrong_are_worked_out_again(folder: TierFolder) -> None:
    with closing(sqlite3.connect(folder.index_path)) as connection, connection:
        connection.execute("UPDATE state SET num_bytes = 1")
        connection.execute("UPDATE record SET num_children = 0")
    assert reopen(folder)[0] == Repairs()


def test_files_that_are_no_records_are_removed(folder: TierFolder) -> None:
    path = folder.record_path(DIGEST, key_of(1))
    strangers = [
        path.with_name("stranger"),
        path.with_suffix(".block-1"),  # a copy under another kind's name
        folder.record_path(DIGEST, key_of(1000)),
    ]
    for stranger in strangers:
        stranger.parent.mkdir(parents=True, exist_ok=True)
        stranger.write_bytes(path.read_bytes() if stranger.suffix else b"?")
    assert reopen(folder)[0] == Repairs(removed_files=3)
    assert not any(stranger.exists() for stranger in strangers)


def test_what_the_dead_were_writing_is_removed_and_what_the_living_write_is_not(
    folder: TierFolder,
) -> None:
    with closing(RecordStore(folder.base)) as store:
        with store.exclusive() as index:
            alive = Owner(folder)
            for number, name in enumerate((alive.name, "dead")):
                index.reserve(name, DIGEST, key_of(100 + number), 4096)
                (folder.owners / f"{name}.part").write_bytes(b"half")
            (folder.owners / "dead.lock").touch()
        # It had got its final name when the process died.
        path = folder.record_path(DIGEST, key_of(101))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    with closing(RecordStore(folder.base)) as store, store.exclusive() as index:
        assert index.reserved_bytes() == 4096
        assert alive.part_path.exists()
        assert not path.exists()
        assert not list(folder.owners.glob("dead*"))
    alive.close()
    with closing(RecordStore(folder.base)) as store, store.exclusive() as index:
        assert index.reserved_bytes() == 0


def test_a_folder_that_vanishes_under_a_store_is_begun_anew(folder: TierFolder) -> None:
    with closing(RecordStore(folder.base)) as store:
        store.write(NAMESPACE, make_record(100))
        shutil.rmtree(folder.base)
        store.write(NAMESPACE, make_record(101))
        with store.exclusive() as index:
            assert [row.key for row in index.rows(DIGEST)] == [key_of(101)]
    assert reopen(folder)[0] == Repairs()


def test_other_versions_go_unless_somebody_uses_them(folder: TierFolder) -> None:
    for version, is_used in (("v0", False), ("v99", True)):
        (folder.base / version / "owners").mkdir(parents=True)
        (folder.base / version / "blob").write_bytes(b"?")
        if is_used:
            other = TierFolder(folder.base)
            other.owners = folder.base / version / "owners"
            owner = Owner(other)
    reopen(folder)
    assert not (folder.base / "v0").exists()
    assert (folder.base / "v99" / "blob").exists()
    owner.close()
    reopen(folder)
    assert not (folder.base / "v99").exists()


def test_a_description_that_was_lost_comes_back_with_the_next_record(folder: TierFolder) -> None:
    (folder.namespace_path(DIGEST) / "namespace.json").write_bytes(b"{")
    folder.index_path.unlink()
    with closing(RecordStore(folder.base)) as store:
        with store.exclusive() as index:
            [text] = index.namespaces().values()
            assert Namespace.from_json(text).model == "unknown"
        store.write(NAMESPACE, make_record(100, parent=39))
    assert len(reopen(folder)[1]) == NUM_RECORDS + 1
