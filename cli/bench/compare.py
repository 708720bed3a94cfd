"""Two reports side by side: every figure's change, and whether any of them is a regression.

All figures are shown. What is judged is the mean of every latency, and those of its percentiles
beyond which at least ten values lie in both runs: fewer are chance. Rates are judged at a given
concurrency only; with a given request rate they follow the load and not the server. More failures
are a regression however few they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pippin.core.errors import ConfigError

from .report import FORMAT, KIND, Report
from .rows import STATISTICS, Grid, amount

_RATES = ("requests_s", "output_tokens_s", "total_tokens_s", "goodput_s")
_LATENCIES = ("ttft_ms", "first_answer_ms", "tpot_ms", "itl_ms", "e2e_ms")
_TITLES = {
    "requests_s": "req/s",
    "output_tokens_s": "output tok/s",
    "total_tokens_s": "total tok/s",
    "goodput_s": "goodput req/s",
    "first_answer_ms": "to the answer",
    "failed": "failed",
}
_MIN_BEYOND = 10
# Beside these the rest of a workload says what is asked.
_LEVEL_KEYS = ("concurrency", "request_rate", "arrival")


def read_base(path: Path) -> dict[str, Any]:
    """A report that was written with ``--output json``.

    Raises:
        ConfigError: The file is something else, or of another version.
    """
    try:
        base = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(base, dict) or base.get("kind") != KIND:
        raise ConfigError(f"{path} is no report of `pippin bench-serve --output json`")
    if base.get("format") != FORMAT:
        raise ConfigError(f"{path} has format {base.get('format')}, and this is {FORMAT}")
    return base


def check_same(base: dict[str, Any], report: Report) -> None:
    """Refuse to compare what was not asked the same.

    Raises:
        ConfigError: The model, the workload or all levels differ.
    """
    if base["model"] != report.model:
        raise ConfigError(f"--compare: the base is of the model {base['model']}")
    for name in report.workload.keys() | base["workload"].keys():
        theirs, ours = base["workload"].get(name), report.workload.get(name)
        if theirs != ours:
            raise ConfigError(
                f"--compare: the base has another workload: {name} is {json.dumps(theirs)} there, "
                f"and {json.dumps(ours)} here"
            )


def check_levels(base: dict[str, Any], keys: list[dict[str, Any]]) -> None:
    """Raises ConfigError if there is no level in common."""
    if not any(_key(level) == key for level in base["levels"] for key in keys):
        raise ConfigError("--compare: the base has none of these levels of load")


def compare(base: dict[str, Any], report: Report, *, max_regression: float) -> dict[str, Any]:
    """Changes, regressions, and what could not be compared.

    Args:
        max_regression: A share, 0.1 for 10 %.
    """
    ours = report.to_json()
    rows = {
        _place(level, figures): figures for level in base["levels"] for figures in level["figures"]
    }
    changes, notes = [], []
    for level in ours["levels"]:
        for figures in level["figures"]:
            where = _place(level, figures)
            before = rows.pop(where, None)
            if before is None:
                notes.append(f"load {where}: not in the base.")
            elif before["output_unit"] != figures["output_unit"]:
                notes.append(
                    f"load {where}: one run counts tokens, the other chunks; not compared."
                )
            else:
                has_rate = "request_rate" in level
                for change in _changes(before, figures, has_rate, base["slo"] == ours["slo"]):
                    worse = change.pop("worse")
                    is_regression = change["judged"] and worse > max_regression
                    changes.append({"where": where, **change, "regression": is_regression})
    notes += [f"load {where}: only in the base." for where in rows]
    if base["slo"] != ours["slo"]:
        notes.append("The limits differ: goodput is not compared.")
    if base["cut"]:
        notes.append("The base was cut by an interrupt.")
    return {
        "base": {name: base[name] for name in ("started", "seed", "server", "client")},
        "max_regression": max_regression,
        "regressions": sum(change["regression"] for change in changes),
        "changes": changes,
        "notes": notes,
    }


def comparison_grid(comparison: dict[str, Any]) -> Grid:
    """A row for each latency, a column for each statistic; rates have but one."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for change in comparison["changes"]:
        line = lines.setdefault((change["where"], change["figure"]), {})
        line[change["statistic"]] = _cell(change)
    rows = []
    last = ""
    for (where, figure), cells in lines.items():
        title = _TITLES.get(figure, figure.removesuffix("_ms").upper())
        shown = where if where != last else ""
        rows.append((shown, title, *(cells.get(name, "") for name in STATISTICS)))
        last = where
    return Grid(("load", "change", *STATISTICS), rows, 2)


def comparison_lines(comparison: dict[str, Any]) -> list[str]:
    """The verdict, and what to know of it."""
    base = comparison["base"]
    count = comparison["regressions"]
    limit = f"{comparison['max_regression']:.0%}"
    verdict = f"{count} regressions of more than {limit} (marked !)" if count else "no regression"
    return [
        f"{verdict} against {base['started']}, server version {base['server']['version']}",
        *comparison["notes"],
    ]


def _changes(
    before: dict[str, Any], after: dict[str, Any], has_rate: bool, same_slo: bool
) -> Iterator[dict[str, Any]]:
    """With ``worse``, the share by which it is worse; negative if it is better."""
    failed = [1 - figures["succeeded"] / max(1, figures["requests"]) for figures in (before, after)]
    if any(failed):
        worse = float("inf") if failed[1] > failed[0] else 0.0
        yield _change("failed", "mean", failed[0], failed[1], worse=worse, judged=True)
    for name in _RATES:
        old, new = before[name], after[name]
        if old and new is not None and (name != "goodput_s" or same_slo):
            yield _change(name, "mean", old, new, worse=1 - new / old, judged=not has_rate)
    for name in _LATENCIES:
        old, new = before[name], after[name]
        if old and new:
            least = min(old["count"], new["count"])
            for statistic in STATISTICS:
                judged = statistic == "mean" or (
                    least * (100 - int(statistic[1:])) >= 100 * _MIN_BEYOND
                )
                values = old[statistic], new[statistic]
                worse = values[1] / values[0] - 1 if values[0] else 0.0
                yield _change(name, statistic, *values, worse=worse, judged=judged)


def _change(
    figure: str, statistic: str, before: float, after: float, *, worse: float, judged: bool
) -> dict[str, Any]:
    return {
        "figure": figure,
        "statistic": statistic,
        "before": before,
        "after": after,
        "worse": worse,
        "judged": judged,
    }


def _cell(change: dict[str, Any]) -> str:
    mark = "!" if change["regression"] else ""
    if change["figure"] == "failed":
        return f"{change['before']:.0%} to {change['after']:.0%}{mark}"
    if not change["before"]:
        return amount(change["after"])
    return f"{change['after'] / change['before'] - 1:+.1%}{mark}"


def _key(level: dict[str, Any]) -> dict[str, Any]:
    return {name: level[name] for name in _LEVEL_KEYS if name in level}


def _place(level: dict[str, Any], figures: dict[str, Any]) -> str:
    """A level, and a part of it, as a name."""
    return " ".join([*(str(value) for value in _key(level).values()), figures["part"]]).rstrip()
