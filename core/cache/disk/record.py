"""What the disk tier keeps: records under keys, in namespaces that never mix."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, TypeAlias

# Raised whenever files of older versions could be misread; those are then deleted at start.
FORMAT_VERSION = 1
KEY_BYTES = 16

Buffer: TypeAlias = bytes | bytearray | memoryview
_KIND = re.compile(r"[a-z][a-z0-9_]{0,30}(:[0-9]{1,4})?", re.ASCII)


class RecordKey(NamedTuple):
    """Name of a record inside its namespace.

    Attributes:
        block_hash: 16 bytes.
        kind: What of the block: ``block:0`` for layer group 0, ``state`` for a checkpoint. Letters,
            digits and ``_``, then optionally ``:`` and a number.
    """

    block_hash: bytes
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One cache entry.

    Attributes:
        parent: Block hash of what comes before in the text; ``None`` at the start of a text. While
            a record of the same kind names another as its parent, the other is not evicted.
        num_tokens: Tokens covered from the start of the text.
        payload: Contiguous buffers. They must not change until they are written; a fetched record
            has memoryviews of one read-only buffer.
        metadata: Anything small that JSON can hold, such as ``{"tokens": [ids]}`` for previews.
    """

    key: RecordKey
    parent: bytes | None
    num_tokens: int
    payload: Sequence[Buffer]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.key.block_hash) != KEY_BYTES or len(self.parent or bytes(KEY_BYTES)) != 16:
            raise ValueError("keys and parents of records have 16 bytes")
        if _KIND.fullmatch(self.key.kind) is None:
            raise ValueError(f"'{self.key.kind}' is not a kind of record")

    @property
    def payload_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(memoryview(buffer).nbytes for buffer in self.payload)


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """What all records of one kind of cache have in common. Two that differ never share a record.

    Attributes:
        model: Its name, for people.
        fingerprint: Names the weights and their dtype.
        layout: What the layers keep, in words.
        dtype: Of keys and values, such as ``bfloat16`` or ``4-bit keys, 8-bit values``.
        model_path: Folder of the model, for previews; empty if unknown. Not part of the digest.
    """

    model: str
    fingerprint: str
    layout: str
    block_size: int
    dtype: str
    model_path: str = ""

    @property
    def digest(self) -> str:
        """32 hex digits that differ whenever records cannot be shared."""
        parts = [FORMAT_VERSION, self.fingerprint, self.layout, self.block_size, self.dtype]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()

    def to_json(self) -> str:
        """All fields, as an object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Namespace:
        """What `to_json` gave; what is not there is ``unknown``."""
        fields = json.loads(text)
        texts = {
            name: str(fields.get(name, "unknown"))
            for name in ("model", "fingerprint", "layout", "dtype")
        }
        return cls(
            **texts,
            block_size=int(fields.get("block_size", 0)),
            model_path=str(fields.get("model_path", "")),
        )
