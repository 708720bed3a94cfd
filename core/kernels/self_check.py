"""Tries the paged decode kernel on small random inputs before anybody relies on it."""

from __future__ import annotations

import functools
import logging
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ..backend import mx
from .kernel_shape import KernelShape
from .paged_attention import Quantised, RowTable, paged_decode_attention, supports

logger = logging.getLogger(__name__)

# Of the largest number. MLX may multiply float32 in fewer bits; a wrong kernel is off by far more.
_TOLERANCE = {mx.float32: 5e-3, mx.float16: 5e-3, mx.bfloat16: 2e-2}
_LENGTHS = (600, 1, 512, 33, 32, 300, 31, 90)
_NUM_SPLITS = (1, 4)
_ROUNDS = 5
_CALLS = 8  # per round, so that starting and waiting weigh little


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelReport:
    """What came of the check.

    Attributes:
        reason: Why not, if the verdict is ``fallback``.
        error: Greatest difference from MLX's own attention, relative to the greatest number.
        kernel_s: Seconds of one call; the split one and the unsplit one that is faster.
        fallback_s: The same for gathering blocks and calling MLX's attention with a mask.
    """

    verdict: Literal["kernel", "fallback"]
    reason: str | None = None
    error: float | None = None
    kernel_s: float | None = None
    fallback_s: float | None = None


def check(shape: KernelShape) -> KernelReport:
    """Compare and time the kernel against plain MLX. Does not raise."""
    if not supports(shape):
        return KernelReport(verdict="fallback", reason="no kernel for this shape on this device")
    try:
        return _compare(shape)
    # Compilers and drivers fail in ways of their own; none of them may stop the server.
    except Exception as error:
        logger.debug("kernel check failed", exc_info=True)
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        return KernelReport(verdict="fallback", reason=reason)


def _compare(shape: KernelShape) -> KernelReport:
    queries, keys, values, rows, sinks = _inputs(shape)
    scale = 1 / math.sqrt(shape.key_dim)

    def kernel(num_splits: int) -> mx.array:
        return paged_decode_attention(
            shape, queries, keys, values, rows, scale=scale, sinks=sinks, num_splits=num_splits
        )

    def fallback(dtype: mx.Dtype = shape.dtype) -> mx.array:
        return gathered_attention(
            shape, queries.astype(dtype), keys, values, rows, scale=scale, sinks=sinks
        )

    want = fallback(mx.float32)
    largest = float(mx.abs(want).max())
    error = 0.0
    for num_splits in _NUM_SPLITS:
        difference = mx.abs(kernel(num_splits).astype(mx.float32) - want)
        # `max` of Python would let NaN pass.
        if not (latest := float(difference.max()) / largest) <= _TOLERANCE[shape.dtype]:
            reason = f"off by {latest:.1e} with num_splits={num_splits}"
            return KernelReport(verdict="fallback", reason=reason, error=latest)
        error = max(error, latest)
    kernel_s = min(_seconds(functools.partial(kernel, n)) for n in _NUM_SPLITS)
    fallback_s = _seconds(fallback)
    slower = kernel_s > fallback_s
    return KernelReport(
        verdict="fallback" if slower else "kernel",
        reason="slower than MLX's own attention" if slower else None,
        error=error,
        kernel_s=kernel_s,
        fallback_s=fallback_s,
    )


def _inputs(
    shape: KernelShape,
) -> tuple[mx.array, mx.array | Quantised, mx.array | Quantised, RowTable, mx.array | None]:
    num_rows, size = len(_LENGTHS), shape.block_size
    width = -(-max(_LENGTHS) // size)
    num_blocks = num_rows * width
    seeds = iter(mx.random.split(mx.random.key(0), 5))

    def numbers(*sizes: int) -> mx.array:
        return mx.random.normal(sizes, key=next(seeds)).astype(shape.dtype)

    def store(dim: int, bits: int) -> mx.array | Quantised:
        plain = numbers(num_blocks, shape.num_kv_heads, size, dim)
        return mx.quantize(plain, group_size=shape.group_size, bits=bits) if bits else plain

    order = mx.random.permutation(num_blocks, key=next(seeds)).astype(mx.uint32)
    rows = RowTable(
        blocks=order.reshape(num_rows, width),
        firsts=mx.zeros(num_rows, dtype=mx.int32),
        lengths=mx.array(_LENGTHS, dtype=mx.int32),
    )
    queries = numbers(num_rows, shape.num_heads, 1, shape.key_dim)
    keys, values = (store(dim, bits) for dim, bits in shape.dims)
    sinks = numbers(shape.num_heads) if shape.has_sinks else None
    mx.eval(queries, keys, values, rows, sinks)
    return queries, keys, values, rows, sinks


def gathered_attention(
    shape: KernelShape,
    queries: mx.array,
    keys: mx.array | Quantised,
    values: mx.array | Quantised,
    rows: RowTable,
    *,
    scale: float,
    sinks: mx.array | None,
) -> mx.array:
    """Attention after copying each row's blocks side by side."""
    num_rows, width = rows.blocks.shape

    def run(store: mx.array | Quantised, dim: int, bits: int) -> mx.array:
        if isinstance(store, mx.array):
            blocks = store[rows.blocks]
        else:
            packed, scales, biases = (part[rows.blocks] for part in store)
            blocks = mx.dequantize(packed, scales, biases, shape.group_size, bits)
        blocks = blocks.swapaxes(1, 2).astype(queries.dtype)
        return blocks.reshape(num_rows, shape.num_kv_heads, width * shape.block_size, dim)

    positions = mx.arange(width * shape.block_size)
    mask = positions < rows.lengths[:, None]
    if shape.window is not None:
        mask = mask & (positions >= rows.lengths[:, None] - shape.window)
    return mx.fast.scaled_dot_product_attention(
        queries,
        run(keys, shape.key_dim, shape.key_bits),
        run(values, shape.value_dim, shape.value_bits),
        scale=scale,
        mask=mask[:, None, None],
        sinks=None if sinks is None else sinks.astype(queries.dtype),
    )


def _seconds(attend: Callable[[], mx.array]) -> float:
    """Median over rounds of the time of one call, once warm."""
    times = []
    for _ in range(_ROUNDS + 1):
        begun_at = time.perf_counter()
        mx.eval([attend() for _ in range(_CALLS)])
        times.append((time.perf_counter() - begun_at) / _CALLS)
    return statistics.median(times[1:])
