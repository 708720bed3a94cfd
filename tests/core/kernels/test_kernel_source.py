"""The text that MLX compiles: names, and the CUDA dialect through nvcc where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from kernel_shim_cases import make_shape

from pippin.core.backend import mx
from pippin.core.kernels import kernel_source
from pippin.core.kernels.kernel_shape import KernelShape, constants, make_tiling
from pippin.core.kernels.kernel_source import INPUTS, OPENINGS, header, read, unique_name

_NVCC = shutil.which("nvcc")
# Words of the Metal language, and attributes that MLX declares if it finds them in a body.
# Source: Metal Shading Language Specification, sections 2 and 5.
_TAKEN_NAMES = (
    "half|ushort|uchar|kernel|device|constant|thread|threadgroup|vertex|fragment|sampler|"
    "grid_size|grid_origin|threads_per_\\w+|threadgroups_per_grid|\\w+_per_threadgroup|"
    "thread_(position|index)_in_\\w+|threadgroup_position_in_grid|simdgroup\\w*|quadgroup\\w*"
)
_CUDA_TYPES = {mx.float16: "__half", mx.bfloat16: "__nv_bfloat16", mx.float32: "float"}


@pytest.mark.parametrize("name", ["paged_decode", "merge_splits", "store_reading", "store_write"])
def test_no_variable_has_a_name_that_metal_takes(name: str) -> None:
    text = re.sub(r"//.*", "", read(name) + OPENINGS["metal"])
    found = re.findall(
        rf"\b(?:bool|int3?|u?int32_t|long|size_t|float2?)\s+({_TAKEN_NAMES})\b", text
    )
    assert not found


def test_a_kernel_is_renamed_when_its_text_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    before = header("prelude", 512)
    name = unique_name("paged_decode", before)
    assert name == unique_name("paged_decode", before)
    assert name != unique_name("paged_decode", header("prelude", 256))
    assert name != unique_name("merge_splits", before)
    monkeypatch.setattr(kernel_source, "read", lambda _: "another body")
    assert name != unique_name("paged_decode", before)


@pytest.mark.parametrize("name", ["paged_decode", "merge_splits", "rope_write", "add_norm"])
def test_cuda_is_given_an_include_and_the_names_of_shapes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_source, "device_kind", lambda: "cuda")
    text = kernel_source.refer(name)
    included = re.search(r'#include "(.+)"', text)
    assert included
    assert Path(included[1]).read_text(encoding="utf-8") == read(name)
    assert set(re.findall(r"\w+_shape", text)) == set(re.findall(r"\w+_shape", read(name)))
    assert len(text) < 300
    monkeypatch.setattr(kernel_source, "device_kind", lambda: "metal")
    assert kernel_source.refer(name) == read(name)


@pytest.mark.skipif(_NVCC is None, reason="no nvcc")
@pytest.mark.parametrize(
    "shape",
    [
        make_shape(32, 8, 128, dtype=mx.bfloat16),
        make_shape(64, 8, dtype=mx.bfloat16, window=128, has_sinks=True),
        make_shape(28, 4, 128, dtype=mx.float16, key_bits=8, value_bits=4),
    ],
    ids=str,
)
def test_nvcc_compiles_it_without_running_out_of_registers(
    shape: KernelShape, tmp_path: Path
) -> None:
    assert _NVCC is not None
    source = tmp_path / "kernel.cu"
    source.write_text(_cuda_text(shape), encoding="utf-8")
    command = [_NVCC, "-arch=sm_90", "-Xptxas=-v", "-cubin", "-o", str(tmp_path / "out")]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    spilled = [int(count) for count in re.findall(r"(\d+) bytes spill stores", done.stderr)]
    assert max(spilled) < 128


def _cuda_text(shape: KernelShape) -> str:
    """What MLX makes of the source."""
    tiling = make_tiling(shape, 16)
    dtype = _CUDA_TYPES[shape.dtype]
    types = dict.fromkeys(INPUTS["paged_decode"], dtype)
    types |= {"table": "uint32_t", "after": "uint32_t", "firsts": "int", "lengths": "int"}
    types |= {"sinks": "float" if shape.has_sinks else dtype}
    types |= {"keys": "uint32_t"} if shape.key_bits else {}
    types |= {"values": "uint32_t"} if shape.value_bits else {}
    return "\n".join(
        [
            "#include <cstdint>\n#include <cuda_bf16.h>\n#include <cuda_fp16.h>",
            "struct Shape { int at[9]; __device__ int operator[](int i) const { return at[i]; } };",
            header(read("prelude_cuda"), tiling.threads),
            "__global__ void kernel(",
            *(f"const {of}* {name}," for name, of in types.items()),
            f"const __grid_constant__ Shape table_shape, {dtype}* out) {{",
            f"using T = {dtype}; using S = T; using O = T; constexpr bool PARTIAL = false;",
            *(
                f"constexpr int {name} = {int(of)};"
                for name, of in {**constants(shape, tiling), "SCALE_BITS": 0}.items()
            ),
            OPENINGS["cuda"],
            read("paged_decode"),
            "}",
        ]
    )


@pytest.mark.skipif(_NVCC is None, reason="no nvcc")
def test_nvcc_compiles_the_store_write(tmp_path: Path) -> None:
    assert _NVCC is not None
    inputs = dict.fromkeys(INPUTS["store_write"], "__nv_bfloat16")
    inputs |= {"slots": "int32_t", "slots_shape": "int32_t"}
    sizes = {"KEY_DIM": 128, "VALUE_DIM": 64, "NUM_KV_HEADS": 8, "BLOCK_SIZE": 32, "THREADS": 256}
    text = [
        "#include <cstdint>\n#include <cuda_bf16.h>\n#include <cuda_fp16.h>",
        header(read("prelude_cuda"), 256),
        "__global__ void kernel(",
        *(f"const {of}* {name}," for name, of in inputs.items()),
        "uint32_t* out) { using S = __nv_bfloat16;",
        *(f"constexpr int {name} = {size};" for name, size in sizes.items()),
        OPENINGS["cuda"],
        read("store_write"),
        "}",
    ]
    source = tmp_path / "kernel.cu"
    source.write_text("\n".join(text), encoding="utf-8")
    command = [_NVCC, "-arch=sm_90", "-cubin", "-o", str(tmp_path / "out"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
