"""Runs the attention kernel on the CPU: compiled as C++ with ``kernel_shim.h``, in lock step."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pippin.core.backend import mx
from pippin.core.kernels.kernel_shape import KernelShape, constants, make_tiling
from pippin.core.kernels.kernel_source import INPUTS, read
from pippin.core.kernels.paged_attention import Quantised, RowTable, float_bits

# The header wants glibc's contexts.
COMPILER = shutil.which("g++") if sys.platform == "linux" else None
# What some distributions switch on takes a jump to another lane's stack for an error.
_NO_FORTIFY = "-U_FORTIFY_SOURCE"
FLAGS = ("-std=c++17", "-O1", "-shared", "-fPIC", "-w", _NO_FORTIFY, f"-I{Path(__file__).parent}")
_TYPES = {mx.float16: "float16", mx.bfloat16: "bfloat16", mx.float32: "float"}
# Constants that no array's size depends on. Here they are variables, so that fewer variants have
# to be compiled.
_VARIABLES = (
    "BLOCK_SIZE",
    "NUM_KV_HEADS",
    "GROUP",
    "WINDOW",
    "HAS_SINKS",
    "NUM_HEADS",
    "SCALE_BITS",
)
_INT_INPUTS = {"table": "uint32_t", "after": "uint32_t", "firsts": "int32_t", "lengths": "int32_t"}
_FLOAT_INPUTS = ("sinks", "partials")

_SOURCE = """
#include "kernel_shim.h"
{store_reading}
using T = {dtype};
using S = T;
static int {variables};
static const int* table_shape;
static const int* partials_shape;
{inputs}
static void* output;
{constants}

template <typename O, bool PARTIAL>
static void paged_decode() {{
  const int thread_index = this_thread;
  O* out = static_cast<O*>(output);
  {paged_decode}
}}

static void merge_splits() {{
  const int thread_index = this_thread;
  T* out = static_cast<T*>(output);
  {merge_splits}
}}

