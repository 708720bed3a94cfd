import struct
from pathlib import Path

import pytest

from pippin.core.backend import mx
from pippin.core.errors import ModelLoadError
from pippin.core.models.gguf import convert_gguf
from pippin.core.models.gguf_header import read_gguf_header
from pippin.core.models.progress import NullProgress


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def make_file(path: Path, *, version: int = 3, tensor_type: int = 0, arch: str = "llama") -> Path:
    """A header with one string, one nested array, and one tensor of 32 numbers."""
    entries = [
        text("general.architecture") + struct.pack("<I", 8) + text(arch),
        text("nested") + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQhh", 3, 2, -1, 7),
        text("flag") + struct.pack("<I?", 7, True),
    ]
    info = text("token_embd.weight") + struct.pack("<IQIQ", 1, 32, tensor_type, 0)
    head = b"GGUF" + struct.pack("<IQQ", version, 1, len(entries))
    path.write_bytes(head + b"".join(entries) + info)
    return path


def test_metadata_and_types_are_read(tmp_path: Path) -> None:
    header = read_gguf_header(make_file(tmp_path / "a.gguf", tensor_type=12))
    assert header.metadata == {"general.architecture": "llama", "nested": [[-1, 7]], "flag": True}
    assert header.tensor_types == {"token_embd.weight": "Q4_K"}


def test_it_agrees_with_mlx(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    metadata: dict[str, mx.array | str | list[str]] = {
        "name": "x",
        "list": ["a", "ü"],
        "number": mx.array(7, mx.uint32),
    }
    mx.save_gguf(str(path), {"w": mx.ones((2, 32), mx.float16), "v": mx.ones((4,))}, metadata)
    header = read_gguf_header(path)
    assert header.metadata == {"name": "x", "list": ["a", "ü"], "number": 7}
    assert header.tensor_types == {"w": "F16", "v": "F32"}
    assert header.num_bytes == path.stat().st_size


@pytest.mark.parametrize("length", [0, 3, 10, 40, 100, 150])
def test_a_file_cut_short_is_said_to_be_one(tmp_path: Path, length: int) -> None:
    path = make_file(tmp_path / "a.gguf")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ModelLoadError, match=r"cut short|not a GGUF file"):
        read_gguf_header(path)


def test_other_files_and_versions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="version 1"):
        read_gguf_header(make_file(tmp_path / "old.gguf", version=1))
    other = tmp_path / "b.gguf"
    other.write_bytes(b"PK\x03\x04" * 20)
    with pytest.raises(ModelLoadError, match="not a GGUF file"):
        read_gguf_header(other)


def test_absurd_lengths_are_no_memory_error(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    path.write_bytes(head + text("k") + struct.pack("<IIQ", 9, 4, 2**60))
    with pytest.raises(ModelLoadError, match="cut short"):
        read_gguf_header(path)


@pytest.mark.parametrize(
    ("kind", "arch", "said"),
    [(12, "llama", "Q4_K"), (99, "llama", "number 99"), (0, "mamba", "'mamba' cannot be")],
)
def test_what_cannot_be_converted_is_named(tmp_path: Path, kind: int, arch: str, said: str) -> None:
    path = make_file(tmp_path / "a.gguf", tensor_type=kind, arch=arch)
    with pytest.raises(ModelLoadError, match=said):
        convert_gguf(path, NullProgress())
