"""`pippin cache stats`: what a running server says of its caches."""

from __future__ import annotations

import json
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families
from rich.table import Table
from rich.text import Text

from pippin.core.errors import PippinError

from .console import make_data_console

_TIMEOUT_S = 10.0
# Metrics whose names say that they are about a cache.
_WORDS = ("prefix_", "kv_", "disk_", "checkpoint")


def run_stats(url: str, *, api_key: str | None, as_json: bool) -> None:
    """Ask and print.

    Raises:
        PippinError: Nobody answers, or something else than pippin does.
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=_TIMEOUT_S) as client:
            health = client.get("/health")  # 503 while it drains, with the same body
            metrics = client.get("/metrics").raise_for_status().text
            found = {"model": health.json()["model"], **read_metrics(metrics)}
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        raise PippinError(f"no pippin server answers at {url}: {error}") from error
    if as_json:
        print(json.dumps(found, indent=2))
        return
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    for name, value in found.items():
        shown = f"{value:,.4g}" if isinstance(value, float) and value % 1 else value
        table.add_row(Text(name), Text(f"{shown:,.0f}" if isinstance(shown, float) else str(shown)))
    make_data_console().print(table)


def read_metrics(text: str) -> dict[str, Any]:
    """What a page of metrics says of caches, by name without prefix and with labels.

    ``prefix_hit_rate`` is worked out where there were queries.
    """
    found: dict[str, Any] = {}
    for family in text_string_to_metric_families(text):
        name = family.name.removeprefix("pippin_")
        if not family.name.startswith("pippin_") or not name.startswith(_WORDS):
            continue
        for sample in family.samples:
            if sample.name.endswith(("_bucket", "_created")):
                continue
            labels = ",".join(value for label, value in sample.labels.items() if label != "model")
            key = sample.name.removeprefix("pippin_").removesuffix("_total")
            found[f"{key}[{labels}]" if labels else key] = sample.value
    if queries := found.get("prefix_query_tokens"):
        found["prefix_hit_rate"] = found.get("prefix_hit_tokens", 0.0) / queries
    return found