extern "C" int run(
    int which, const int* variables, const void** pointers, const int* shape, void* out,
    const int* grid, int backwards) {{
  {take_variables}
  {take_inputs}
  table_shape = partials_shape = shape;
  output = out;
  void (*bodies[])() = {{paged_decode<T, false>, paged_decode<float, true>, merge_splits}};
  return run_grid(bodies[which], grid, WARPS * 32, backwards != 0);
}}
"""


def attend(  # noqa: PLR0913
    shape: KernelShape,
    queries: mx.array,
    keys: mx.array | Quantised,
    values: mx.array | Quantised,
    rows: RowTable,
    *,
    scale: float,
    sinks: mx.array | None = None,
    num_splits: int = 1,
    max_warps: int = 4,
    backwards: bool = False,
) -> NDArray[np.float64]:
    """As `paged_decode_attention`.

    Args:
        backwards: Run warps and lanes in the opposite order, which nothing may depend on.

    Raises:
        RuntimeError: Threads did not meet at a barrier.
    """
    tiling = make_tiling(shape, max_warps)
    fixed = constants(shape, tiling) | {
        "NUM_HEADS": shape.num_heads,
        "SCALE_BITS": float_bits(scale * math.log2(math.e)),
    }
    library = _compiled(
        _TYPES[shape.dtype],
        tuple((name, int(value)) for name, value in fixed.items() if name not in _VARIABLES),
        (bool(shape.key_bits), bool(shape.value_bits)),
    )
    num_rows = queries.shape[0]
    unused = (queries, queries)
    stores = [
        *((keys, *unused) if isinstance(keys, mx.array) else keys),
        *((values, *unused) if isinstance(values, mx.array) else values),
    ]
    sinks = mx.zeros(1) if sinks is None else sinks.astype(mx.float32)
    decode = dict(
        zip(
            INPUTS["paged_decode"],
            [queries, *stores, *rows, sinks, rows.blocks],
            strict=True,
        )
    )
    dtype = mx.float32 if num_splits > 1 else shape.dtype
    width = shape.value_dim + 2 if num_splits > 1 else shape.value_dim
    out_size = num_rows * shape.num_heads * num_splits * width
    # Whatever a kernel does not write stays NaN.
    out = mx.full((out_size,), math.nan, dtype=dtype)
    out = _run(
        library,
        int(num_splits > 1),
        fixed,
        decode,
        [int(size) for size in rows.blocks.shape],
        out,
        (num_splits, shape.num_kv_heads * tiling.grid_tiles, num_rows),
        backwards,
    )
    if num_splits > 1:
        merged = mx.full((num_rows * shape.num_heads * shape.value_dim,), math.nan, shape.dtype)
        out = _run(
            library,
            2,
            fixed,
            {"partials": out, "sinks": sinks},
            [num_rows * shape.num_heads, num_splits, width],
            merged,
            (num_rows * shape.num_heads, 1, 1),
            backwards,
        )
    return np.array(out.astype(mx.float32), dtype=np.float64).reshape(
        num_rows, shape.num_heads, 1, shape.value_dim
    )


def _run(
    library: ctypes.CDLL,
    which: int,
    fixed: dict[str, int | bool],
    inputs: dict[str, mx.array],
    shape: list[int],
    out: mx.array,
    grid: tuple[int, int, int],
    backwards: bool,
) -> mx.array:
    names = _input_names()
    arrays = {name: _raw(array) for name, array in inputs.items()}
    pointers = [arrays[name].ctypes.data if name in arrays else None for name in names]
    result = _raw(out).copy()
    failed = library.run(
        which,
        (ctypes.c_int * len(_VARIABLES))(*(int(fixed[name]) for name in _VARIABLES)),
        (ctypes.c_void_p * len(names))(*pointers),
        (ctypes.c_int * len(shape))(*shape),
        ctypes.c_void_p(result.ctypes.data),
        (ctypes.c_int * 3)(*grid),
        int(backwards),
    )
    if failed:
        raise RuntimeError(f"{'lanes' if failed == 1 else 'warps'} did not meet at a barrier")
    return mx.array(result).view(out.dtype)


def _raw(array: mx.array) -> NDArray[np.generic]:
    """The array's bits; numpy has no bfloat16."""
    wide = array.dtype.size == 4
    return np.ascontiguousarray(np.array(array.view(mx.uint32 if wide else mx.uint16)))


def _input_names() -> list[str]:
    return [*INPUTS["paged_decode"], "partials"]


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="pippin-kernels-")


@functools.cache
def _compiled(
    dtype: str, fixed: tuple[tuple[str, int], ...], quantised: tuple[bool, bool]
) -> ctypes.CDLL:
    assert COMPILER is not None
    types = dict.fromkeys(INPUTS["paged_decode"], dtype) | _INT_INPUTS
    types |= dict.fromkeys(_FLOAT_INPUTS, "float")
    for name, is_quantised in zip(("keys", "values"), quantised, strict=True):
        types[name] = "uint32_t" if is_quantised else dtype
    names = _input_names()
    text = _SOURCE.format(
        store_reading=read("store_reading"),
        paged_decode=read("paged_decode"),
        merge_splits=read("merge_splits"),
        dtype=dtype,
        variables=", ".join(_VARIABLES),
        constants="\n".join(f"constexpr int {name} = {value};" for name, value in fixed),
        inputs="\n".join(f"static const {types[name]}* {name};" for name in names),
        take_variables=" ".join(f"{name} = variables[{i}];" for i, name in enumerate(_VARIABLES)),
        take_inputs=" ".join(
            f"{name} = static_cast<const {types[name]}*>(pointers[{i}]);"
            for i, name in enumerate(names)
        ),
    )
    binary = Path(_folder().name, hashlib.sha256(text.encode()).hexdigest()).with_suffix(".so")
    command = [COMPILER, *FLAGS, "-o", str(binary), "-xc++", "-"]
    subprocess.run(command, input=text, text=True, check=True)
    return ctypes.CDLL(str(binary))
