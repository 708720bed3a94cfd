"""How long a chunk may be, from what steps have taken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pippin.core.engine.step_costs import StepCosts


def learned(rows_s: float, token_s: float, *, num_rows: int = 16) -> StepCosts:
    """After some steps on a machine where a chunk's tokens all cost the same."""
    costs = StepCosts()
    for _ in range(20):
        costs.observe(num_rows, 0, rows_s)
        costs.observe(num_rows, 512, rows_s + 512 * token_s)
    return costs


def test_nothing_is_known_at_first() -> None:
    costs = StepCosts()

    assert costs.rows_seconds(4) is None
    assert costs.chunk_seconds(100) is None
    assert costs.rows_seconds(0) == 0.0
    assert 32 <= costs.chunk_limit(4, 1) <= 512


@given(rows_s=st.floats(1e-3, 1.0), token_s=st.floats(1e-5, 1e-2))
def test_a_chunk_does_not_double_the_step_of_those_who_decode(
    rows_s: float, token_s: float
) -> None:
    limit = learned(rows_s, token_s).chunk_limit(16, 1)

    assert limit == 32 or limit * token_s <= rows_s
    # And it is not timid: twice as long would be too long, or is the longest of all.
    assert limit in (32, 8192) or 2 * limit * max(token_s, 0.02 * rows_s / 512) > 0.8 * rows_s


def test_the_more_wait_the_longer_the_others_may() -> None:
    costs = learned(0.01, 1e-4)

    limits = [costs.chunk_limit(16, hungry) for hungry in (1, 16, 64, 1000)]

    assert limits == sorted(limits)
    assert limits[0] < 128 < limits[-1]


def test_a_fast_machine_may_run_long_chunks() -> None:
    assert learned(0.2, 1e-6).chunk_limit(16, 1) == 8192


def test_where_any_chunk_takes_long_more_tokens_ride_along() -> None:
    costs = StepCosts()
    for _ in range(20):
        costs.observe(16, 0, 0.012)
        for size in (32, 512):
            costs.observe(16, size, 0.036 + size * 1e-6)
        costs.observe(16, 1024, 0.070)

    assert costs.chunk_limit(16, 1) == 512


def test_one_step_that_was_held_up_is_not_believed() -> None:
    costs = learned(0.01, 1e-4)
    before = costs.chunk_limit(16, 1)

    costs.observe(16, 0, 30.0)
    costs.observe(16, 512, 30.0)

    assert costs.rows_seconds(16) == pytest.approx(0.01, rel=0.2)
    assert costs.chunk_limit(16, 1) in (before, before // 2)


def test_a_machine_that_got_slower_for_good_is_believed() -> None:
    costs = learned(0.01, 1e-4)

    for _ in range(60):
        costs.observe(16, 0, 0.2)

    assert costs.rows_seconds(16) == pytest.approx(0.2, rel=0.1)


def test_a_chunk_that_rode_for_free_is_not_held_to_be_free() -> None:
    costs = StepCosts()
    for _ in range(20):
        costs.observe(16, 0, 0.010)
        costs.observe(16, 64, 0.010)

    assert costs.chunk_seconds(64) == pytest.approx(0.0002)
