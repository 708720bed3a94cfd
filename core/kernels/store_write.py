"""Writes new keys and values into the KV store in place, whatever still reads it.

MLX updates an array in place only when nobody else holds on to its memory, and its CUDA backend
holds on to what a kernel reads until that kernel is done. With a step always under way somebody
reads every layer, so MLX would copy the whole store. This kernel takes the store as an input and
writes to it. That is sound because:

- it returns an array, ``written``, and whatever reads the new tokens in the same step takes that
  as an input too, so it runs later;
- steps are separate submissions to one stream, so a later step's writes come after an earlier
  step's reads;
- a block is never written while a sequence that still matters can read the slot.
"""

from __future__ import annotations

import logging

import numpy as np

from ..backend import device_kind, mx
from .launch import are_kernels_off, launch

logger = logging.getLogger(__name__)

_THREADS = 256
# MLX's CUDA backend keeps arrays of up to 8 bytes in host memory; no kernel should wait for that.
_OUT_SIZE = 4


def write_store(
    keys: mx.array,
    values: mx.array,
    slots: mx.array,
    key_store: mx.array,
    value_store: mx.array,
    *,
    block_size: int,
) -> mx.array:
    """Put tokens into their slots. May be part of a compiled graph.

    Args:
        keys: ``[tokens, num_kv_heads, 1, key_dim]``, in the dtype of the store.
        values: The same with ``value_dim``.
        slots: ``[tokens]``, int32.
        key_store: ``[num_blocks * num_kv_heads * block_size, key_dim]``; changed.
        value_store: The same with ``value_dim``; changed.

    Returns:
        ``[1]``, uint32, 0: an input for whatever must run after the write.
    """
    arrays = [keys, values, key_store, value_store]
    per_word = 8 // int(key_store.dtype.size)
    if all(array.shape[-1] % per_word == 0 for array in arrays):
        arrays = [array.view(mx.uint64) for array in arrays]
    keys, values, key_store, value_store = arrays
    num_tokens, num_kv_heads, _, key_dim = keys.shape
    value_dim = values.shape[3]
    size = num_tokens * num_kv_heads * (key_dim + value_dim)
    written = launch(
        "store_write",
        [keys, values, slots, key_store, value_store],
        {
            "S": key_store.dtype,
            "KEY_DIM": key_dim,
            "VALUE_DIM": value_dim,
            "NUM_KV_HEADS": num_kv_heads,
            "BLOCK_SIZE": block_size,
            "THREADS": _THREADS,
        },
        grid=(-(-size // _THREADS), 1, 1),
        threads=_THREADS,
        out_shape=(_OUT_SIZE,),
        out_dtype=mx.uint32,
    )
    return written[:1]


def find_write_problem(dtype: mx.Dtype) -> str | None:
    """Try it on a tiny store.

    Returns:
        ``None`` if the right numbers got where they belong, else what is wrong.
    """
    if are_kernels_off():
        return "kernels are switched off"
    if device_kind() == "cpu":
        return "no kernels on this device"
    try:
        return _try(dtype)
    # Compilers and drivers fail in ways of their own; none of them may stop the server.
    except Exception as error:
        logger.debug("store write check failed", exc_info=True)
        return f"{type(error).__name__}: {error}".splitlines()[0]


def _try(dtype: mx.Dtype) -> str | None:
    num_heads, key_dim, value_dim, size, num_blocks = 3, 16, 24, 8, 5
    slots = [33, 0, 7, 8, 39]
    seeds = iter(mx.random.split(mx.random.key(0), 2))
    new = [
        mx.random.normal((len(slots), num_heads, 1, dim), key=next(seeds)).astype(dtype)
        for dim in (key_dim, value_dim)
    ]
    stores = [mx.zeros((num_blocks * num_heads * size, dim), dtype) for dim in (key_dim, value_dim)]
    mx.eval(new, stores)
    written = write_store(
        new[0], new[1], mx.array(slots, mx.int32), stores[0], stores[1], block_size=size
    )
    mx.eval(written)
    for tokens, store in zip(new, stores, strict=True):
        want = np.zeros((num_blocks, num_heads, size, tokens.shape[-1]), np.float32)
        for token, slot in zip(np.array(tokens.astype(mx.float32)), slots, strict=True):
            want[slot // size, :, slot % size] = token[:, 0]
        if not np.array_equal(np.array(store.astype(mx.float32)).reshape(want.shape), want):
            return "wrong numbers"
    return None
