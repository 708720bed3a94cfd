"""The report in all its forms, and two of them side by side."""

from __future__ import annotations

import csv
import io
import json
import re
from array import array
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

import pytest
from rich.console import Console

from pippin.cli.bench.answer import Answer
from pippin.cli.bench.compare import check_same, compare
from pippin.cli.bench.figures import make_figures
from pippin.cli.bench.html_report import to_html
from pippin.cli.bench.http_client import RequestFailedError
from pippin.cli.bench.plan import Arrival, Level
from pippin.cli.bench.report import LevelReport, Report
from pippin.cli.bench.rows import amount
from pippin.cli.bench.svg_chart import tick_step
from pippin.cli.bench.terminal import bar, print_report
from pippin.cli.bench.writers import to_csv, to_json, to_markdown
from pippin.core.errors import ConfigError

NAME = "org/a|b <i>&[x]"
WORKLOAD: dict[str, Any] = {
    "kind": "synthetic",
    "endpoint": "chat",
    "input_tokens": {"mean": 512, "spread": 0},
    "output_tokens": {"mean": 128, "spread": 16},
    "prefix_tokens": 0,
    "num_prefixes": 1,
    "turns": 1,
    "unique_prefix": True,
    "images": 0,
    "inputs": 1,
    "ignore_eos": True,
    "temperature": 0.0,
    "extra_body": {"top_p": 0.5},
    "length_unit": "token",
    "is_unique": True,
}
CLOSED = (Level(concurrency=1), Level(concurrency=16))


def make_answers(count: int, *, gap: float, num_failed: int = 0) -> list[Answer]:
    """The first token comes after ten gaps."""
    answers = [
        Answer(
            "",
            started_at=0.0,
            piece_times=array("d", [gap * (10 + step) for step in range(5)]),
            first_answer_at=gap * 11,
            ended_at=gap * 15,
            prompt_tokens=500,
            cached_tokens=0,
            output_tokens=5,
        )
        for _ in range(count)
    ]
    for answer in answers[:num_failed]:
        answer.fail(RequestFailedError("HTTP 503", "busy <now>"))
    return answers


def make_report(
    *, levels: Sequence[Level] = CLOSED, gap: float = 0.02, count: int = 10, num_failed: int = 0
) -> Report:
    slo = {"ttft": 500.0}
    figures = make_figures(
        make_answers(count, gap=gap, num_failed=num_failed),
        wall_s=gap * 100,
        cpu_s=gap,
        slo=slo,
    )
    return Report(
        started="2026-01-02T03:04:05+00:00",
        model=NAME,
        server={"url": "http://h", "version": "1", "server_header": "unknown", "health": "unknown"},
        client={
            **{"pippin": "1", "python": "3", "platform": "p", "processor": "unknown"},
            **{"cores": 2, "memory_bytes": 2**30},
        },
        seed=7,
        workload=WORKLOAD,
        load={"num_requests": [count], "duration_s": None, "warmup": 2, "timeout_s": 600.0},
        slo=slo,
        levels=[LevelReport(level, (figures,)) for level in levels],
    )


def compared(base: Report, report: Report, *, max_regression: float = 0.1) -> dict[str, Any]:
    return compare(base.to_json(), report, max_regression=max_regression)


def regressed(comparison: dict[str, Any]) -> set[tuple[str, str]]:
    found = (change for change in comparison["changes"] if change["regression"])
    return {(change["figure"], change["statistic"]) for change in found}


def test_only_percentiles_with_ten_values_beyond_them_are_judged() -> None:
    few = regressed(compared(make_report(), make_report(gap=0.025)))
    many = regressed(compared(make_report(count=100), make_report(gap=0.025, count=100)))
    assert {("ttft_ms", "mean"), ("output_tokens_s", "mean")} < few
    assert ("ttft_ms", "p50") not in few
    assert ("itl_ms", "p50") in few  # four for each request
    assert {("ttft_ms", "p50"), ("ttft_ms", "p90")} < many
    assert ("ttft_ms", "p99") not in many


def test_what_is_within_the_limit_or_better_is_no_regression() -> None:
    assert not regressed(compared(make_report(), make_report(gap=0.0215)))
    assert regressed(compared(make_report(), make_report(gap=0.0215), max_regression=0.05))
    assert not regressed(compared(make_report(), make_report(gap=0.01)))


def test_one_more_failure_is_a_regression_however_good_the_rest() -> None:
    worse = compared(make_report(), make_report(num_failed=1), max_regression=0.5)
    assert regressed(worse) == {("failed", "mean")}
    assert not regressed(compared(make_report(num_failed=1), make_report(num_failed=1)))


def test_a_given_rate_is_not_judged() -> None:
    levels = [Level(request_rate=2.0, arrival=Arrival.CONSTANT)]
    both = make_report(levels=levels), make_report(levels=levels, gap=0.03)
    assert {figure for figure, _ in regressed(compared(*both))} == {
        *("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms", "first_answer_ms")
    }


