"""A file is the record that was written, or it is refused."""

from pathlib import Path

import numpy as np
import pytest
from disk_records import NAMESPACE, OTHER, content_of, key_of, make_record

from pippin.core.cache.disk.record import Record, RecordKey
from pippin.core.cache.disk.record_file import (
    DamagedRecordError,
    encode_record,
    read_header,
    read_record,
    write_and_sync,
)

DIGEST = NAMESPACE.digest


def write(path: Path, record: Record) -> Path:
    with path.open("wb") as file:
        write_and_sync(file, encode_record(DIGEST, record))
    return path


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    arrays = [np.arange(12, dtype=np.float32).reshape(3, 4), np.zeros(0, dtype=np.float32)]
    record = Record(
        key=key_of(1, "state"),
        parent=key_of(0).block_hash,
        num_tokens=64,
        payload=[array.data for array in arrays],
        metadata={"tokens": [1, 2], "text": "ü"},
    )
    path = write(tmp_path / "file", record)
    found = read_record(path, DIGEST, record.key)
    assert (found.key, found.parent, found.num_tokens) == (record.key, record.parent, 64)
    assert found.metadata == record.metadata
    assert [bytes(buffer) for buffer in found.payload] == [array.tobytes() for array in arrays]
    assert np.array_equal(np.frombuffer(found.payload[0], np.float32), arrays[0].reshape(-1))
    header = read_header(path)
    assert (header.namespace, header.key, header.parent) == (DIGEST, record.key, record.parent)


def test_a_flipped_bit_in_any_byte_is_found(tmp_path: Path) -> None:
    record = make_record(3, num_bytes=100)
    content = write(tmp_path / "whole", record).read_bytes()
    path = tmp_path / "flipped"
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(DamagedRecordError):
            read_record(path, DIGEST, record.key)


def test_a_file_that_is_too_short_or_too_long_is_found_without_reading_it(tmp_path: Path) -> None:
    record = make_record(3, num_bytes=100)
    path = write(tmp_path / "file", record)
    content = path.read_bytes()
    for changed in [*(content[:length] for length in range(len(content))), content + b"\0"]:
        path.write_bytes(changed)
        with pytest.raises(DamagedRecordError):
            read_record(path, DIGEST, record.key)
        with pytest.raises(DamagedRecordError):
            read_header(path)


@pytest.mark.parametrize(
    ("namespace", "key"), [(OTHER.digest, key_of(3)), (DIGEST, key_of(4)), (DIGEST, key_of(3, "x"))]
)
def test_a_whole_file_in_the_wrong_place_is_refused(
    tmp_path: Path, namespace: str, key: RecordKey
) -> None:
    path = write(tmp_path / "file", make_record(3))
    with pytest.raises(DamagedRecordError, match="another record"):
        read_record(path, namespace, key)
    assert content_of(read_record(path, DIGEST, key_of(3))) == content_of(make_record(3))


@pytest.mark.parametrize("kind", ["", "block:", "../x", "a-b", "block:0:1", "Block:0", "a/b"])
def test_a_kind_that_is_no_file_name_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="kind"):
        make_record(1, kind=kind)


def test_namespaces_differ_by_everything_that_shapes_records() -> None:
    fields = {"fingerprint": "g", "layout": "3 full", "block_size": 64, "dtype": "float16"}
    changed = [type(NAMESPACE).from_json(NAMESPACE.to_json())]
    assert changed[0] == NAMESPACE
    digests = {NAMESPACE.digest}
    for name, value in fields.items():
        values = {field: getattr(NAMESPACE, field) for field in ("model", *fields)}
        digests.add(type(NAMESPACE)(**{**values, name: value}).digest)
    assert len(digests) == 5
    renamed = {field: getattr(NAMESPACE, field) for field in fields}
    assert type(NAMESPACE)(**renamed, model="renamed").digest == NAMESPACE.digest
