"""The report as one HTML page with nothing outside it: tables, and charts over the sweep."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from . import rows
from .compare import comparison_grid, comparison_lines
from .figures import Distribution
from .report import Report
from .svg_chart import draw_bars

_PERCENTILES = ("p50", "p95", "p99")
_STYLE = """
:root { color-scheme: light dark; --page: #fcfcfb; --ink: #1d1f23; --dim: #626873; --line: #dfe1e5;
  --s0: #2f6fde; --s1: #d9822b; --s2: #b3427a; }
@media (prefers-color-scheme: dark) { :root { --page: #15171b; --ink: #e6e8ec; --dim: #979eaa;
  --line: #31353d; --s0: #6ea2ff; --s1: #f0a55a; --s2: #e37fb1; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1160px; padding: 24px; background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 22px; margin: 0 0 12px; } h2 { font-size: 17px; margin: 32px 0 8px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 0; }
dt { color: var(--dim); } dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 12px; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { color: var(--dim); font-weight: 500; } .label { text-align: left; }
.worse { color: var(--s2); font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr));
  gap: 24px; }
figure { margin: 0; }
figcaption { font-weight: 600; display: flex; flex-wrap: wrap; gap: 2px 14px; }
.key { font-weight: 400; color: var(--dim); }
.key::before { content: ""; display: inline-block; width: 10px; height: 10px; margin-right: 5px;
  background: var(--key); }
svg { width: 100%; height: auto; } svg text { fill: var(--dim); font-size: 12px; }
.grid { stroke: var(--line); }
.s0 { fill: var(--s0); } .s1 { fill: var(--s1); } .s2 { fill: var(--s2); }
"""


def to_html(report: Report) -> str:
    """The page."""
    facts = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
        for name, value in rows.facts(report).items()
    )
    body = [f"<h1>Benchmark of {escape(report.model)}</h1><dl>{facts}</dl>"]
    if lines := [*rows.failures(report), *report.notes()]:
        body += ["<h2>Notes</h2>", _list(lines)]
    if charts := list(_charts(report)):
        body += ["<h2>Charts</h2>", f'<div class="charts">{"".join(charts)}</div>']
    body += ["<h2>Throughput</h2>", _table(rows.throughput(report))]
    body += ["<h2>Latencies in milliseconds</h2>", _table(rows.latencies(report))]
    if report.comparison is not None:
        body += ["<h2>Comparison</h2>", _list(comparison_lines(report.comparison))]
        body += [_table(comparison_grid(report.comparison))]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Benchmark of {escape(report.model)}</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _charts(report: Report) -> Iterable[str]:
    found = [entry for entry in report.all_figures() if entry[1].wall_s is not None]
    labels = [" ".join(filter(None, (level.label, figures.part))) for level, figures in found]
    x_title = rows.load_title(report)
    figures_of_all = [figures for _, figures in found]
    rates: dict[str, Sequence[float | None]] = {
        f"output {rows.output_unit(report)}/s": [f.output_tokens_s for f in figures_of_all]
    }
    if not any(*rates.values()):
        rates = {"requests/s": [f.requests_s for f in figures_of_all]}
    latencies: dict[str, list[Distribution | None]] = {
        "TTFT ms": [f.ttft_ms for f in figures_of_all],
        "TPOT ms": [f.tpot_ms for f in figures_of_all],
        "ITL ms": [f.itl_ms for f in figures_of_all],
        "E2E ms": [f.e2e_ms for f in figures_of_all],
    }
    for title, values in rates.items():
        if any(values):
            yield _figure(title, labels, {title: values}, x_title)
    for title, distributions in latencies.items():
        if any(distributions):
            series: dict[str, Sequence[float | None]] = {
                name: [None if d is None else getattr(d, name) for d in distributions]
                for name in _PERCENTILES
            }
            yield _figure(title, labels, series, x_title)


def _figure(
    title: str, labels: Sequence[str], series: dict[str, Sequence[float | None]], x_title: str
) -> str:
    keys = "".join(
        f'<span class="key" style="--key: var(--s{number})">{escape(name)}</span>'
        for number, name in enumerate(series)
        if len(series) > 1
    )
    drawn = draw_bars(labels, series, x_title=x_title, title=f"{title} by {x_title}")
    return f"<figure><figcaption>{escape(title)}{keys}</figcaption>{drawn}</figure>"


def _table(grid: rows.Grid) -> str:
    def cells(tag: str, texts: Sequence[str]) -> str:
        return "".join(
            f'<{tag} class="{_class(index < grid.num_labels, text)}">{escape(text)}</{tag}>'
            for index, text in enumerate(texts)
        )

    head = cells("th", grid.titles)
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in grid.rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _class(is_label: bool, text: str) -> str:
    return "label" if is_label else "worse" if text.endswith("!") else ""


def _list(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
