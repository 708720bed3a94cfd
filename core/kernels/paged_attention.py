"""Paged decode attention as our own GPU kernel, called through MLX.

Each row attends to the tokens of its own blocks, where they lie. Long rows are cut into splits that
run side by side; a second kernel puts them together. The source is `paged_decode.inc`.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import numpy as np

from ..backend import LOG2_E, device_kind, mx
from .kernel_shape import KernelShape, constants, make_tiling
from .launch import are_kernels_off, launch

MAX_WARPS = {"cuda": 16, "metal": 8}  # of a thread block
_MERGE_WARPS = 4
_MAX_SPLITS = 64
# All of these are in the time that a thread block takes for one token.
_BLOCK_COST = 128  # to start and to put its warps together
_MERGE_COST = 256  # the second kernel
_MIN_SPLIT = 256
_MAX_SPLIT = 4096  # where one row may be much longer than the others

# `(packed, scales, biases)`, as `mx.quantize` makes them.
Quantised: TypeAlias = tuple[mx.array, mx.array, mx.array]


class RowTable(NamedTuple):
    """Which tokens the rows attend to.

    Attributes:
        blocks: ``[rows, width]``, uint32. Entry ``j`` of row ``r`` holds the ``block_size``
            positions from ``firsts[r] + j * block_size`` on. Entries behind the row's length are
            not read.
        firsts: ``[rows]``, int32, multiples of the block size; not 0 once a sliding window has left
            blocks behind.
        lengths: ``[rows]``, int32: a row attends to positions below. A row of length 0 gives zeros.
    """

    blocks: mx.array
    firsts: mx.array
    lengths: mx.array


def supports(shape: KernelShape) -> bool:
    """Whether there is a kernel for this shape on this device."""
    return shape.is_valid and device_kind() in MAX_WARPS and not are_kernels_off()


def choose_num_splits(rows: int, num_kv_heads: int, width_tokens: int, num_processors: int) -> int:
    """Splits with which the device is busy to the end, and no more of them than that takes.

    Args:
        width_tokens: Tokens that the block table has room for.
        num_processors: The device's SMs or GPU cores; each runs one thread block at a time.
    """
    pairs = rows * num_kv_heads

    def cost(splits: int) -> float:
        waves = math.ceil(pairs * splits / num_processors)
        merge = _MERGE_COST if splits > 1 else 0
        return waves * (width_tokens / splits + _BLOCK_COST) + merge

    fewest = min(_MAX_SPLITS, math.ceil(width_tokens / _MAX_SPLIT))
    most = max(fewest, min(_MAX_SPLITS, width_tokens // _MIN_SPLIT))
    return min(range(max(1, fewest), max(1, most) + 1), key=cost)


def paged_decode_attention(  # noqa: PLR0913
    shape: KernelShape,
    queries: mx.array,
    keys: mx.array | Quantised,
    values: mx.array | Quantised,
    rows: RowTable,
    *,
    scale: float,
    sinks: mx.array | None = None,
    num_splits: int = 1,
    after: mx.array | None = None,
) -> mx.array:
    """Attention of decode rows, each over its own blocks. May be part of a compiled graph.

    Args:
        shape: One that `supports` said yes to.
        queries: ``[rows, num_heads, 1, key_dim]``.
        keys: ``[num_blocks, num_kv_heads, block_size, key_dim]``, or quantised along the last axis.
        values: The same with ``value_dim``.
        sinks: ``[num_heads]``, logits of a token that is attended to but has no value.
        num_splits: Parts that the table's width is cut into.
        after: Not read; whatever makes it is done before the store is read.

    Returns:
        ``[rows, num_heads, 1, value_dim]``, in the dtype of the queries.
    """
    tiling = make_tiling(shape, MAX_WARPS[device_kind()])
    num_rows = queries.shape[0]
    num_items = num_rows * shape.num_heads
    out_shape = (num_rows, shape.num_heads, 1, shape.value_dim)
    is_partial = num_splits > 1
    sinks = queries if sinks is None else sinks.astype(mx.float32)
    out = launch(
        "paged_decode",
        [
            queries,
            *_with_scales(keys, queries),
            *_with_scales(values, queries),
            *rows,
            sinks,
            rows.blocks if after is None else after,
        ],
        {
            "T": shape.dtype,
            "S": shape.dtype,
            "O": mx.float32 if is_partial else shape.dtype,
            **constants(shape, tiling),
            # As an input of one number it would stay in host memory on CUDA, for every SM to fetch.
            "SCALE_BITS": float_bits(scale * LOG2_E),
            "PARTIAL": is_partial,
        },
        grid=(num_splits, shape.num_kv_heads * tiling.grid_tiles, num_rows),
        threads=tiling.threads,
        out_shape=(num_items, num_splits, shape.value_dim + 2) if is_partial else out_shape,
        out_dtype=mx.float32 if is_partial else shape.dtype,
    )
    if not is_partial:
        return out
    return launch(
        "merge_splits",
        [out, sinks],
        {
            "T": shape.dtype,
            "VALUE_DIM": shape.value_dim,
            "NUM_HEADS": shape.num_heads,
            "WARPS": _MERGE_WARPS,
            "HAS_SINKS": shape.has_sinks,
        },
        grid=(num_items, 1, 1),
        threads=_MERGE_WARPS * 32,
        out_shape=out_shape,
        out_dtype=shape.dtype,
    )


def float_bits(number: float) -> int:
    """The bits of a float32, for `bits_to_float`: kernels take no floats as constants."""
    return int(np.array(number, np.float32).view(np.int32))


def _with_scales(store: mx.array | Quantised, unused: mx.array) -> Quantised:
    return (store, unused, unused) if isinstance(store, mx.array) else store
