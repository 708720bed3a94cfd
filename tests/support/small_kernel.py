"""Runs a kernel of one piece on the CPU, through ``kernel_shim.h``."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import kernel_shim
import numpy as np

from pippin.core.backend import mx
from pippin.core.kernels.kernel_source import INPUTS, OUTPUTS, read

_TYPES = {mx.float16: "float16", mx.bfloat16: "bfloat16", mx.float32: "float"}
_TYPES |= {mx.int32: "int", mx.uint32: "unsigned"}
_SOURCE = """
#include "kernel_shim.h"
using T = {dtype};
using S = T;
{constants}
{arrays}
static void body() {{
  const int thread_index = this_thread;
  {body}
}}
extern "C" int run(void** arrays, int blocks, int backwards) {{
  {take}
  const int grid[] = {{blocks, 1, 1}};
  return run_grid(body, grid, WARPS * 32, backwards != 0);
}}
"""


def run_kernel(
    kernel: str,
    folder: Path,
    inputs: Sequence[mx.array],
    outputs: Sequence[mx.array],
    constants: Mapping[str, int | bool],
    *,
    blocks: int,
    backwards: bool = False,
) -> list[mx.array]:
    """All arrays as they are afterwards: inputs, which a kernel may write to, and outputs."""
    arrays = [*inputs, *outputs]
    names = [*INPUTS[kernel], *OUTPUTS.get(kernel, ("out",))]
    types = dict(zip(names, (_TYPES[array.dtype] for array in arrays), strict=True))
    shapes = (
        f"static const int {name}_shape[] = {{{', '.join(map(str, array.shape))}}};"
        for name, array in zip(names, arrays, strict=True)
    )
    text = _SOURCE.format(
        dtype=types[names[0]],
        constants="\n".join(f"constexpr int {key} = {int(it)};" for key, it in constants.items()),
        arrays="\n".join((*(f"static {type_}* {name};" for name, type_ in types.items()), *shapes)),
        body=read(kernel),
        take="\n".join(
            f"{name} = static_cast<{type_}*>(arrays[{i}]);"
            for i, (name, type_) in enumerate(types.items())
        ),
    )
    library = folder / f"{kernel}.so"
    command = [str(kernel_shim.COMPILER), *kernel_shim.FLAGS, "-o", str(library), "-xc++", "-"]
    subprocess.run(command, input=text, text=True, check=True)
    raw = [np.array(it.view(mx.uint32 if it.dtype.size == 4 else mx.uint16)) for it in arrays]
    pointers = (ctypes.c_void_p * len(raw))(*(it.ctypes.data for it in raw))
    if ctypes.CDLL(str(library)).run(pointers, blocks, int(backwards)):
        raise RuntimeError("threads did not meet at a barrier")
    return [mx.array(it).view(array.dtype) for it, array in zip(raw, arrays, strict=True)]
