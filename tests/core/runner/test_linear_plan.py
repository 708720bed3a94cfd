"""Choices from made-up times."""

from __future__ import annotations

import json

import pytest

from pippin.core.runner.linear_plan import LinearPlan, LinearTimings, choose_plan

# A backend whose vector kernel reads the weights once a row, up to 7 rows.
STOCK = {1: 36.0, 2: 60.0, 4: 118.0, 8: 31.0, 16: 30.0, 32: 45.0, 64: 66.0, 256: 231.0, 1024: 900.0}


def test_few_rows_are_padded_where_more_are_faster() -> None:
    plan = choose_plan(LinearTimings(STOCK, padded={1: (8, 35.0), 2: (8, 36.0), 4: (8, 36.0)}))

    # One row gains 3 %, which is noise; 3, 5, 6 and 7 follow the next lower number measured.
    assert [plan.rows_to_run(rows) for rows in range(10)] == [0, 1, 8, 8, 8, 8, 8, 8, 8, 9]
    assert str(plan) == "2 as 8, 3 as 8, 4 as 8, 5 as 8, 6 as 8, 7 as 8"


def test_buckets_may_differ_in_what_they_are_padded_to() -> None:
    plan = choose_plan(LinearTimings(STOCK, padded={2: (4, 20.0), 8: (16, 20.0)}))

    assert [plan.rows_to_run(rows) for rows in (1, 2, 3, 4, 7, 8, 15, 16)] == [
        *(1, 4, 4, 4, 7, 16, 16, 16)
    ]


@pytest.mark.parametrize(
    ("dense", "dense_from"),
    [
        ({}, None),
        ({64: 150.0, 256: 240.0, 1024: 900.0}, None),
        ({64: 40.0, 256: 100.0, 1024: 300.0}, 64),
        # 87 behind at 64, 44 ahead at 256 of 95 % of the stock time: two thirds of the way.
        ({64: 149.7, 256: 175.45, 1024: 300.0}, 192),
        ({64: 40.0, 256: 300.0, 1024: 300.0}, 354),
        ({64: 40.0, 256: 100.0, 1024: 900.0}, None),
    ],
    ids=["not-tried", "never", "always", "from-between", "one-lucky-try", "not-for-good"],
)
def test_dense_from_where_it_wins_for_good(dense: dict[int, float], dense_from: int | None) -> None:
    plan = choose_plan(LinearTimings(STOCK, dense=dense))

    assert plan.dense_from == dense_from
    assert [rows for rows in (1, 64, 5000) if plan.is_dense(rows)] == (
        [] if dense_from is None else [rows for rows in (1, 64, 5000) if rows >= dense_from]
    )


def test_ties_are_stock() -> None:
    plan = choose_plan(
        LinearTimings(STOCK, padded={4: (8, 118.0)}, dense={256: 231.0, 1024: 900.0})
    )

    assert plan == LinearPlan()
    assert str(plan) == "stock"


def test_experts_have_no_times_for_few_rows() -> None:
    plan = choose_plan(LinearTimings({256: 90.0, 4096: 900.0}, dense={256: 400.0, 4096: 500.0}))

    assert plan.padded == ()
    assert plan.dense_from is not None
    assert 256 < plan.dense_from < 4096


OWN_ROWS = (1, 2, 4, 8, 16, 32, 64)


@pytest.mark.parametrize(
    ("won", "spans"),
    [
        (OWN_ROWS, [range(1, 65)]),
        ((), []),
        ((8,), [range(8, 9)]),
        ((1, 2, 4, 16, 32), [range(1, 5), range(16, 33)]),
        ((4, 64), [range(4, 5), range(64, 65)]),
    ],
    ids=["always", "never", "once", "two-ranges", "apart"],
)
def test_our_own_kernel_is_taken_between_numbers_of_rows_where_it_wins(
    won: tuple[int, ...], spans: list[range]
) -> None:
    own = {rows: STOCK[rows] * (0.9 if rows in won else 0.96) for rows in OWN_ROWS}

    plan = choose_plan(LinearTimings(STOCK, own=own))

    assert [rows for rows in range(1, 300) if plan.is_own(rows)] == [
        rows for span in spans for rows in span
    ]


def test_our_own_kernel_must_beat_all_other_ways() -> None:
    timings = LinearTimings(
        STOCK,
        padded={2: (8, 31.0), 4: (8, 31.0)},
        dense={16: 90.0, 64: 40.0, 256: 90.0},
        own={1: 30.0, 2: 29.0, 4: 30.0, 8: 29.0, 16: 28.0, 64: 39.0},
    )

    plan = choose_plan(timings)

    assert str(plan) == (
        "2 as 8, 3 as 8, 4 as 8, 5 as 8, 6 as 8, 7 as 8, dense from 52, "
        "own kernel from 1 to 2, own kernel from 8 to 16"
    )
    assert [timings.seconds(rows) for rows in (1, 2, 4, 8, 20, 40)] == [30, 29, 30, 29, 28, 45]


def test_times_survive_json() -> None:
    timings = LinearTimings(STOCK, padded={4: (8, 36.5)}, dense={256: 176.0}, own={8: 20.0})

    assert LinearTimings.from_json(json.loads(json.dumps(timings.to_json()))) == timings
