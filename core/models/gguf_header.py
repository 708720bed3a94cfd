"""The head of a GGUF file: its metadata, and name and type of every tensor.

mlx reads the tensors. Its reader stops at the first one of a type it does not know without saying
which type that is, so the head is looked at first.

Source: ggml-org/ggml, docs/gguf.md, format version 3 (version 2 has the same layout).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from ..errors import ModelLoadError

_MAGIC = b"GGUF"
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9

_TENSOR_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    8: "Q8_0",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    30: "BF16",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}

_Wanted = TypeVar("_Wanted", int, float, str, bool)


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """What a GGUF file says about itself.

    Attributes:
        metadata: Plain Python values by key.
        tensor_types: Name of the storage type by tensor name.
        num_bytes: Size of the file, in bytes.
    """

    metadata: dict[str, Any]
    tensor_types: dict[str, str]
    num_bytes: int

    @property
    def architecture(self) -> str:
        """``general.architecture``, such as ``llama``."""
        return self.get("general.architecture", str)

    def get(self, key: str, kind: type[_Wanted], default: _Wanted | None = None) -> _Wanted:
        """A scalar of the metadata.

        Raises:
            ModelLoadError: It is missing and there is no default, or it is of another kind.
        """
        value = self.metadata.get(key, default)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            said = "missing" if value is None else f"not one {kind.__name__}"
            raise ModelLoadError(f"GGUF metadata {key} is {said}")
        return value


def read_gguf_header(path: Path) -> GgufHeader:
    """Read the head of a GGUF file.

    Raises:
        ModelLoadError: It is not a GGUF file of version 2 or 3, or it is cut short.
    """
    with path.open("rb") as file:
        try:
            if file.read(4) != _MAGIC:
                raise ModelLoadError(f"{path.name} is not a GGUF file")
            (version,) = _unpack(file, "<I")
            if version not in (2, 3):
                raise ModelLoadError(f"{path.name} has GGUF version {version}; 2 and 3 are known")
            num_tensors, num_entries = _unpack(file, "<QQ")
            metadata: dict[str, Any] = {}
            for _ in range(num_entries):
                key = _read_string(file)
                metadata[key] = _read_value(file, *_unpack(file, "<I"))
            types = dict(_read_tensor_info(file) for _ in range(num_tensors))
        except (struct.error, KeyError, UnicodeDecodeError, OverflowError, MemoryError) as error:
            raise ModelLoadError(f"{path.name} is damaged or cut short: {error}") from error
    return GgufHeader(metadata=metadata, tensor_types=types, num_bytes=path.stat().st_size)


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _read_string(file: BinaryIO) -> str:
    (num_bytes,) = _unpack(file, "<Q")
    text = file.read(num_bytes)
    if len(text) < num_bytes:
        raise struct.error("a string runs past the end")
    # Tokens of damaged vocabularies hold stray bytes; the rest of the file is still good.
    return text.decode("utf-8", "replace")


def _read_value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _read_string(file)
    if kind != _ARRAY:
        return _unpack(file, _SCALARS[kind])[0]
    item_kind, length = _unpack(file, "<IQ")
    if item_kind in (_STRING, _ARRAY):
        return [_read_value(file, item_kind) for _ in range(length)]
    layout = _SCALARS[item_kind]
    return list(_unpack(file, f"<{length}{layout[1]}"))


def _read_tensor_info(file: BinaryIO) -> tuple[str, str]:
    name = _read_string(file)
    (num_dims,) = _unpack(file, "<I")
    _unpack(file, f"<{num_dims}Q")
    kind, _offset = _unpack(file, "<IQ")
    return name, _TENSOR_TYPES.get(kind, f"number {kind}")
