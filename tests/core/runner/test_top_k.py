"""Selection by blocks, against a stable sort of whole rows."""

from __future__ import annotations

import numpy as np
import pytest

from pippin.core.backend import mx
from pippin.core.runner.top_k import top_k


@pytest.mark.parametrize(
    ("length", "k"), [(7, 7), (300, 5), (4097, 1), (5000, 30), (20_001, 64), (40_000, 1024)]
)
@pytest.mark.parametrize("decimals", [9, 1, 0])
def test_entries_and_their_order_are_those_of_a_stable_sort(
    length: int, k: int, decimals: int
) -> None:
    rng = np.random.default_rng(length + decimals)
    rows = np.round(rng.normal(0, 3, size=(6, length)), decimals).astype(np.float32)
    rows[2] = 0.0
    rows[3, 1:] = -np.inf
    rows[4] = np.sort(rows[4])
    rows[5] = np.sort(rows[5])[::-1]

    values, indices = top_k(mx.array(rows), k)

    want = np.argsort(-rows, axis=-1, kind="stable")[:, :k]
    assert np.array_equal(np.array(indices), want)
    assert np.array_equal(np.array(values), np.take_along_axis(rows, want, axis=-1))


def test_rows_that_are_not_numbers_give_indices_in_range() -> None:
    rows = np.full((3, 4999), np.nan, dtype=np.float32)
    rows[1] = -np.inf
    rows[2, 10:] = 1.0

    _, indices = top_k(mx.array(rows), 40)

    assert np.array(indices).max() < 4999