def test_levels_and_limits_that_differ_are_said() -> None:
    base, report = make_report(), make_report(levels=[Level(concurrency=16), Level(concurrency=64)])
    report.slo = {"ttft": 1.0}
    comparison = compared(base, report)
    assert comparison["notes"] == [
        "load 64: not in the base.",
        "load 1: only in the base.",
        "The limits differ: goodput is not compared.",
    ]
    assert "goodput_s" not in {change["figure"] for change in comparison["changes"]}


def test_another_model_or_workload_is_refused() -> None:
    base, report = make_report().to_json(), make_report()
    check_same(base, report)
    for change in ({"model": "other"}, {"workload": {**WORKLOAD, "turns": 2}}):
        with pytest.raises(ConfigError, match="--compare: the base"):
            check_same({**base, **change}, report)


def test_json_is_what_is_compared() -> None:
    read = json.loads(to_json(make_report()))
    assert not regressed(compare(read, make_report(), max_regression=0.001))
    assert [level["concurrency"] for level in read["levels"]] == [1, 16]


def show(report: Report, width: int, **options: Any) -> str:
    file = io.StringIO()
    print_report(Console(file=file, width=width, highlight=False, **options), report)
    return file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_a_terminal_of_any_width_is_enough(width: int) -> None:
    report = make_report(num_failed=1)
    report.comparison = compared(make_report(), report)
    shown = show(report, width)
    assert max(map(len, shown.splitlines())) <= width
    words = " ".join(shown.split())
    assert NAME in words
    assert "clients good failed req/s tok/s tok/s cached req/s limits" in words
    assert "concurrency 16: 1 failed by HTTP 503: busy <now>" in words
    assert re.search(r"16 +TTFT( +200){5}", shown)
    assert "failed 0% to 10%!" in words


def test_without_color_there_are_no_styles(monkeypatch: pytest.MonkeyPatch) -> None:
    report = make_report()
    assert "\x1b[" in show(report, 80, force_terminal=True, color_system="256")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in show(report, 80, force_terminal=True, color_system="256")


def test_bars_have_eighths_and_an_ascii_form() -> None:
    assert [bar(length, is_ascii=False) for length in (2.5, 1.0, 0.0)] == ["██▌", "█", ""]
    assert bar(2.6, is_ascii=True) == "###"


def test_amounts_have_three_digits() -> None:
    values = (None, 0, 0.0123, 1.234, 9.999, 12.345, 99.96, 123.4, 1234.5)
    assert [amount(value) for value in values] == [
        *("-", "0", "0.012", "1.23", "10.0", "12.3", "100", "123", "1,234")
    ]


def test_csv_has_a_line_for_each_level() -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(make_report(num_failed=1)))))
    assert [line["concurrency"] for line in lines] == ["1", "16"]
    assert (lines[0]["model"], lines[0]["failures"]) == (NAME, "HTTP 503: 1")
    assert (lines[0]["ttft_ms_p50"], lines[0]["goodput_s"]) == ("200.0", "4.5")


def test_markdown_keeps_its_tables_whole() -> None:
    report = make_report()
    report.comparison = compared(make_report(), report)
    text = to_markdown(report)
    tables: list[set[int]] = []
    for line in text.splitlines():
        if line.startswith("|"):
            tables[-1].add(len(re.findall(r"(?<!\\)\|", line)))
        else:
            tables.append(set())
    assert all(len(columns) <= 1 for columns in tables)
    assert sum(map(bool, tables)) == 3
    assert r"a\|b \<i\>" in text


class Outside(HTMLParser):
    """Collects what a page would load, and its tags."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str | None] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href", "xlink:href")]


def test_the_page_has_charts_and_loads_nothing() -> None:
    report = make_report(num_failed=1)
    report.comparison = compared(make_report(), report)
    page = to_html(report)
    parser = Outside()
    parser.feed(page)
    assert parser.loaded == []
    assert not {"i", "script", "link", "img"} & {*parser.tags}
    assert (parser.tags.count("svg"), parser.tags.count("table")) == (5, 3)
    assert "url(" not in page
    assert "prefers-color-scheme: dark" in page
    assert parser.tags.count("rect") == 2 * (1 + 4 * 3)


@pytest.mark.parametrize(("most", "step"), [(800, 200), (801, 250), (7.9, 2), (0.41, 0.2)])
def test_ticks_are_round_and_reach_the_top(most: float, step: float) -> None:
    assert tick_step(most) == pytest.approx(step)


def test_a_report_of_nothing_is_still_one() -> None:
    report = make_report(levels=[])
    report.cut = True
    assert "Cut by an interrupt" in show(report, 80)
    assert all("Cut by an interrupt" in text for text in (to_html(report), to_markdown(report)))
    assert to_csv(report) == "\n"
