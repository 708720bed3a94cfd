"""The head of a safetensors file: dtype, shape and bytes of every tensor, without reading any.

Source: huggingface.co/docs/safetensors, "Format".
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

from ..errors import ModelLoadError

_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "U32": "uint32",
    "U8": "uint8",
    "F8_E4M3": "float8",
    "F8_E5M2": "float8",
}


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One tensor.

    Attributes:
        dtype: MLX's name of it, or the file's where MLX has none.
    """

    dtype: str
    shape: tuple[int, ...]
    num_bytes: int

    @property
    def size(self) -> int:
        """Count of its numbers."""
        return math.prod(self.shape)


def read_tensor_headers(path: Path) -> dict[str, TensorHeader]:
    """The tensors of a file by name.

    Raises:
        ModelLoadError: It is no safetensors file, or is cut short.
    """
    try:
        with path.open("rb") as file:
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            if header_bytes > _MAX_HEADER_BYTES:
                raise ValueError("no header")
            table = json.loads(file.read(header_bytes))
        table.pop("__metadata__", None)
        headers = {name: _read_entry(entry) for name, entry in table.items()}
        end = 8 + header_bytes + max((it["data_offsets"][1] for it in table.values()), default=0)
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelLoadError(f"{path} is not a safetensors file, or is damaged") from error
    if path.stat().st_size < end:
        raise ModelLoadError(f"{path} is cut short")
    return headers


def _read_entry(entry: dict[str, object]) -> TensorHeader:
    shape, (start, stop) = entry["shape"], entry["data_offsets"]  # type: ignore[misc]
    dtype = str(entry["dtype"])
    return TensorHeader(_DTYPES.get(dtype, dtype), tuple(shape), stop - start)  # type: ignore[arg-type, has-type]
