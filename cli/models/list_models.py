"""`pippin models ls`: a table, or two lines a model where the terminal is narrow."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pippin.core.models.aliases import follow_aliases, read_aliases
from pippin.core.models.inventory import LocalModel, list_local_models
from pippin.core.models.model_facts import ModelFacts

from ..byte_size import format_bytes
from ..cache_run import format_age
from ..console import make_data_console
from .output import print_json, say
from .server_models import probe_server_models, read_server_models

_NARROW = 100


def run_list(url: str | None, *, default_url: str, api_key: str | None, as_json: bool) -> None:
    """Print all models.

    Raises:
        PippinError: The server that was named does not answer.
    """
    entries = [local_entry(model) for model in list_local_models()]
    if url is None:
        entries += probe_server_models(default_url, api_key)
    else:
        entries += read_server_models(url, api_key)
    if as_json:
        print_json(entries)
        return
    if not entries:
        say("no models yet; `pippin models pull org/name` fetches one from the hub")
        return
    console = make_data_console()
    show = _show_stacked if console.width < _NARROW else _show_table
    show(console, entries)
    num_bytes = sum(entry["bytes"] or 0 for entry in entries if entry["place"] != "server")
    say(f"{format_bytes(num_bytes)} on this disk")


def local_entry(model: LocalModel) -> dict[str, Any]:
    """A model as JSON shows it."""
    facts = model.facts
    return {
        "name": model.name,
        "place": model.place,
        "path": str(model.folder),
        "aliases": [name for name in read_aliases() if follow_aliases(name) == model.name],
        "bytes": model.num_bytes,
        "partial_bytes": model.num_partial_bytes,
        **(
            asdict(facts)
            if facts is not None
            else dict.fromkeys(field.name for field in fields(ModelFacts))
        ),
        "source": model.source,
        "revisions": list(model.revisions),
        "modified_unix": model.modified_unix,
        "problem": model.problem,
    }


def _cells(entry: dict[str, Any]) -> dict[str, str]:
    size, context = entry["bytes"], entry["context"]
    return {
        "where": entry["place"],
        "size": "" if size is None else format_bytes(size),
        "weights": entry["quantization"] or "",
        "context": "" if context is None else f"{context:,}",
        "takes": entry["modality"] or "",
        "licence": entry["licence"] or "",
        "changed": format_age(entry["modified_unix"]) if "modified_unix" in entry else "",
    }


def _name(entry: dict[str, Any]) -> Text:
    name = Text(entry["name"], style="bold")
    if entry["aliases"]:
        name.append(f" ({', '.join(entry['aliases'])})", style="not bold")
    return name


def _problem(entry: dict[str, Any]) -> Text | None:
    if entry["problem"] is None:
        return None
    advice = f"; `pippin models pull {entry['name']}` goes on" if entry["place"] == "hub" else ""
    return Text(entry["problem"] + advice, style="yellow")


def _show_table(console: Console, entries: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("name", overflow="fold")
    for title in _cells(entries[0]):
        justify: Any = "right" if title in ("size", "context") else "left"
        table.add_column(title, justify=justify, no_wrap=title != "licence", overflow="fold")
    for entry in entries:
        name, problem = _name(entry), _problem(entry)
        if problem is not None:
            name = name.append("\n").append(problem)
        table.add_row(name, *map(Text, _cells(entry).values()))
    console.print(table)


def _show_stacked(console: Console, entries: list[dict[str, Any]]) -> None:
    for entry in entries:
        cells = _cells(entry)
        cells["context"] = cells["context"] and f"{cells['context']} tokens"
        console.print(_name(entry), overflow="fold")
        console.print(Padding(Text(", ".join(filter(None, cells.values()))), (0, 0, 0, 2)))
        if (problem := _problem(entry)) is not None:
            console.print(Padding(problem, (0, 0, 0, 2)))
