"""Whether an engine did as mlx-lm does on the past that the engine had stored, token for token.

Two ways to sum the same numbers differ in their last bits. A key that lies between two steps of
its quantisation is then stored as another number, and from there on the past is another one: as
far off as a step is wide, with 4 bits enough to change an answer. mlx-lm parts from itself no less
when its prompt is cut in other places. So an answer of its own says little about ours.

What can be exact is each step by itself: given the past that was there, what was stored and what
was drawn. So mlx-lm runs over the same tokens with caches that hand out the engine's numbers in
place of its own, and nothing adds up. What a sequence did not compute must have been stored for
the same tokens by somebody who did, bit for bit.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from recorded_runner import Floats, Stay
from reference import TIE, stock_mlx

from pippin.core.backend import mx

# isort: split
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import ArraysCache, CacheList

# Of the largest number that shares a scale: two ways to sum differ by less, two steps by more.
_NOISE = 5e-4
# Of the groups of numbers that share a scale, how many may be stored otherwise. Measured: 2 of
# 1000 with 8 bits, whose steps are narrow, 1 of 10,000 with 4.
_MOST_APART = 5e-3
# A number is off by half a step, or a whole one where the scale was stretched to have a zero.
_MOST_STEPS = 1.05


@dataclass
class Comparison:
    """What was looked at, and found to be right."""

    num_draws: int = 0
    num_found: int = 0
    num_groups: int = 0
    num_apart: int = 0


class _HandedCache:
    """Keeps what it is given, and hands out what an engine stored."""

    def __init__(self, past: tuple[Floats, Floats], first: int, window: int | None) -> None:
        self.offset = first
        self.given: tuple[mx.array, mx.array] | None = None
        self._past = [mx.array(np.nan_to_num(side))[None] for side in past]
        self._window = window

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self.given = keys, values
        self.offset += keys.shape[2]
        return self._past[0], self._past[1]

    def make_mask(
        self,
        length: int,
        window_size: int | None = None,
        return_array: bool = False,
    ) -> mx.array:
        mask: mx.array = create_causal_mask(
            length, self.offset, window_size=window_size or self._window
        )
        return mask


def check_stays(model: Any, stays: Sequence[Stay]) -> Comparison:
    """Raise `AssertionError` if anything was drawn or stored that mlx-lm would not have.

    Args:
        model: One that no engine has adapted to itself, in float32.
    """
    done = Comparison()
    stored = {name for stay in stays for name in _names(stay, stay.first, stay.length)}
    drawn: dict[Any, set[int]] = {}
    for stay in stays:
        found = set(_names(stay, 0, stay.first))
        assert found <= stored, "tokens have a past that was never stored for them"
        done.num_found += len(found)
        given = _check_draws(model, stay, done)
        _check_stored(stay, given, done)
        drawn.setdefault(stay.sequence, set()).update(stay.draws)
    for sequence, places in drawn.items():
        answer = range(sequence.num_prompt_tokens - 1, sequence.num_tokens - 1)
        assert places.issuperset(answer), "a token came from nowhere"
    assert done.num_apart <= max(_MOST_APART * done.num_groups, 1), done
    return done


def _names(stay: Stay, start: int, stop: int) -> Iterator[Hashable]:
    """What is stored in each layer at each position, for all the tokens up to there."""
    texts = [0]
    for token in stay.sequence.token_ids:
        texts.append(hash((texts[-1], token)))
    for layer in _paged_layers(stay):
        keys, values = stay.rows(layer)
        for at in range(start, stop):
            if not np.isnan(values[:, at]).any():
                pair = keys[:, at].tobytes(), values[:, at].tobytes()
                yield layer, texts[at + 1], hash(pair)
    for at, state in stay.states.items():
        # One that was resumed is looked for, one that was left behind can be found.
        if start < at <= stop:
            yield texts[at], hash(tuple(np.array(array).tobytes() for array in state))


def _paged_layers(stay: Stay) -> Iterator[int]:
    for layer, spec in enumerate(stay.layout.layers):
        if spec.is_paged:
            yield layer


def _check_draws(model: Any, stay: Stay, done: Comparison) -> dict[int, tuple[mx.array, mx.array]]:
    """Returns the keys and values that mlx-lm works out, by layer."""
    first, tokens = stay.first, stay.sequence.token_ids
    states = iter(stay.states.get(first, ()))
    caches: list[Any] = []
    for layer, spec in enumerate(stay.layout.layers):
        if spec.is_paged:
            caches.append(_HandedCache(stay.rows(layer), first, spec.window))
            continue
        caches.append(ArraysCache(len(spec.states)))
        if first:  # to some models, zeros are not the same as nothing
            caches[-1].cache = [next(states) for _ in spec.states]
    composite: Any = CacheList
    arranged = [
        caches[parts] if isinstance(parts, int) else composite(*(caches[i] for i in parts))
        for parts in stay.layout.tree
    ]
    with stock_mlx():
        logits = model(mx.array([tokens[first : stay.length]]), cache=arranged)[0]
        mx.eval(logits, [caches[layer].given for layer in _paged_layers(stay)])
    recurrent = [cache for cache in caches if isinstance(cache, ArraysCache)]
    left: list[Any] = [array for cache in recurrent for array in cache.cache]
    for mine, exact in zip(stay.states.get(stay.length, ()), left, strict=False):
        # Ours begins with zeros where there were fewer tokens than it holds.
        off = mx.abs(mine[tuple(slice(-size, None) for size in exact.shape)] - exact).max()
        assert off <= _NOISE * mx.abs(exact).max(), f"{stay.sequence}: a state is {off} off"
    for at in sorted(stay.draws):
        if at < min(stay.length, len(tokens) - 1):
            row = logits[at - first]
            gap = float(row.max() - row[tokens[at + 1]])
            assert gap <= TIE, f"{stay.sequence}, token {at + 1}: {gap} below the best"
            done.num_draws += 1
    return {layer: caches[layer].given for layer in _paged_layers(stay)}


def _check_stored(
    stay: Stay, given: dict[int, tuple[mx.array, mx.array]], done: Comparison
) -> None:
    for layer, pair in given.items():
        spec = stay.layout.layers[layer]
        bits_of_pair = spec.key_bits, spec.value_bits
        for rows, exact, bits in zip(stay.rows(layer), pair, bits_of_pair, strict=True):
            size = spec.group_size or exact.shape[-1]
            want = _grouped(exact[0], size)
            have = _grouped(mx.array(rows[:, stay.first :]), size)
            noise = _NOISE * mx.abs(want).max(axis=-1)
            if not bits:
                assert mx.all(mx.abs(have - want).max(axis=-1) <= noise), f"layer {layer}"
                continue
            packed = mx.quantize(exact[0], group_size=size, bits=bits)
            rounded = _grouped(mx.dequantize(*packed, group_size=size, bits=bits), size)
            step = (want.max(axis=-1) - want.min(axis=-1)) / (2**bits - 1)
            off = mx.abs(have - want).max(axis=-1)
            assert mx.all(off <= _MOST_STEPS * step), f"layer {layer}: {(off / step).max()} steps"
            done.num_groups += step.size
            done.num_apart += int(mx.sum(mx.abs(have - rounded).max(axis=-1) > noise))


def _grouped(vectors: mx.array, size: int) -> mx.array:
    return vectors.reshape(-1, size)
