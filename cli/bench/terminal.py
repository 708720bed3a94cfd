"""The report on a terminal: facts, tables, bars. Plain where the terminal is."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import rows
from .compare import comparison_grid, comparison_lines
from .figures import Distribution
from .report import Report

_NARROW = 76
_MAX_BAR = 60
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def print_report(console: Console, report: Report) -> None:
    """Everything there is to say."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="" if console.no_color else "dim")
    table.add_column(overflow="fold")
    for name, value in rows.facts(report).items():
        table.add_row(name, Text(value))
    console.print(table)
    for grid in (rows.throughput(report), rows.latencies(report)):
        if grid.rows:
            console.print()
            print_grid(console, grid)
    if len(report.levels) > 1:
        print_charts(console, report)
    if report.comparison is not None:
        console.print()
        print_grid(console, comparison_grid(report.comparison))
        _print_lines(console, comparison_lines(report.comparison))
    _print_lines(console, [*rows.failures(report), *report.notes()])


def print_grid(console: Console, grid: rows.Grid) -> None:
    """A table without lines."""
    gap = 1 if console.width < _NARROW else 2
    style = "" if console.no_color else "bold"
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style=style)
    for index, title in enumerate(grid.titles):
        is_label = index < grid.num_labels
        table.add_column(
            title if is_label else title.replace(" ", "\n"),
            justify="left" if is_label else "right",
            no_wrap=not is_label,
            overflow="fold",
            vertical="bottom",
        )
    for row in grid.rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def print_charts(console: Console, report: Report) -> None:
    """Bars over the sweep."""
    found = [entry for entry in report.all_figures() if entry[1].wall_s is not None]
    labels = [" ".join(filter(None, (level.label, figures.part))) for level, figures in found]
    charts: list[tuple[str, list[float | None]]] = [
        (f"output {rows.output_unit(report)}/s", [f.output_tokens_s for _, f in found]),
        ("TTFT p50 ms", [_p50(f.ttft_ms) for _, f in found]),
        ("TPOT p50 ms", [_p50(f.tpot_ms) for _, f in found]),
        ("E2E p50 ms", [_p50(f.e2e_ms) for _, f in found]),
    ]
    if report.workload["endpoint"] == "embeddings":
        charts[0] = ("requests/s", [f.requests_s for _, f in found])
    for title, values in charts:
        if any(values):
            console.print(f"\n{title} by {rows.load_title(report)}")
            _print_bars(console, labels, values)


def _print_bars(console: Console, labels: list[str], values: list[float | None]) -> None:
    shown = [rows.amount(value) for value in values]
    label_width, value_width = (max(map(len, texts)) for texts in (labels, shown))
    width = max(8, min(_MAX_BAR, console.width - label_width - value_width - 3))
    most = max(value or 0.0 for value in values)
    for label, text, value in zip(labels, shown, values, strict=True):
        drawn = bar((value or 0.0) / most * width, is_ascii=not console.encoding.startswith("utf"))
        console.print(f"{label:>{label_width}} {drawn} {text}", style=None, markup=False)


def bar(length: float, *, is_ascii: bool) -> str:
    """So many characters, and a part of one."""
    if is_ascii:
        return "#" * round(length)
    whole, eighths = divmod(round(length * 8), 8)
    return "█" * whole + (_EIGHTHS[eighths] if eighths else "")


def _print_lines(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line, markup=False)


def _p50(distribution: Distribution | None) -> float | None:
    return None if distribution is None else distribution.p50
