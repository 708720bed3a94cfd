"""One record as a file: a fixed head, a JSON header, the raw bytes of the buffers.

The checksum covers everything before and after itself, so no flipped or missing byte goes
unnoticed. Where a file lies does not matter: it says itself which record of which namespace it is.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from ...errors import PippinError
from .record import FORMAT_VERSION, Buffer, Record, RecordKey

_MAGIC = b"PIPPINKV"
# Magic, format version, header bytes, payload bytes; then the checksum.
_SIZES = struct.Struct("<8sIIQ")
_CHECKSUM_BYTES = 16
_HEAD_BYTES = _SIZES.size + _CHECKSUM_BYTES
# The payload begins where any element type is aligned.
_ALIGNMENT = 64
_DISK_BLOCK_BYTES = 4096


class DamagedRecordError(PippinError):
    """A file is not the whole and unchanged record that it should be."""


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """What a file says of itself, besides the payload."""

    namespace: str
    key: RecordKey
    parent: bytes | None
    num_tokens: int
    buffer_bytes: tuple[int, ...]
    metadata: dict[str, Any]


def disk_bytes(file_bytes: int) -> int:
    """Room that a file of this length takes on a disk."""
    return -(-file_bytes // _DISK_BLOCK_BYTES) * _DISK_BLOCK_BYTES


def encode_record(namespace: str, record: Record) -> list[Buffer]:
    """The file's content, in pieces; the payload is not copied."""
    header = {
        "namespace": namespace,
        "block_hash": record.key.block_hash.hex(),
        "kind": record.key.kind,
        "parent": None if record.parent is None else record.parent.hex(),
        "num_tokens": record.num_tokens,
        "buffer_bytes": [memoryview(buffer).nbytes for buffer in record.payload],
        "metadata": dict(record.metadata),
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(_HEAD_BYTES + len(text)) % _ALIGNMENT)
    sizes = _SIZES.pack(_MAGIC, FORMAT_VERSION, len(text), record.payload_bytes)
    return [sizes, _checksum([sizes, text, *record.payload]), text, *record.payload]


def write_and_sync(file: BinaryIO, pieces: Sequence[Buffer]) -> None:
    """Write all pieces and wait until they are on the disk."""
    for piece in pieces:
        file.write(piece)
    file.flush()
    os.fsync(file.fileno())


def read_record(path: Path, namespace: str, key: RecordKey) -> Record:
    """Read and verify one record; its buffers are parts of one read-only buffer.

    Raises:
        DamagedRecordError: It is not that record, or not whole.
        OSError: It cannot be read.
    """
    content = _read(path)
    header_bytes, payload_bytes = _check_head(content, len(content))
    sizes, text = content[: _SIZES.size], content[_HEAD_BYTES : _HEAD_BYTES + header_bytes]
    payload = content[_HEAD_BYTES + header_bytes :]
    if _checksum([sizes, text, payload]) != content[_SIZES.size : _HEAD_BYTES]:
        raise DamagedRecordError("the checksum is wrong")
    header = _parse_header(bytes(text), payload_bytes)
    if (header.namespace, header.key) != (namespace, key):
        raise DamagedRecordError("it is another record's file")
    buffers, start = [], 0
    for num_bytes in header.buffer_bytes:
        buffers.append(payload[start : start + num_bytes])
        start += num_bytes
    return Record(
        key=key,
        parent=header.parent,
        num_tokens=header.num_tokens,
        payload=buffers,
        metadata=header.metadata,
    )


def read_header(path: Path) -> RecordHeader:
    """What a file says of itself, with its length checked but not its content.

    Raises:
        DamagedRecordError: It is no record, or not whole.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        header_bytes, payload_bytes = _check_head(head, os.fstat(file.fileno()).st_size)
        return _parse_header(file.read(header_bytes), payload_bytes)


def _read(path: Path) -> memoryview:
    with path.open("rb", buffering=0) as file:
        content = memoryview(bytearray(os.fstat(file.fileno()).st_size))
        done = 0
        while done < len(content) and (count := file.readinto(content[done:])):
            done += count
    return content[:done].toreadonly()


def _check_head(head: Buffer, file_bytes: int) -> tuple[int, int]:
    """Lengths of header and payload."""
    if len(head) < _HEAD_BYTES:
        raise DamagedRecordError("it is too short")
    magic, version, header_bytes, payload_bytes = _SIZES.unpack_from(head)
    if magic != _MAGIC or version != FORMAT_VERSION:
        raise DamagedRecordError("it is no record of this version")
    if _HEAD_BYTES + header_bytes + payload_bytes != file_bytes:
        raise DamagedRecordError("its length is wrong")
    return header_bytes, payload_bytes


def _parse_header(text: bytes, payload_bytes: int) -> RecordHeader:
    try:
        fields = json.loads(text)
        header = RecordHeader(
            namespace=str(fields["namespace"]),
            key=RecordKey(bytes.fromhex(fields["block_hash"]), str(fields["kind"])),
            parent=None if fields["parent"] is None else bytes.fromhex(fields["parent"]),
            num_tokens=int(fields["num_tokens"]),
            buffer_bytes=tuple(map(int, fields["buffer_bytes"])),
            metadata=dict(fields["metadata"]),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedRecordError("its header makes no sense") from error
    if sum(header.buffer_bytes) != payload_bytes or min(header.buffer_bytes, default=0) < 0:
        raise DamagedRecordError("its header makes no sense")
    return header


def _checksum(pieces: Sequence[Buffer]) -> bytes:
    digest = xxhash.xxh3_128()
    for piece in pieces:
        digest.update(piece)
    return digest.digest()
