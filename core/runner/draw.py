"""Draws from tempered, truncated distributions: arrays in, arrays out.

Order: temperature, then min-p, top-k and top-p on what is left. Top-k keeps exactly ``k`` tokens,
of equals the lower ids; top-p also keeps what equals the last token it keeps.

Which of the methods a row takes follows from its own params and the vocabulary, never from its
company, and a token's noise is the same in all of them.

Sources: Holtzman et al. 2019, "The Curious Case of Neural Text Degeneration" (top-p); Nguyen et
al. 2024, "Turning Up the Heat" (min-p).
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import NamedTuple

from ..backend import LOG2_E, device_kind, exp2, mx
from ..sampling_params import SamplingParams
from .noise import add_gumbel
from .top_k import top_k

# Below it, the likeliest token is all but certain, and logits divided by less could overflow.
_LOWEST_TEMPERATURE = 1e-6
# How many tokens are ranked: few sizes, so that rows share them.
_RANKED = (64, 1024)
# In a vocabulary of this size ranking all of it is as quick.
_SMALL_VOCAB = 4096
# Tokens in the race of `_draw_by_mass`. Each round halves what is not decided.
_RACE_ROUNDS = 5
_RACERS = 2**_RACE_ROUNDS - 1
# Below it rows are ranked whole. At it, all racers miss the set once in 2^30 draws.
_LEAST_RACE_TOP_P = 0.5
# Logits that a core's cache holds a few times over: 24 instead of 48 ms for 16 rows of 152,000.
_CPU_TILE = 2**18


class Method(NamedTuple):
    """How some rows are drawn; fixed when a graph is built.

    Attributes:
        num_ranked: Tokens to look at, the likeliest; 0 for all, unranked.
        by_mass: Whether some row cuts by top-p.
        by_peak: Whether some row cuts by min-p.
    """

    num_ranked: int
    by_mass: bool
    by_peak: bool


@dataclass(frozen=True, slots=True)
class SamplingArrays:
    """Params of some rows, ``[rows, 1]`` each.

    Attributes:
        temperature: Float32, greater than 0.
        top_k: Int32, the vocabulary's size where nothing is cut.
        top_p: Float32, 2 where nothing is cut, whatever a sum's rounding says.
        min_p: Float32, natural logarithm, minus infinity where nothing is cut.
    """

    temperature: mx.array
    top_k: mx.array
    top_p: mx.array
    min_p: mx.array

    @classmethod
    def of(cls, params: Seq[SamplingParams], vocab_size: int) -> SamplingArrays:
        """Build the arrays on the host."""
        return cls(
            _column([max(p.temperature, _LOWEST_TEMPERATURE) for p in params], mx.float32),
            _column([p.top_k or vocab_size for p in params], mx.int32),
            _column([p.top_p if p.top_p < 1.0 else 2.0 for p in params], mx.float32),
            _column([math.log(p.min_p) if p.min_p else -math.inf for p in params], mx.float32),
        )

    def rows(self, at: slice) -> SamplingArrays:
        """Those of some of the rows."""
        return SamplingArrays(self.temperature[at], self.top_k[at], self.top_p[at], self.min_p[at])


def group_rows(params: Seq[SamplingParams], vocab_size: int) -> list[tuple[list[int], Method]]:
    """Split rows by the method that each one takes."""
    groups: dict[tuple[int, bool], list[int]] = {}
    for i, p in enumerate(params):
        groups.setdefault(_choose(p, vocab_size), []).append(i)
    return [
        (
            rows,
            Method(
                num_ranked,
                any(params[i].top_p < 1.0 for i in rows),
                any(params[i].min_p > 0.0 for i in rows),
            ),
        )
        for (num_ranked, _), rows in groups.items()
    ]


def _choose(params: SamplingParams, vocab_size: int) -> tuple[int, bool]:
    """``Method.num_ranked``, and whether the row races by mass."""
    cuts_rank = 0 < params.top_k < vocab_size
    if not cuts_rank and params.top_p >= 1.0:
        return 0, False
    if not cuts_rank and params.top_p >= _LEAST_RACE_TOP_P and vocab_size > _SMALL_VOCAB:
        return 0, True
    fitting = [size for size in _RANKED if cuts_rank and params.top_k <= size < vocab_size]
    return (fitting or [vocab_size])[0], False


def draw(logits: mx.array, keys: mx.array, arrays: SamplingArrays, method: Method) -> mx.array:
    """Draw a token for each row: ``[rows, vocab]`` float32 -> ``[rows]`` int32.

    Args:
        keys: ``[rows, 2]`` of `noise.row_keys`.
    """
    if method.num_ranked:
        token_ids = _draw_by_rank(logits, keys, arrays, method)
    elif device_kind() == "cpu" and logits.size > _CPU_TILE:
        num_rows, vocab = logits.shape
        tile = max(1, _CPU_TILE // vocab)
        spans = [slice(i, i + tile) for i in range(0, num_rows, tile)]
        parts = [_draw_from_all(logits[at], keys[at], arrays.rows(at), method) for at in spans]
        token_ids = mx.concatenate(parts)
    else:
        token_ids = _draw_from_all(logits, keys, arrays, method)
    return token_ids.astype(mx.int32)


def _draw_from_all(
    logits: mx.array, keys: mx.array, arrays: SamplingArrays, method: Method
) -> mx.array:
    """Let every token that min-p leaves take part."""
    tempered = logits / arrays.temperature
    if method.by_peak:
        floor = tempered.max(axis=-1, keepdims=True) + arrays.min_p
        tempered = mx.where(tempered >= floor, tempered, -mx.inf)
    noisy = add_gumbel(tempered, keys, mx.arange(logits.shape[-1], dtype=mx.uint32))
    if method.by_mass:
        return _draw_by_mass(tempered, noisy, arrays.top_p)
    return mx.argmax(noisy, axis=-1)


def _draw_by_rank(
    logits: mx.array, keys: mx.array, arrays: SamplingArrays, method: Method
) -> mx.array:
    """Rank tokens, cut by any rule, and draw from what is left."""
    values, token_ids = top_k(logits, method.num_ranked)
    tempered = values / arrays.temperature
    peak = tempered[:, :1]
    kept = mx.arange(method.num_ranked) < arrays.top_k
    if method.by_peak:
        kept = kept & (tempered >= peak + arrays.min_p)
    if method.by_mass:
        weights = mx.where(kept, exp2((tempered - peak) * LOG2_E), 0.0)
        before = mx.cumsum(weights, axis=-1, inclusive=False)
        # A token is in the set while the ones before it do not hold enough.
        enough = arrays.top_p * weights.sum(axis=-1, keepdims=True)
        inside = mx.where(kept & (before < enough), tempered, mx.inf)
        kept = kept & (tempered >= inside.min(axis=-1, keepdims=True))
    noisy = mx.where(kept, add_gumbel(tempered, keys, token_ids), -mx.inf)
    first = mx.argmax(noisy, axis=-1, keepdims=True)
    return mx.take_along_axis(token_ids, first, axis=-1)[:, 0]


def _draw_by_mass(tempered: mx.array, noisy: mx.array, top_p: mx.array) -> mx.array:
    """Cut by top-p and draw, without finding the set that is kept.

    In the order of their noisy logits, tokens are drawn one after another without putting back
    (Kool et al. 2019, "Stochastic Beams and Where to Find Them"), so the draw from the set is the
    first of them that lies in it. Each lies in it with a chance of ``top_p`` or more, given that
    all before missed: the first few are all that is needed. A token lies in the set if those
    likelier than it do not hold ``top_p``, which is found by bisection over the few.

    Args:
        tempered: ``[rows, vocab]``, minus infinity where other rules have cut.
        noisy: The same with noise.
        top_p: ``[rows, 1]``.
    """
    # The likeliest token is in any set. As last of the racers it wins if all others miss.
    likeliest = mx.argmax(tempered, axis=-1, keepdims=True)
    peak = mx.take_along_axis(tempered, likeliest, axis=-1)
    weights = exp2((tempered - peak) * LOG2_E)
    enough = top_p * weights.sum(axis=-1, keepdims=True)
    racers = mx.concatenate([top_k(noisy, _RACERS - 1)[1], likeliest], axis=-1)
    racing = mx.take_along_axis(weights, racers, axis=-1)
    ranked = -mx.sort(-racing, axis=-1)
    num_inside = mx.zeros(top_p.shape, dtype=mx.int32)
    for step in (2**i for i in reversed(range(_RACE_ROUNDS))):
        edge = mx.take_along_axis(ranked, num_inside + (step - 1), axis=-1)
        before = ((weights > edge) * weights).sum(axis=-1, keepdims=True)
        num_inside = num_inside + step * (before < enough)
    # Rows that are no numbers have none inside.
    edge = mx.take_along_axis(ranked, mx.maximum(num_inside - 1, 0), axis=-1)
    first = mx.argmax((racing >= edge).astype(mx.int32), axis=-1, keepdims=True)
    return mx.take_along_axis(racers, first, axis=-1)[:, 0]


def _column(values: Seq[float], dtype: mx.Dtype) -> mx.array:
    return mx.array(list(values), dtype=dtype)[:, None]
