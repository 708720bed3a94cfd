"""Figures of answers whose times are known exactly."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import pytest

from pippin.cli.bench.answer import Answer
from pippin.cli.bench.figures import Figures, count_failures, make_figures, percentile
from pippin.cli.bench.http_client import RequestFailedError


def make_answer(*pieces: float, tokens: int | None = None, failure: str = "") -> Answer:
    return Answer(
        "",
        started_at=10.0,
        piece_times=array("d", [10.0 + at for at in pieces]),
        first_answer_at=10.0 + pieces[0] if pieces else None,
        ended_at=11.0,
        output_tokens=tokens,
        prompt_tokens=20 if tokens else None,
        failure=RequestFailedError(failure, "why") if failure else None,
    )


def figures_of(*answers: Answer, wall_s: float = 2.0, **slo: float) -> Figures:
    return make_figures(answers, wall_s=wall_s, slo=slo)


def test_latencies_are_what_they_are_defined_as() -> None:
    figures = figures_of(make_answer(0.1, 0.2, 0.4, tokens=7))
    assert figures.ttft_ms is not None
    assert figures.ttft_ms.mean == pytest.approx(100)
    assert figures.tpot_ms is not None
    assert figures.tpot_ms.p50 == pytest.approx(50)  # 300 ms for 6 more tokens, in 2 more pieces
    assert figures.itl_ms is not None
    assert figures.itl_ms.count == 2
    assert figures.itl_ms.mean == pytest.approx(150)
    assert figures.e2e_ms is not None
    assert figures.e2e_ms.p99 == pytest.approx(1000)
    assert (figures.output_tokens_s, figures.total_tokens_s, figures.requests_s) == (3.5, 13.5, 0.5)


def test_one_answer_without_a_count_makes_all_count_chunks() -> None:
    figures = figures_of(make_answer(0.1, 0.2, tokens=9), make_answer(0.1, 0.3))
    assert (figures.output_unit, figures.output_tokens) == ("chunk", 4)
    assert figures.total_tokens_s is figures.input_tokens is None
    assert figures.tpot_ms is not None
    assert figures.tpot_ms.mean == pytest.approx(150)


def test_a_single_piece_has_no_time_for_a_token() -> None:
    figures = figures_of(make_answer(0.1, tokens=5))
    assert figures.tpot_ms is figures.itl_ms is None


def test_failed_answers_count_only_as_failures() -> None:
    figures = figures_of(
        make_answer(0.1, 0.2, tokens=2), make_answer(5.0, tokens=3, failure="timeout"), ttft=200
    )
    assert (figures.requests, figures.succeeded, figures.output_tokens) == (2, 1, 2)
    assert (figures.goodput_s, figures.goodput_share) == (0.5, 0.5)
    assert figures.ttft_ms is not None
    assert figures.ttft_ms.count == 1
    assert figures_of(make_answer(failure="x")).ttft_ms is None


@pytest.mark.parametrize(
    ("slo", "share"), [({"ttft": 100.1}, 1.0), ({"ttft": 99.0}, 0.0), ({"tpot": 99.0}, 0.0)]
)
def test_limits(slo: dict[str, float], share: float) -> None:
    assert figures_of(make_answer(0.1, 0.2, tokens=2), **slo).goodput_share == share


def test_failures_come_by_kind_the_most_frequent_first() -> None:
    kinds = ["a", "b", "b", ""]
    counted = count_failures(make_answer(0.1, failure=kind) for kind in kinds)
    assert [(kind, found.count, found.example) for kind, found in counted.items()] == [
        *(("b", 2, "why"), ("a", 1, "why"))
    ]


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([5.0], 99, 5.0),
        ([0.0, 10.0], 50, 5.0),
        ([0.0, 10.0, 20.0], 95, 19.0),
        ([1.0, 2.0], 100, 2.0),
    ],
)
def test_percentiles_lie_between_neighbours(
    values: Sequence[float], percent: float, expected: float
) -> None:
    assert percentile(values, percent) == pytest.approx(expected)
