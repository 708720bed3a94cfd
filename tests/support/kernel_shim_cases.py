"""Inputs for the paged decode kernel, and what it should answer, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pippin.core.backend import mx
from pippin.core.kernels.kernel_shape import KernelShape
from pippin.core.kernels.paged_attention import Quantised, RowTable

_SCALE = 0.11
_ROUNDING = {mx.float32: 2.0**-24, mx.float16: 2.0**-11, mx.bfloat16: 2.0**-8}


def make_shape(  # noqa: PLR0913
    num_heads: int = 8,
    num_kv_heads: int = 2,
    dim: int = 64,
    *,
    value_dim: int | None = None,
    block_size: int = 32,
    dtype: mx.Dtype = mx.float16,
    window: int | None = None,
    has_sinks: bool = False,
    key_bits: int = 0,
    value_bits: int = 0,
    group_size: int = 64,
) -> KernelShape:
    """A shape of which only the interesting part has to be said."""
    return KernelShape(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        key_dim=dim,
        value_dim=value_dim or dim,
        block_size=block_size,
        dtype=dtype,
        window=window,
        has_sinks=has_sinks,
        key_bits=key_bits,
        value_bits=value_bits,
        group_size=group_size,
    )


@dataclass(frozen=True)
class Case:
    """One call of the kernel.

    Slots that no row attends to hold NaN.
    """

    shape: KernelShape
    queries: mx.array
    keys: mx.array | Quantised
    values: mx.array | Quantised
    rows: RowTable
    sinks: mx.array | None
    scale: float = _SCALE

    def expected(self) -> NDArray[np.float64]:
        """``[rows, num_heads, 1, value_dim]``."""
        shape = self.shape
        queries, sinks = _exact(self.queries), None if self.sinks is None else _exact(self.sinks)
        keys, values = _plain(self.keys, shape.key_bits), _plain(self.values, shape.value_bits)
        table, firsts, lengths = (np.array(part).astype(np.int64) for part in self.rows)
        out = np.zeros((len(lengths), shape.num_heads, 1, shape.value_dim))
        for row, head in np.ndindex(out.shape[:2]):
            first, length = firsts[row], lengths[row]
            oldest = first if shape.window is None else max(first, length - shape.window)
            places = np.arange(int(oldest), int(length)) - first
            if not places.size:
                continue
            blocks = table[row, places // shape.block_size]
            at = (blocks, head // shape.group, places % shape.block_size)
            logits = keys[at] @ queries[row, head, 0] * self.scale
            extra = [] if sinks is None else [sinks[head]]
            weights = np.exp(logits - max(logits.max(), *extra, -math.inf))
            divisor = weights.sum() + sum(
                np.exp(sink - max(logits.max(), sink, -math.inf)) for sink in extra
            )
            out[row, head, 0] = weights @ values[at] / divisor
        return out

    def error(self, got: NDArray[np.float64]) -> float:
        """Greatest difference beyond the rounding of the output, relative to the greatest number.

        Sums are float32, whatever the dtype.
        """
        want = self.expected()
        excess = np.abs(got - want) - _ROUNDING[self.shape.dtype] * np.abs(want)
        return float(excess.max() / max(np.abs(want).max(), 1e-9))


def make_case(
    shape: KernelShape,
    lengths: Sequence[int],
    *,
    firsts: Sequence[int] | None = None,
    spare_width: int = 1,
    shared: bool = False,
    seed: int = 0,
) -> Case:
    """Random numbers in scattered blocks.

    Args:
        firsts: Position of each row's first table entry; 0 for all if not given.
        spare_width: Table entries beyond what the longest row needs.
        shared: All rows are of one sequence and have the same blocks.
    """
    rng = np.random.default_rng(seed)
    size, num_rows = shape.block_size, len(lengths)
    starts = [0] * num_rows if firsts is None else list(firsts)
    counts = [math.ceil((n - first) / size) for n, first in zip(lengths, starts, strict=True)]
    width = max(counts) + spare_width
    num_blocks = (max(counts) if shared else sum(counts)) + 1
    order = rng.permutation(num_blocks)
    # Block order[0] is nobody's, and all NaN.
    table = np.full((num_rows, width), order[0], dtype=np.uint32)
    attended = np.zeros((num_blocks, size), dtype=bool)
    used = 1
    for row, count in enumerate(counts):
        begin = 1 if shared else used
        table[row, :count] = order[begin : begin + count]
        used += count
        oldest = starts[row] if shape.window is None else lengths[row] - shape.window
        for position in range(max(starts[row], oldest), lengths[row]):
            place = position - starts[row]
            attended[table[row, place // size], place % size] = True

    def numbers(*sizes: int) -> mx.array:
        return mx.array(rng.standard_normal(sizes)).astype(shape.dtype)

    def store(dim: int, bits: int) -> mx.array | Quantised:
        plain = numbers(num_blocks, shape.num_kv_heads, size, dim)
        valid = mx.array(attended)[:, None, :, None]
        if not bits:
            return mx.where(valid, plain, math.nan).astype(shape.dtype)
        packed, scales, biases = mx.quantize(plain, group_size=shape.group_size, bits=bits)
        return packed, mx.where(valid, scales, math.nan).astype(shape.dtype), biases

    return Case(
        shape=shape,
        queries=numbers(num_rows, shape.num_heads, 1, shape.key_dim),
        keys=store(shape.key_dim, shape.key_bits),
        values=store(shape.value_dim, shape.value_bits),
        rows=RowTable(
            blocks=mx.array(table),
            firsts=mx.array(starts, dtype=mx.int32),
            lengths=mx.array(list(lengths), dtype=mx.int32),
        ),
        sinks=numbers(shape.num_heads) if shape.has_sinks else None,
    )


def _exact(array: mx.array) -> NDArray[np.float64]:
    return np.array(array.astype(mx.float32), dtype=np.float64)


def _plain(store: mx.array | Quantised, bits: int) -> NDArray[np.float64]:
    if isinstance(store, mx.array):
        return _exact(store)
    packed, scales, biases = store
    codes = np.array(packed)[..., None] >> np.arange(0, 32, bits, dtype=np.uint32)
    codes = (codes & (2**bits - 1)).reshape(*packed.shape[:-1], scales.shape[-1], -1)
    plain = codes * _exact(scales)[..., None] + _exact(biases)[..., None]
    return np.asarray(plain.reshape(*packed.shape[:-1], -1), dtype=np.float64)
