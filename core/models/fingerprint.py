"""A short name for the very weights of a model, to key caches with.

Two folders with the same fingerprint hold the same model; a changed weight, shape, dtype or
setting changes it; a restart, a copy or a rename does not.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_SAMPLE_BYTES = 4096
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


def fingerprint_model(
    config: Mapping[str, Any], weight_files: Iterable[Path], *, compute_dtype: str
) -> str:
    """Hash settings, tensor tables and a sample of every tensor.

    Reading all the bytes of a large model takes minutes. A piece from the middle of every tensor
    is enough to tell fine-tunes apart, since training moves whole tensors, not single weights.

    Args:
        config: The model's ``config.json``.
        weight_files: Its safetensors files, in any order.
        compute_dtype: What the weights become at load; keys and values depend on it.

    Returns:
        32 hexadecimal digits.

    Raises:
        ValueError: A file is not a safetensors file or is cut short.

    Source: huggingface.co/docs/safetensors, "Format".
    """
    digest = hashlib.sha256()
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    digest.update(compute_dtype.encode())
    for path in sorted(weight_files, key=lambda file: file.name):
        _update_with_file(digest, path)
    return digest.hexdigest()[:32]


def _update_with_file(digest: hashlib._Hash, path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(8)
        if len(head) < 8:
            raise ValueError(f"{path.name} is cut short")
        (header_bytes,) = struct.unpack("<Q", head)
        if header_bytes > _MAX_HEADER_BYTES:
            raise ValueError(f"{path.name} is not a safetensors file")
        header = file.read(header_bytes)
        table = json.loads(header)
        digest.update(header)
        table.pop("__metadata__", None)
        spans = [tuple(table[name]["data_offsets"]) for name in sorted(table)]
        data_starts_at = 8 + header_bytes
        if path.stat().st_size < data_starts_at + max((stop for _, stop in spans), default=0):
            raise ValueError(f"{path.name} is cut short")
        for start, stop in spans:
            middle = start + max(0, (stop - start - _SAMPLE_BYTES) // 2)
            file.seek(data_starts_at + middle)
            digest.update(file.read(min(_SAMPLE_BYTES, stop - middle)))
