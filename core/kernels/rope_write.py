"""Norms, rotation and the write into the store of a step's queries, keys and values, as one kernel.

Its input is the joint product of the three. A decode step of few rows takes as long as it takes the
host to start its kernels; MLX's own operations are eight of those, three copies that part the
product included. The source is `rope_write.inc`; `store_write` says why the store may be an input.
"""

from __future__ import annotations

import functools
import logging
import math
from dataclasses import dataclass

from ..backend import device_kind, mx
from .launch import launch
from .paged_attention import float_bits

logger = logging.getLogger(__name__)

_WARPS = 4
# Of the largest number: a rounding of the inputs' dtype and some of float32.
_TOLERANCE = {mx.float32: 1e-4, mx.float16: 2e-3, mx.bfloat16: 1.6e-2}


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryShape:
    """The constants of a layer's queries, keys and values.

    Attributes:
        dtype: Of all of them, of the norms' weights and of the store.
        eps: Of the norms of queries and keys; ``None`` if there are none.
        rotated: Numbers of a head that are rotated, the first ones.
        traditional: Whether pairs are neighbours, not half of what is rotated apart.
        base: See `mx.fast.rope`; ``None`` if periods are given.
        scale: Of the positions.
    """

    num_heads: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    block_size: int
    dtype: mx.Dtype
    eps: float | None
    rotated: int
    traditional: bool
    base: float | None
    scale: float

    @property
    def is_valid(self) -> bool:
        """Whether the kernel is written for such a shape."""
        return (
            self.dtype in _TOLERANCE
            and self.key_dim % 2 == self.rotated % 2 == 0
            and 8 <= self.rotated <= self.key_dim <= 512
        )


def rope_write(
    shape: RotaryShape,
    projected: mx.array,
    norms: tuple[mx.array, mx.array] | None,
    periods: mx.array | None,
    positions: mx.array,
    slots: mx.array,
    key_store: mx.array,
    value_store: mx.array,
) -> mx.array:
    """Put keys and values into their slots and return the queries. May be part of a compiled graph.

    Args:
        projected: ``[tokens, ...]``: of a token the queries of all heads, then keys, then values.
        norms: Weights of the queries' and of the keys' norm, ``[key_dim]``.
        periods: ``freqs`` of `mx.fast.rope`, ``[rotated / 2]``, float32, if there is no base.
        positions: ``[tokens]``, int32.
        slots: ``[tokens]``, int32.
        key_store: ``[num_blocks * num_kv_heads * block_size, key_dim]``; changed.
        value_store: The same with ``value_dim``; changed.

    Returns:
        ``[tokens, num_heads, 1, key_dim]``. Whatever reads the new keys and values in the same step
        must depend on it.
    """
    num_tokens = slots.size
    return launch(
        "rope_write",
        [
            projected,
            *(norms or (projected, projected)),
            projected if periods is None else periods,
            positions,
            slots,
            key_store,
            value_store,
        ],
        {"T": shape.dtype, **constants(shape)},
        grid=(-(-num_tokens * (shape.num_heads + 2 * shape.num_kv_heads) // _WARPS), 1, 1),
        threads=32 * _WARPS,
        out_shape=(num_tokens, shape.num_heads, 1, shape.key_dim),
        out_dtype=shape.dtype,
    )


def constants(shape: RotaryShape) -> dict[str, int | bool]:
    """The compile-time constants of the kernel, by the names its source knows."""
    return {
        "NUM_HEADS": shape.num_heads,
        "NUM_KV_HEADS": shape.num_kv_heads,
        "KEY_DIM": shape.key_dim,
        "VALUE_DIM": shape.value_dim,
        "BLOCK_SIZE": shape.block_size,
        "WARPS": _WARPS,
        "HAS_NORM": shape.eps is not None,
        "EPS_BITS": float_bits(shape.eps or 0.0),
        "ROTATED": shape.rotated,
        "TRADITIONAL": shape.traditional,
        "HAS_PERIODS": shape.base is None,
        "LOG2_BASE_BITS": float_bits(math.log2(shape.base or 1.0)),
        "SCALE_BITS": float_bits(shape.scale),
    }


@functools.cache
def find_problem(shape: RotaryShape) -> str | None:
    """Compare the kernel with MLX's own operations on random numbers. Does not raise.

    Returns:
        ``None`` if the numbers agree, else what went wrong.
    """
    if device_kind() == "cpu" or not shape.is_valid:
        return "no kernel for this shape on this device"
    try:
        problem = _compare(shape)
    # Compilers and drivers fail in ways of their own; none of them may stop the server.
    except Exception as error:
        logger.debug("rope write check failed", exc_info=True)
        problem = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    if problem is not None:
        logger.warning("queries and keys are made without their kernel: %s", problem)
    return problem


def plain_heads(
    shape: RotaryShape,
    projected: mx.array,
    norms: tuple[mx.array, mx.array] | None,
    periods: mx.array | None,
    positions: mx.array,
) -> list[mx.array]:
    """Queries, keys and values by MLX's own operations, ``[tokens, heads, 1, dim]`` each."""
    ends = [shape.num_heads * shape.key_dim, (shape.num_heads + shape.num_kv_heads) * shape.key_dim]
    counts = (shape.num_heads, shape.num_kv_heads, shape.num_kv_heads)
    heads = [
        part.reshape(positions.size, count, 1, -1)
        for part, count in zip(mx.split(projected, ends, axis=-1), counts, strict=True)
    ]
    for i in range(2):
        if norms is not None and shape.eps is not None:
            heads[i] = mx.fast.rms_norm(heads[i], norms[i], shape.eps)
        heads[i] = mx.fast.rope(
            heads[i],
            shape.rotated,
            traditional=shape.traditional,
            base=shape.base,
            scale=shape.scale,
            offset=positions,
            freqs=periods,
        )
    return heads


def _compare(shape: RotaryShape) -> str | None:
    seeds = iter(mx.random.split(mx.random.key(2), 3))

    def numbers(*sizes: int) -> mx.array:
        return mx.random.normal(sizes, key=next(seeds)).astype(shape.dtype)

    blocks = [2, 0, 1, 3]
    width = (shape.num_heads + shape.num_kv_heads) * shape.key_dim
    projected = numbers(4, width + shape.num_kv_heads * shape.value_dim)
    norms = None if shape.eps is None else (numbers(shape.key_dim), numbers(shape.key_dim))
    periods = None if shape.base is not None else mx.arange(1, shape.rotated // 2 + 1) * 1.5
    positions = mx.array([33, 0, 7, 2000], mx.int32)
    slots = mx.array([block * shape.block_size for block in blocks], mx.int32)
    count = len(blocks) * shape.num_kv_heads * shape.block_size
    stores = [mx.zeros((count, dim), shape.dtype) for dim in (shape.key_dim, shape.value_dim)]
    mx.eval(projected, norms, periods, stores)
    queries = rope_write(shape, projected, norms, periods, positions, slots, *stores)
    mx.eval(queries)
    found = [queries]
    for store in stores:
        by_block = store.reshape(len(blocks), shape.num_kv_heads, shape.block_size, -1)
        found.append(by_block[mx.array(blocks), :, :1])
    heads = plain_heads(shape, projected, norms, periods, positions)
    for name, have, want in zip(("queries", "keys", "values"), found, heads, strict=True):
        error = float(mx.abs(have.astype(mx.float32) - want.astype(mx.float32)).max())
        # Comparing this way round lets no NaN pass.
        if not error <= _TOLERANCE[shape.dtype] * float(mx.abs(want).max()):
            return f"{name} are off by {error:.1e}"
    return None
