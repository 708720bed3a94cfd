"""Titles and cells that all tables share, on a terminal and in files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .figures import Distribution, Figures
from .report import Report, cached_share, client_line, server_line, workload_line

STATISTICS = ("mean", "p50", "p90", "p95", "p99")


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of texts; the first `num_labels` columns are words, the rest numbers."""

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_labels: int


def facts(report: Report) -> dict[str, str]:
    """What stands above the figures."""
    load = report.load
    requests = ", ".join(map(str, load["num_requests"]))
    amounts = {
        "requests at each level": requests or None,
        "s at each level": load["duration_s"],
        "requests to warm up": load["warmup"],
    }
    limits = (f"{name} {limit:g} ms" for name, limit in report.slo.items())
    return {
        "model": report.model,
        "server": server_line(report.server),
        "client": client_line(report.client),
        "workload": workload_line(report.workload),
        "load": ", ".join(
            f"{value} {name}" for name, value in amounts.items() if value is not None
        ),
        **({"limits": ", ".join(limits)} if report.slo else {}),
        "seed": str(report.seed),
        "started": report.started,
    }


def throughput(report: Report) -> Grid:
    """A row for each level, and for each of its parts that ran by itself."""
    found = [entry for entry in report.all_figures() if entry[1].wall_s is not None]
    unit = output_unit(report)
    columns = {
        load_title(report): [level.label for level, _ in found],
        "part": [figures.part for _, figures in found],
        "good": [f"{figures.succeeded:,}" for _, figures in found],
        "failed": [f"{figures.requests - figures.succeeded:,}" for _, figures in found],
        "req/s": [amount(figures.requests_s) for _, figures in found],
        f"output {unit}/s": [amount(figures.output_tokens_s) for _, figures in found],
        "total tok/s": [amount(figures.total_tokens_s) for _, figures in found],
        "input cached": [share(cached_share(figures)) for _, figures in found],
        "goodput req/s": [amount(figures.goodput_s) for _, figures in found],
        "within limits": [share(figures.goodput_share) for _, figures in found],
    }
    if not report.slo:
        del columns["goodput req/s"], columns["within limits"]
    if not any(columns["part"]):
        del columns["part"]
    if report.workload["endpoint"] == "embeddings":
        del columns[f"output {unit}/s"]
    return Grid([*columns], [*zip(*columns.values(), strict=True)], 1 + ("part" in columns))


def latencies(report: Report) -> Grid:
    """A row for each latency of each level, in milliseconds."""
    rows = []
    for level, figures in report.all_figures():
        label = " ".join(filter(None, (level.label, figures.part)))
        for name, distribution in latencies_of(figures):
            cells = (amount(getattr(distribution, key)) for key in STATISTICS)
            rows.append((label, name, *cells))
            label = ""
    return Grid((load_title(report), "ms", *STATISTICS), rows, 2)


def latencies_of(figures: Figures) -> Iterator[tuple[str, Distribution]]:
    """Those there are, by their titles."""
    for name, distribution in (
        ("TTFT", figures.ttft_ms),
        ("to the answer", figures.first_answer_ms),
        ("TPOT" if figures.output_unit == "token" else "per chunk", figures.tpot_ms),
        ("ITL", figures.itl_ms),
        ("E2E", figures.e2e_ms),
        ("sent late", figures.late_ms),
    ):
        if distribution is not None:
            yield name, distribution


def failures(report: Report) -> list[str]:
    """A line for each kind at each level."""
    return [
        f"{level.title}: {found.count:,} failed by {kind}"
        + (f": {found.example}" if found.example else "")
        for level, figures in report.all_figures()
        if figures.wall_s is not None
        for kind, found in figures.failures.items()
    ]


def load_title(report: Report) -> str:
    """What the levels count."""
    has_rate = any(entry.level.request_rate for entry in report.levels)
    return "rate/s" if has_rate else "clients"


def output_unit(report: Report) -> str:
    """``tok``, or ``chunks`` if any level counts these."""
    units = {figures.output_unit for _, figures in report.all_figures()}
    return "chunks" if "chunk" in units else "tok"


def amount(value: float | None) -> str:
    """Three digits or more."""
    if value is None:
        return "-"
    shown = float(f"{value:.3g}") if value < 1000 else value
    digits = 0 if shown >= 100 or not shown else 1 if shown >= 10 else 2 if shown >= 1 else 3
    return f"{shown:,.{digits}f}"


def share(value: float | None) -> str:
    """A percentage."""
    return "-" if value is None else f"{value:.0%}"
