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
from pippin.core.kernels.quantized_matmul import BODY, SPLIT_BODY, Tile

_SIGNATURE = """
extern "C" void {name}(const void* x_, const int* x_shape, const uint32_t* weight,
                       const int* weight_shape, const void* scales_, const void* biases_,
                       void* out_, int eager) {{
  using T = {dtype};
{constants}
  const T* x = static_cast<const T*>(x_);
  const T* scales = static_cast<const T*>(scales_);
  const T* biases = static_cast<const T*>(biases_);
  T* out = static_cast<T*>(out_);
  constexpr int SPLITS = {splits};
  const size_t size = size_t(x_shape[0]) * weight_shape[0];
  std::vector<float> sums(SPLITS * size, NAN);
  float* partials = sums.data();
  std::vector<float4> memory({shared} / 16);
  char* shared = reinterpret_cast<char*>(memory.data());
  shim::eager = eager;
  gridDim = {{(x_shape[0] + {rows} - 1) / {rows}, (weight_shape[0] + {outputs} - 1) / {outputs},
             SPLITS}};
  std::vector<uint32_t> counted(gridDim.x * gridDim.y);
  const uint32_t* counters = counted.data();
  shim::body = [&] {{ {body} }};
  for (int z = 0; z < SPLITS; ++z) {{
    blockIdx.z = eager ? SPLITS - 1 - z : z;
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y) {{
      for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {{
        memset(shared, 0xff, {shared});  // not a number, in every type
        shim::run_block({threads});
      }}
    }}
  }}
  for (const uint32_t count : counted) {{
    if (count != 0) shim::stop("a counter is not as it was");
  }}
}}
"""


def build(folder: Path, kernels: Mapping[str, tuple[str, Mapping[str, int], Tile]]) -> ctypes.CDLL:
    """Compile kernels, by name: CUDA's name of the type, constants and tile."""
    parts = ['#include "warp_shim.h"', read("quantized_matmul")]
    for name, (dtype, constants, tile) in kernels.items():
        lines = [f"  constexpr int {key} = {value};" for key, value in constants.items()]
        body = (SPLIT_BODY if tile.splits > 1 else BODY).replace(
            "extern __shared__ __align__(16) char shared[];", ""
        )
        text = _SIGNATURE.format(
            name=name,
            dtype=dtype,
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
