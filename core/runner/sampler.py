"""Draws one token for each row of logits, every row by its own params.

A row's draw depends on its logits, its seed and its position only: random numbers come from a key
that is made of the two, never from a shared stream, so company does not change an answer.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np

from ..backend import mx
from .logits_processors import Penalties, RowKey, RowState, apply_bias
from .logprobs import LogprobArrays, gather_logprobs

_MASK64 = 2**64 - 1
# Below it, the likeliest token is all but certain, and logits divided by less could overflow.
_LOWEST_TEMPERATURE = 1e-6


@dataclass(frozen=True, slots=True)
class SampledRows:
    """Device arrays of one draw.

    Attributes:
        token_ids: ``[rows]``, int32.
        is_valid: ``[rows]``, bool; false where the model's logits were not numbers.
        logprobs: Of the rows that asked.
    """

    token_ids: mx.array
    is_valid: mx.array
    logprobs: LogprobArrays | None

    def arrays(self) -> list[mx.array]:
        """What must be evaluated."""
        more = self.logprobs.arrays() if self.logprobs else []
        return [self.token_ids, self.is_valid, *more]


class Sampler:
    """Vectorised sampling over mixed rows.

    Args:
        eos_token_ids: Forbidden while a row has drawn fewer than its ``min_tokens``.
    """

    def __init__(self, eos_token_ids: Seq[int]) -> None:
        self._eos_token_ids = tuple(eos_token_ids)
        self._penalties = Penalties()

    def sample(self, logits: mx.array, rows: Seq[RowState]) -> tuple[SampledRows, list[mx.array]]:
        """Draw a token for each row.

        Args:
            logits: ``[rows, vocab]``, any float dtype.

        Returns:
            The draw, and further arrays that must be evaluated with it.
        """
        logits = logits.astype(mx.float32)
        # A sum is a number only if all logits are.
        is_valid = mx.logical_not(mx.isnan(logits.sum(axis=-1)))
        logits = self._penalties.apply(logits, rows)
        logits = apply_bias(logits, rows, self._eos_token_ids)
        token_ids = mx.argmax(logits, axis=-1).astype(mx.int32)
        hot = [i for i, row in enumerate(rows) if not row.params.is_greedy]
        if hot:
            index = mx.array(hot)
            token_ids[index] = draw(logits[index], [rows[i] for i in hot])
        asked = [i for i, row in enumerate(rows) if row.params.num_logprobs is not None]
        logprobs = None
        if asked:
            index = mx.array(asked)
            logprobs = gather_logprobs(
                logits[index],
                token_ids[index],
                rows=asked,
                wanted=[rows[i].params.num_logprobs or 0 for i in asked],
            )
        counts = self._penalties.count(token_ids, rows)
        return SampledRows(token_ids, is_valid, logprobs), counts

    def forget(self, key: RowKey) -> None:
        """Drop what is kept for a sequence."""
        self._penalties.forget(key)


def draw(logits: mx.array, rows: Seq[RowState]) -> mx.array:
    """Draw from tempered, truncated distributions: ``[rows, vocab]`` -> ``[rows]``, int32.

    Order: temperature, then min-p, top-k and top-p on what is left.

    Source: Gumbel-max, Gumbel 1954, "Statistical Theory of Extreme Values".
    """
    temperatures = [max(row.params.temperature, _LOWEST_TEMPERATURE) for row in rows]
    logits = logits / _column(temperatures)
    logits = apply_min_p(logits, [row.params.min_p for row in rows])
    logits = apply_top_k_top_p(
        logits,
        [row.params.top_k for row in rows],
        [row.params.top_p for row in rows],
    )
    noise = gumbel_noise([(row.seed, row.position) for row in rows], logits.shape[-1])
    return mx.argmax(logits + noise, axis=-1).astype(mx.int32)


def apply_min_p(logits: mx.array, min_p: Seq[float]) -> mx.array:
    """Mask tokens that are far less likely than the likeliest one; ``[rows, vocab]``.

    Source: Nguyen et al. 2024, "Turning Up the Heat: Min-p Sampling".
    """
    if not any(min_p):
        return logits
    # p >= min_p * p_max, said in logits; log 0 leaves a row alone.
    with np.errstate(divide="ignore"):
        margin = np.log(np.asarray(min_p, dtype=np.float32))
    floor = logits.max(axis=-1, keepdims=True) + mx.array(margin)[:, None]
    return mx.where(logits >= floor, logits, -mx.inf)


def apply_top_k_top_p(logits: mx.array, top_k: Seq[int], top_p: Seq[float]) -> mx.array:
    """Keep each row's ``top_k`` likeliest tokens, and of these the smallest set that holds
    ``top_p`` of their probability; ``[rows, vocab]``.

    Ties with the last token kept are kept as well, so the result does not depend on sort order.

    Source: Holtzman et al. 2019, "The Curious Case of Neural Text Degeneration" (top-p).
    """
    vocab = logits.shape[-1]
    cut = [i for i in range(len(top_k)) if 0 < top_k[i] < vocab or top_p[i] < 1.0]
    if not cut:
        return logits
    index = mx.array(cut)
    part = logits[index]
    best_first = -mx.sort(-part, axis=-1)
    last = np.asarray([top_k[i] - 1 if 0 < top_k[i] < vocab else vocab - 1 for i in cut])
    floor = mx.take_along_axis(best_first, mx.array(last[:, None]), axis=-1)
    best_first = mx.where(best_first >= floor, best_first, -mx.inf)
    before = mx.cumsum(mx.softmax(best_first, axis=-1, precise=True), axis=-1, inclusive=False)
    # A token is in the set while the ones before it do not hold enough; the first always is.
    # With top_p 1 nothing is cut, whatever the sum's rounding says.
    enough = _column([top_p[i] if top_p[i] < 1.0 else 2.0 for i in cut])
    kept = mx.where(before < enough, best_first, mx.inf)
    floor = mx.maximum(floor, mx.min(kept, axis=-1, keepdims=True))
    logits[index] = mx.where(part >= floor, part, -mx.inf)
    return logits


def gumbel_noise(seeds: Seq[tuple[int, int]], vocab: int) -> mx.array:
    """Gumbel noise for each (seed, position): ``[rows, vocab]``, float32."""
    keys = np.asarray([_random_key(seed, position) for seed, position in seeds], dtype=np.uint32)
    make = mx.vmap(lambda key: mx.random.gumbel(shape=(vocab,), key=key))
    noise: mx.array = make(mx.array(keys))
    return noise


def _random_key(seed: int, position: int) -> tuple[int, int]:
    """64 well-mixed bits of a seed and a position.

    Source: Steele, Lea, Flood 2014, "Fast Splittable Pseudorandom Number Generators".
    """
    state = _mix(_mix(seed & _MASK64) + position & _MASK64)
    return state >> 32, state & 0xFFFFFFFF


def _mix(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & _MASK64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
    return state ^ (state >> 31)


def _column(values: Seq[float]) -> mx.array:
    return mx.array(list(values), dtype=mx.float32)[:, None]
