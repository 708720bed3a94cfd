"""Random numbers by address: a function of (seed, position, token id) and of nothing else.

A generator that fills arrays gives a token another number when other tokens are left out. Here
every token has its own, so it may be drawn from the whole vocabulary or from a few candidates.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any, TypeAlias

import numpy as np

from ..backend import mx

UInt64s: TypeAlias = np.ndarray[Any, np.dtype[np.uint64]]

_MASK64 = 2**64 - 1


def row_keys(seeds: Seq[int], positions: Seq[int]) -> mx.array:
    """Two well-mixed words for each seed and position: ``[rows, 2]``, uint32.

    Source: Steele, Lea, Flood 2014, "Fast Splittable Pseudorandom Number Generators".
    """
    state = _mix64(np.array([seed & _MASK64 for seed in seeds], dtype=np.uint64))
    state = _mix64(state + np.array(positions, dtype=np.uint64))
    return mx.array(state.view(np.uint32).reshape(-1, 2))


def _mix64(state: UInt64s) -> UInt64s:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def add_gumbel(logits: mx.array, keys: mx.array, token_ids: mx.array) -> mx.array:
    """Add each token's Gumbel noise; the argmax is then a draw from the softmax.

    Args:
        logits: ``[rows, n]``, float32.
        keys: ``[rows, 2]`` of `row_keys`.
        token_ids: ``[rows, n]`` or ``[n]``, uint32.

    Source: Gumbel 1954, "Statistical Theory of Extreme Values".
    """
    return _add_gumbel(logits, keys[:, :1], keys[:, 1:], token_ids)


@mx.compile
def _add_gumbel(logits: mx.array, first: mx.array, second: mx.array, ids: mx.array) -> mx.array:
    """Fused wherever mlx compiles, which it does not on the CPU."""
    # -log(1 - v) rather than -log(u): what wins is nearly always small, and a float32 near 0 is
    # fine where one near 1 is coarse. So all 32 bits count, and improbable tokens keep their
    # share. Factor and offset keep v off 0 and 1, where noise is infinite.
    v = _hash(ids, first, second).astype(mx.float32) * (2.0**-32 - 2.0**-56) + 2.0**-33
    # log1p, by a log that makes up for the rounding of its argument: half its cost on the CPU.
    rest = 1.0 - v
    exponential = ((rest - 1.0) + v) / rest - mx.log(rest)
    return logits - mx.log(exponential)


def _hash(ids: mx.array, first: mx.array, second: mx.array) -> mx.array:
    """32 bits for a token id under a key of two words.

    Two rounds of a finaliser. The first depends on the id alone and costs one row's work; with the
    second alone, ids that differ in one bit have hashes that show it.

    Source: the finaliser of Appleby's MurmurHash3 (2011).
    """
    bits = (ids ^ (ids >> 16)) * 0x85EBCA6B
    bits = (bits ^ (bits >> 13)) * 0xC2B2AE35
    bits = bits ^ (bits >> 16) ^ first
    bits = (bits ^ (bits >> 16)) * 0x85EBCA6B
    bits = ((bits ^ (bits >> 13)) + second) * 0xC2B2AE35
    return bits ^ (bits >> 16)
