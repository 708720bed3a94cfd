"""The report as a file: JSON, CSV or Markdown. HTML is in `html_report`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from . import rows
from .compare import comparison_grid, comparison_lines
from .html_report import to_html
from .plan import Format
from .report import Report


def write(report: Report, form: Format) -> str:
    """Everything, in a form other than the terminal's."""
    writers = {
        Format.JSON: to_json,
        Format.CSV: to_csv,
        Format.MD: to_markdown,
        Format.HTML: to_html,
    }
    return writers[form](report)


def to_json(report: Report) -> str:
    """What ``--compare`` reads."""
    return json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n"


def to_csv(report: Report) -> str:
    """A line for each level and part; what was the same for all stands in each line."""
    lines = []
    for level, figures in report.all_figures():
        line: dict[str, Any] = {
            "started": report.started,
            "model": report.model,
            "url": report.server["url"],
            "server_version": report.server["version"],
            "client_version": report.client["pippin"],
            "seed": report.seed,
            "endpoint": report.workload["endpoint"],
            "workload": report.workload["kind"],
            "concurrency": level.concurrency,
            "request_rate": level.request_rate,
            "arrival": level.arrival,
            "cut_run": report.cut,
        }
        for name, value in asdict(figures).items():
            if name == "failures":
                line[name] = "; ".join(f"{kind}: {f['count']}" for kind, f in value.items())
            elif name.endswith("_ms"):
                statistics = value or {}
                line |= {f"{name}_{key}": statistics.get(key) for key in rows.STATISTICS}
            else:
                line[name] = value
        lines.append(line)
    file = io.StringIO()
    writer = csv.DictWriter(file, lines[0].keys() if lines else (), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


def to_markdown(report: Report) -> str:
    """For a README or an issue."""
    parts = ["# Benchmark of a server", ""]
    parts += [f"- **{name}**: {_escape(value)}" for name, value in rows.facts(report).items()]
    for title, grid in (
        ("Throughput", rows.throughput(report)),
        ("Latencies in milliseconds", rows.latencies(report)),
    ):
        parts += ["", f"## {title}", "", *_markdown_table(grid)]
    if report.comparison is not None:
        parts += ["", "## Comparison", "", *_markdown_table(comparison_grid(report.comparison)), ""]
        parts += [f"- {_escape(line)}" for line in comparison_lines(report.comparison)]
    if lines := [*rows.failures(report), *report.notes()]:
        parts += ["", "## Notes", "", *(f"- {_escape(line)}" for line in lines)]
    return "\n".join(parts) + "\n"


def _markdown_table(grid: rows.Grid) -> Iterable[str]:
    yield f"| {' | '.join(grid.titles)} |"
    numbers = len(grid.titles) - grid.num_labels
    yield f"|{'---|' * grid.num_labels}{'--:|' * numbers}"
    for row in grid.rows:
        yield f"| {' | '.join(_escape(cell) for cell in row)} |"


def _escape(text: str) -> str:
    for mark in "\\|<>*_`[]":
        text = text.replace(mark, f"\\{mark}")
    return text
