"""The quality of the addressed random numbers. Limits are passed by chance once in 10,000 runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pippin.core.backend import mx
from pippin.core.runner.noise import add_gumbel, row_keys

Array = np.ndarray[Any, np.dtype[np.float64]]


def uniforms(seeds: list[int], positions: list[int], token_ids: Array | range) -> Array:
    """The numbers in (0, 1) that the noise is made of, ``[rows, n]``."""
    ids = mx.array(np.asarray(token_ids, dtype=np.uint32))
    zeros = mx.zeros((len(seeds), ids.shape[-1]))
    noise = np.array(add_gumbel(zeros, row_keys(seeds, positions), ids)).astype(np.float64)
    out: Array = -np.expm1(-np.exp(-noise))
    return out


def excess(cells: Array, num_cells: int) -> float:
    """Chi-square of cell numbers against evenness, in standard deviations."""
    counts = np.bincount(cells.ravel().astype(np.int64), minlength=num_cells)
    assert counts.size == num_cells
    expected = cells.size / num_cells
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float((statistic - (num_cells - 1)) / np.sqrt(2 * (num_cells - 1)))


def test_a_row_is_uniform_and_neighbours_in_it_are_independent() -> None:
    u = uniforms([7] * 12, list(range(12)), range(152_000))

    assert abs(excess(u * 4096, 4096)) < 4
    assert np.abs([excess(row * 256, 256) for row in u]).mean() < 1.5
    for lag in (1, 2, 16, 256, 4096, 65_536):
        pairs = np.floor(u[:, lag:] * 16) * 16 + np.floor(u[:, :-lag] * 16)
        assert abs(excess(pairs, 256)) < 4.5, lag


@pytest.mark.parametrize("what", ["seeds", "positions"])
def test_a_token_is_uniform_and_independent_over_rows(what: str) -> None:
    many, one = list(range(60_000)), [5] * 60_000
    ids = [0, 1, 2, 1024, 65_536, 131_072, 131_073]

    u = uniforms(*((many, one) if what == "seeds" else (one, many)), np.array(ids))

    for i in range(len(ids)):
        assert abs(excess(u[:, i] * 256, 256)) < 4.5
        neighbours = np.floor(u[1:, i] * 16) * 16 + np.floor(u[:-1, i] * 16)
        assert abs(excess(neighbours, 256)) < 4.5
        for j in range(i):
            assert abs(excess((u[:, i] - u[:, j]) % 1.0 * 256, 256)) < 4.5, (ids[i], ids[j])


def test_noise_reaches_far_and_is_always_a_number() -> None:
    """Tokens of probability 1e-9 keep their share only if noise of 20 occurs."""
    ids = mx.arange(4_000_000, dtype=mx.uint32)
    noise = np.array(add_gumbel(mx.zeros((1, ids.size)), row_keys([1], [1]), ids))[0]

    assert np.isfinite(noise).all()
    assert noise.min() > -4
    # The greatest of n Gumbel numbers is log n and a Gumbel number: here 15.2 and -2.2 to 9.2.
    assert 13.0 < noise.max() < 24.4
    # What wins must not be rounded together: the first of equals would always win.
    assert len(np.unique(np.partition(noise, -1000)[-1000:])) > 990
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=0.003)
    assert noise.std() == pytest.approx(np.pi / np.sqrt(6), abs=0.003)


def test_noise_of_a_token_does_not_depend_on_which_others_are_asked_for() -> None:
    keys = row_keys([3, 4], [10, 11])
    whole = np.array(add_gumbel(mx.zeros((2, 999)), keys, mx.arange(999, dtype=mx.uint32)))
    some = np.array([[998, 0, 17], [5, 998, 6]], dtype=np.uint32)

    part = np.array(add_gumbel(mx.zeros((2, 3)), keys, mx.array(some)))

    assert np.allclose(part, np.take_along_axis(whole, some.astype(np.int64), axis=-1), atol=1e-6)


def test_both_words_of_a_key_count() -> None:
    keys = mx.array(np.array([[1, 2], [1, 3], [4, 2]], dtype=np.uint32))
    noise = np.array(add_gumbel(mx.zeros((3, 500)), keys, mx.arange(500, dtype=mx.uint32)))

    assert np.abs(np.corrcoef(noise) - np.eye(3)).max() < 0.18  # 4 standard deviations


def test_seed_and_position_make_the_key() -> None:
    seeds = [0, 1, -1, 2**63, 2**64 - 1, 0, 1]
    positions = [0, 0, 0, 0, 0, 1, 1]

    keys = [tuple(key) for key in np.array(row_keys(seeds, positions)).tolist()]

    assert keys[2] == keys[4]  # the same 64 bits
    assert len(set(keys)) == len(keys) - 1
    assert keys == [
        tuple(np.array(row_keys([seed], [position]))[0].tolist())
        for seed, position in zip(seeds, positions, strict=True)
    ]
