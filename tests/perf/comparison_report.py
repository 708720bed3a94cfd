"""From raw samples to figures: a table for people on stderr, one line of JSON on stdout.

``serve_comparison.py`` pipes into it what it has measured. The figures are, over all rounds of a
level and over successful requests only:

``output_tok_s``, ``total_tok_s``
    Tokens by the server's own usage (output; prompt and output) per second of wall time; from a
    server that tells none, pieces of text.
``prefill_tok_s``
    Prompt tokens less cached ones, per second during which at least one request waited for its
    first token. What else goes on in that time, answers of others above all, is not taken out.
``ttft_*``
    Seconds from sending a request, connection included, to the first piece of text.
``inter_token_*``
    Seconds between two pieces of text of one answer as the client sees them.
``failures``
    Requests without a whole answer, by reason. Nothing is tried again.
``texts_equal``
    How many of the ``texts_compared`` prompts that both servers answered got the same text.

``ratios`` are the first server's figures divided by the second's.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

_COLUMNS = {
    "output\ntok/s": "output_tok_s",
    "total\ntok/s": "total_tok_s",
    "prefill\ntok/s": "prefill_tok_s",
    "TTFT\np50 s": "ttft_p50_s",
    "TTFT\np99 s": "ttft_p99_s",
    "inter-token\np50 s": "inter_token_p50_s",
    "inter-token\np99 s": "inter_token_p99_s",
}
# Of a console that is no terminal and would fold the table at 80 columns.
_PLAIN_WIDTH = 140


def figures(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of one server at one level.

    Args:
        runs: One per round, with ``wall_s`` and ``samples`` as ``stream_load.py`` gives them.
    """
    samples = [sample for run in runs for sample in run["samples"]]
    good = [sample for sample in samples if sample["error"] is None]
    wall_s = sum(run["wall_s"] for run in runs)
    waiting_s = sum(_waiting_s(run["samples"]) for run in runs)
    prompt, cached, output = (
        sum(sample[key] for sample in good)
        for key in ("prompt_tokens", "cached_tokens", "output_tokens")
    )
    ttft = [sample["first_at"] - sample["sent_at"] for sample in good]
    gaps = [gap for sample in good for gap in sample["gaps"]]
    return {
        "requests": len(samples),
        "failures": dict(Counter(s["error"] for s in samples if s["error"] is not None)),
        "prompt_tokens": prompt,
        "cached_tokens": cached,
        "output_tokens": output,
        "wall_s": rounded(wall_s),
        "output_tok_s": _rate(output, wall_s),
        "total_tok_s": _rate(prompt + output, wall_s),
        "prefill_tok_s": _rate(prompt - cached, waiting_s),
        "ttft_p50_s": percentile(ttft, 50),
        "ttft_p99_s": percentile(ttft, 99),
        "inter_token_p50_s": percentile(gaps, 50),
        "inter_token_p99_s": percentile(gaps, 99),
    }


def report_level(num_clients: int, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Figures of two servers, and what they come to beside each other."""
    all_figures = {name: figures(runs[name]) for name in runs}
    ours, theirs = all_figures.values()
    texts = [
        [sample.get("text") for run in server_runs for sample in run["samples"]]
        for server_runs in runs.values()
    ]
    pairs = [pair for pair in zip(*texts, strict=True) if None not in pair]
    keys = [key for key in _COLUMNS.values() if ours[key] and theirs[key]]
    return {
        "clients": num_clients,
        **all_figures,
        "ratios": {key: rounded(ours[key] / theirs[key]) for key in keys},
        "texts_compared": len(pairs),
        "texts_equal": sum(mine == other for mine, other in pairs),
    }


def make_table(levels: Sequence[dict[str, Any]], names: Sequence[str]) -> Table:
    """Two rows of figures and one of ratios for each level."""
    table = Table("clients", "server", "failed", *_COLUMNS, "same\ntext")
    for level in levels:
        for name in names:
            failed = f"{sum(level[name]['failures'].values())} of {level[name]['requests']}"
            table.add_row(str(level["clients"]), name, failed, *_cells(level[name]))
        same = f"{level['texts_equal']} of {level['texts_compared']}"
        ratios = _cells(level["ratios"])
        table.add_row("", " / ".join(names), "", *ratios, same, end_section=True)
    return table


def percentile(values: Sequence[float], percent: int) -> float | None:
    """The smallest value that at least ``percent`` of them do not exceed."""
    if not values:
        return None
    return rounded(sorted(values)[-(-len(values) * percent // 100) - 1])


def rounded(value: float) -> float:
    """To four significant digits."""
    return float(f"{value:.4g}")


def _cells(values: dict[str, Any]) -> list[str]:
    found = [values.get(key) for key in _COLUMNS.values()]
    return ["-" if value is None else f"{value:.3g}" for value in found]


def _waiting_s(samples: Sequence[dict[str, Any]]) -> float:
    """Seconds in which at least one of the requests waited for its first token."""
    total, reached = 0.0, float("-inf")
    waits = [(s["sent_at"], s["first_at"]) for s in samples if s["error"] is None]
    for start, stop in sorted(waits):
        total += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return total


def _rate(amount: float, seconds: float) -> float | None:
    return rounded(amount / seconds) if amount and seconds else None


def main() -> None:
    """Read what was measured, write the table and the line."""
    measured = json.load(sys.stdin)
    levels = [report_level(level["clients"], level["runs"]) for level in measured["levels"]]
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        console = Console(stderr=True, highlight=False, width=_PLAIN_WIDTH)
    console.print(make_table(levels, measured["servers"]))
    print(json.dumps({**measured["about"], "levels": levels}))


if __name__ == "__main__":
    main()
