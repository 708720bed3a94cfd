"""What the commands of `pippin cache` do: ask `core`, and print a table or JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pippin.core.cache.disk import maintenance
from pippin.core.cache.disk.maintenance import NamespaceSummary
from pippin.core.cache.disk.record import RecordKey
from pippin.core.errors import PippinError

from .byte_size import format_bytes
from .cache_tree import build_tree, cut_tree, make_decoder, show_tree
from .console import make_data_console, make_talk_console
from .errors import FAILED
from .settings import disk_folder

# Upper ends of the ages' groups, in seconds.
_AGES = {"1 hour": 3600.0, "1 day": 86_400.0, "1 week": 604_800.0, "30 days": 2_592_000.0}
_BAR_WIDTH = 30
_DIGEST_SHOWN = 8
_TEXTS = ("namespace", "model", "layout", "dtype")
# The columns of `ls` that a narrow screen does without, in this order.
_LEAST_FIRST = ("checkpoints", "block size", "dtype", "hits", "layout", "blocks", "last use")


def run_list(folder: Path | None, *, as_json: bool) -> None:
    """Print all namespaces."""
    where = _default(folder)
    summaries = maintenance.list_namespaces(where)
    if as_json:
        _print_json([_to_json(summary) for summary in summaries])
        return
    if summaries:
        console = make_data_console()
        console.print(_fitting_table([_cells(summary) for summary in summaries], console))
    total = format_bytes(sum(summary.num_bytes for summary in summaries))
    _say(f"{total} in {where}" if summaries else f"nothing is kept in {where}")


def _cells(summary: NamespaceSummary) -> dict[str, str]:
    namespace, (blocks, checkpoints) = summary.namespace, _counts(summary)
    return {
        "namespace": summary.digest[:_DIGEST_SHOWN],
        "model": namespace.model,
        "layout": namespace.layout,
        "dtype": namespace.dtype,
        "block size": f"{namespace.block_size:,}",
        "blocks": f"{blocks:,}",
        "checkpoints": f"{checkpoints:,}",
        "tokens": f"{summary.num_tokens:,}",
        "size": format_bytes(summary.num_bytes),
        "hits": f"{summary.hits:,}",
        "last use": format_age(summary.used_unix),
    }


def _fitting_table(rows: Sequence[dict[str, str]], console: Console) -> Table:
    """All columns, or on a narrow screen those that matter most; JSON has all."""
    left = list(_LEAST_FIRST)
    unbounded = console.options.update(width=10_000)
    while True:
        titles = [title for title in rows[0] if title in left or title not in _LEAST_FIRST]
        table = Table(box=None, pad_edge=False)
        for title in titles:
            if title in _TEXTS:
                table.add_column(title, overflow="fold")
            else:
                table.add_column(title, justify="right", no_wrap=True)
        for cells in rows:
            # As plain text: a model's name may hold brackets.
            table.add_row(*(Text(cells[title]) for title in titles))
        if not left or console.measure(table, options=unbounded).maximum <= console.width:
            return table
        del left[0]


def run_inspect(folder: Path | None, name: str | None, *, limit: int, as_json: bool) -> None:
    """Print one namespace."""
    where = _default(folder)
    summary = _find(maintenance.list_namespaces(where), name)
    rows = maintenance.list_records(where, summary.digest)
    roots = build_tree(rows, summary.namespace.block_size)
    num_cut = cut_tree(roots, limit)
    ages = _age_groups([row.used_unix for row in rows])
    decode = make_decoder(summary.namespace.model_path)

    def preview(key: RecordKey) -> str:
        tokens = maintenance.read_metadata(where, summary.digest, key).get("tokens")
        return decode(tokens) if isinstance(tokens, list) else ""

    if as_json:
        shown = [root.to_json(preview) for root in roots]
        _print_json({**_to_json(summary), "ages": ages, "prefixes": shown, "num_more": num_cut})
        return
    console = make_data_console()
    blocks, checkpoints = _counts(summary)
    facts = Table.grid(padding=(0, 2))
    for fact, value in {
        "namespace": summary.digest,
        "model": summary.namespace.model,
        "layout": summary.namespace.layout,
        "dtype": summary.namespace.dtype,
        "block size": f"{summary.namespace.block_size} tokens",
        "records": f"{blocks:,} blocks, {checkpoints:,} checkpoints",
        "size": f"{format_bytes(summary.num_bytes)}, {summary.num_tokens:,} tokens",
        "hits": f"{summary.hits:,}",
    }.items():
        facts.add_row(fact, Text(value))
    console.print(facts)
    console.print("\nlast use")
    most = max(ages.values(), default=0) or 1
    bars = Table.grid(padding=(0, 2))
    for age, count in ages.items():
        bars.add_row(age, f"{count:,}", "█" * -(-count * _BAR_WIDTH // most))
    console.print(bars)
    console.print("\nprefixes")
    show_tree(console, roots, preview)
    if num_cut:
        _say(f"and {num_cut:,} more (--limit)")


def run_prune(folder: Path | None, *, as_json: bool, dry_run: bool = False, **which: Any) -> None:
    """Delete records; see `maintenance.prune` for which."""
    where = _default(folder)
    with progress_bar("deleting") as on_progress:
        pruned = maintenance.prune(where, dry_run=dry_run, on_progress=on_progress, **which)
    if as_json:
        _print_json({**asdict(pruned), "dry_run": dry_run})
        return
    verb = "would delete" if dry_run else "deleted"
    make_data_console().print(
        f"{verb} {pruned.num_records:,} records, {format_bytes(pruned.num_bytes)}"
    )


def run_verify(folder: Path | None, *, as_json: bool) -> None:
    """Read and repair everything; exit code 1 if something is left that cannot be read."""
    where = _default(folder)
    with progress_bar("reading") as on_progress:
        verified = maintenance.verify(where, on_progress=on_progress)
    repairs = verified.repairs
    found = {
        "records": verified.num_records,
        "bytes": verified.num_bytes,
        "damaged": len(verified.damaged),
        "unreadable": len(verified.unreadable),
        **asdict(repairs),
    }
    if as_json:
        _print_json(found)
    else:
        console = make_data_console()
        console.print(f"read {verified.num_records:,} records, {format_bytes(verified.num_bytes)}")
        for count, what in (
            (len(verified.damaged), "damaged, deleted"),
            (repairs.adopted, "unknown to the index, added"),
            (repairs.removed_rows, "in the index without a file, removed"),
            (repairs.removed_files, "files that are no whole record, deleted"),
            (len(verified.unreadable), "could not be read"),
        ):
            if count:
                console.print(f"{count:,} {what}")
    if verified.unreadable:
        raise typer.Exit(FAILED)


def format_age(at_unix: float | None) -> str:
    """``3 min ago``; a time to come, after a clock was set back, is now."""
    if at_unix is None:
        return "never"
    seconds = max(0.0, time.time() - at_unix)
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} ago"
    return "just now"


def _age_groups(used_unix: list[float]) -> dict[str, int]:
    now = time.time()
    groups = dict.fromkeys([*(f"within {age}" for age in _AGES), "before"], 0)
    for at in used_unix:
        for age, end in _AGES.items():
            if now - at < end:
                groups[f"within {age}"] += 1
                break
        else:
            groups["before"] += 1
    return groups


def _default(folder: Path | None) -> Path:
    return disk_folder(None if folder is None else str(folder))


def _find(summaries: list[NamespaceSummary], name: str | None) -> NamespaceSummary:
    found = [s for s in summaries if name is None or name == s.namespace.model]
    found = found or [s for s in summaries if name and s.digest.startswith(name)]
    if len(found) == 1:
        return found[0]
    if not found:
        what = "nothing is kept" if name is None else f"there is no namespace '{name}'"
        raise PippinError(f"{what}; `pippin cache ls` shows what there is")
    digests = ", ".join(s.digest[:_DIGEST_SHOWN] for s in found)
    raise PippinError(f"there are several namespaces, name one of them: {digests}")


def _counts(summary: NamespaceSummary) -> tuple[int, int]:
    """Blocks of all layer groups, and everything else."""
    blocks = sum(count for kind, count in summary.records.items() if kind.startswith("block:"))
    return blocks, sum(summary.records.values()) - blocks


def _to_json(summary: NamespaceSummary) -> dict[str, Any]:
    fields = asdict(summary)
    return {"digest": fields.pop("digest"), **fields.pop("namespace"), **fields}


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _say(line: str) -> None:
    make_talk_console().print(line, markup=False, soft_wrap=True)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Something to tell how much of the work is done, which draws it on a terminal."""
    console = make_talk_console()
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
