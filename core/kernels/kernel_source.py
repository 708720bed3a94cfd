"""The text of the kernels: one source, and a prelude for each dialect that it is compiled as."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

from ..backend import device_kind, mx

# Inputs of each kernel, in the order of its signature. A variant is given the queries in place of
# what it does not use (scales and biases of a plain store, sinks), and the table for `after`;
# `rope_write` is given what is projected.
INPUTS = {
    "paged_decode": (
        "queries",
        "keys",
        "key_scales",
        "key_biases",
        "values",
        "value_scales",
        "value_biases",
        "table",
        "firsts",
        "lengths",
        "sinks",
        "after",
    ),
    "add_norm": ("stream", "added", "weight"),
    "merge_splits": ("partials", "sinks"),
    "rope_write": (
        "projected",
        "query_norm",
        "key_norm",
        "periods",
        "positions",
        "slots",
        "key_store",
        "value_store",
    ),
    "store_write": ("keys", "values", "slots", "key_store", "value_store"),
}
# Outputs, of kernels that have other ones than `out`.
OUTPUTS = {"add_norm": ("sums", "normed")}
# First lines of a kernel's body: where the thread stands. MLX gives the signature those of Metal's
# attributes that it finds in the body.
OPENINGS = {
    "cuda": """
const int3 grid_position = make_int3(blockIdx.x, blockIdx.y, blockIdx.z);
const int3 grid_extent = make_int3(gridDim.x, gridDim.y, gridDim.z);
const int thread_index = threadIdx.x;
""",
    "metal": """
const int3 grid_position = int3(threadgroup_position_in_grid);
const int3 grid_extent = int3(threadgroups_per_grid);
const int thread_index = thread_position_in_threadgroup.x;
""",
}


@functools.cache
def read(name: str) -> str:
    """One of the source files beside this module."""
    return resources.files(__package__).joinpath(f"{name}.inc").read_text(encoding="utf-8")


def refer(name: str) -> str:
    """Text that stands for `read`'s in what MLX is given: where CUDA compiles it, an include.

    MLX's CUDA backend hashes the whole text of a kernel whenever it starts it, which took a seventh
    of a decode step.
    """
    path = resources.files(__package__).joinpath(f"{name}.inc")
    if device_kind() != "cuda" or not isinstance(path, Path):
        return read(name)
    # MLX passes on the shapes that it finds the names of.
    shapes = " ".join(sorted(set(re.findall(r"\w+_shape", read(name)))))
    return f'#include "{path}"\n// {shapes}\n'


def header(prelude: str, max_threads: int, get: Callable[[str], str] = read) -> str:
    """What comes before a kernel.

    Args:
        prelude: Text that defines the dialect.
        max_threads: Most threads that a thread block of the kernel is started with.
        get: Gives the text of a source file.
    """
    return f"#define MAX_THREADS {max_threads}\n{prelude}\n{get('store_reading')}"


def unique_name(kernel: str, header: str) -> str:
    """A name that changes with the source: MLX keeps compiled kernels by name, even on disk."""
    digest = hashlib.sha256((header + read(kernel)).encode()).hexdigest()[:12]
    return f"pippin_{kernel}_{digest}"


def small_inputs(inputs: Sequence[mx.array]) -> int:
    """A bit for each input that is small. To be a constant of every kernel.

    MLX puts an input of fewer than 8 numbers into another address space on Metal, but not into the
    kernel's name; batches of 7 and 8 rows by turns would be a compilation each.
    """
    if device_kind() != "metal":
        return 0
    return sum((array.size < 8) << i for i, array in enumerate(inputs))
