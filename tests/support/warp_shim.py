"""Runs the quantised matmul kernel's source on the CPU; see `warp_shim.h`."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from kernel_shim import FLAGS
from numpy.typing import NDArray

from pippin.core.kernels.kernel_source import read
from pippin.core.kernels.quantized_matmul import BODY, Tile

_SIGNATURE = """
extern "C" void {name}(const void* x_, const int* x_shape, const uint32_t* weight,
                       const int* weight_shape, const void* scales_, const void* biases_,
                       void* total, int eager) {{
  using T = {dtype};
  using OUT = {out_dtype};
{constants}
  const T* x = static_cast<const T*>(x_);
  const T* scales = static_cast<const T*>(scales_);
  const T* biases = static_cast<const T*>(biases_);
  constexpr int SPLITS = {splits};
  const size_t size = size_t(x_shape[0]) * weight_shape[0];
  std::vector<float> partials(SPLITS * size);
  OUT* out = static_cast<OUT*>(SPLITS == 1 ? total : partials.data());
  std::vector<float4> memory({shared} / 16);
  char* shared = reinterpret_cast<char*>(memory.data());
  shim::eager = eager;
  shim::body = [&] {{ {body} }};
  gridDim.z = SPLITS;
  for (blockIdx.z = 0; blockIdx.z < SPLITS; ++blockIdx.z) {{
    for (blockIdx.y = 0; blockIdx.y * {outputs} < weight_shape[0]; ++blockIdx.y) {{
      for (blockIdx.x = 0; blockIdx.x * {rows} < x_shape[0]; ++blockIdx.x) {{
        memset(shared, 0xff, {shared});  // not a number, in every type
        shim::run_block({threads});
      }}
    }}
  }}
  if (SPLITS == 1) return;
  for (size_t i = 0; i < size; i += 4) {{
    sum_splits<T>(partials.data(), static_cast<T*>(total), SPLITS, size, i);
  }}
}}
"""


def build(folder: Path, kernels: Mapping[str, tuple[str, Mapping[str, int], Tile]]) -> ctypes.CDLL:
    """Compile kernels, by name: CUDA's name of the type, constants and tile."""
    parts = ['#include "warp_shim.h"', read("quantized_matmul")]
    for name, (dtype, constants, tile) in kernels.items():
        lines = [f"  constexpr int {key} = {value};" for key, value in constants.items()]
        body = BODY.replace("extern __shared__ __align__(16) char shared[];", "")
        text = _SIGNATURE.format(
            name=name,
            dtype=dtype,
            out_dtype=dtype if tile.splits == 1 else "float",
            constants="\n".join(lines),
            shared=-(-tile.shared // 16) * 16,
            body=body,
            outputs=tile.outputs,
            rows=tile.rows,
            splits=tile.splits,
            threads=tile.threads,
        )
        parts.append(text)
    source = folder / "kernels.cpp"
    source.write_text("\n".join(parts))
    library = folder / "kernels.so"
    subprocess.run(["g++", *FLAGS, str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def call(
    library: ctypes.CDLL, name: str, arrays: Sequence[NDArray[np.generic]], *, eager: bool
) -> NDArray[np.uint16]:
    """Run a kernel on x, weight, scales and biases; returns the bits of the 16-bit result."""
    x, weight, scales, biases = (np.ascontiguousarray(array) for array in arrays)
    out = np.zeros((x.shape[0], weight.shape[0]), np.uint16)
    shapes = [(ctypes.c_int * 2)(*array.shape) for array in (x, weight)]
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (x, weight, scales, biases, out)]
    getattr(library, name)(
        pointers[0], shapes[0], pointers[1], shapes[1], *pointers[2:], ctypes.c_int(eager)
    )
    return out
