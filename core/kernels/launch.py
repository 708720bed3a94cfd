"""Starts kernels through MLX."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

from ..backend import device_kind, mx
from ..errors import ConfigError
from .kernel_source import (
    INPUTS,
    OPENINGS,
    OUTPUTS,
    header,
    read,
    refer,
    small_inputs,
    unique_name,
)


def are_kernels_off() -> bool:
    """Whether ``PIPPIN_KERNELS=off`` asks for MLX's own operations only, to compare or to get by.

    Raises:
        ConfigError: The variable holds anything but ``off`` and ``auto``.
    """
    chosen = os.environ.get("PIPPIN_KERNELS") or "auto"
    if chosen not in ("auto", "off"):
        raise ConfigError(f"PIPPIN_KERNELS must be 'auto' or 'off', got {chosen!r}")
    return chosen == "off"


def launch(
    kernel: str,
    inputs: list[mx.array],
    template: dict[str, int | bool | mx.Dtype],
    *,
    grid: tuple[int, int, int],
    threads: int,
    out_shape: tuple[int, ...],
    out_dtype: mx.Dtype,
) -> mx.array:
    """Start a kernel that has one output on a grid of thread blocks."""
    outs = [(out_shape, out_dtype)]
    return launch_all(kernel, inputs, template, grid=grid, threads=threads, outs=outs)[0]


def launch_all(
    kernel: str,
    inputs: list[mx.array],
    template: dict[str, int | bool | mx.Dtype],
    *,
    grid: tuple[int, int, int],
    threads: int,
    outs: Sequence[tuple[tuple[int, ...], mx.Dtype]],
) -> Sequence[mx.array]:
    """Start a kernel on a grid of thread blocks.

    Args:
        outs: Shape and dtype of each output.
    """
    return _kernel(kernel, threads)(
        inputs=inputs,
        template=[*template.items(), ("SMALL_INPUTS", small_inputs(inputs))],
        grid=(grid[0] * threads, *grid[1:]),
        threadgroup=(threads, 1, 1),
        output_shapes=[shape for shape, _ in outs],
        output_dtypes=[dtype for _, dtype in outs],
    )


@functools.cache
def _kernel(kernel: str, threads: int) -> Callable[..., Sequence[mx.array]]:
    dialect = device_kind()
    prelude = f"prelude_{dialect}"
    fast: Any = mx.fast  # mlx's stubs leave cuda_kernel out
    make = fast.cuda_kernel if dialect == "cuda" else fast.metal_kernel
    made: Callable[..., Sequence[mx.array]] = make(
        name=unique_name(kernel, header(read(prelude), threads)),
        input_names=INPUTS[kernel],
        output_names=OUTPUTS.get(kernel, ("out",)),
        source=OPENINGS[dialect] + refer(kernel),
        header=header(refer(prelude), threads, refer),
    )
    return made
