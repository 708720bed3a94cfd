"""`pippin models check`: a table of what works."""

from __future__ import annotations

from dataclasses import asdict

import typer
from rich.table import Table
from rich.text import Text

from pippin.core.engine.model_check import ModelCheck

from ..console import make_data_console, make_talk_console
from ..errors import FAILED
from ..load_display import LoadDisplay
from .output import print_json, silenced

_MARKS = {
    "ok": ("✓", "green"),
    "note": ("!", "yellow"),
    "failed": ("✗", "red"),
    "skipped": ("-", "dim"),
}


def run_check(model: str, *, as_json: bool) -> None:
    """Check a model.

    Raises:
        typer.Exit: With code 1, if something failed.
    """
    check = ModelCheck()
    # What is warned of is in the table.
    with LoadDisplay(make_talk_console()) as display, silenced("pippin"):
        findings = check.run(model, display)
    if as_json:
        print_json(
            {"model": model, "ok": not check.has_failed, "parts": [asdict(it) for it in findings]}
        )
    else:
        table = Table.grid(padding=(0, 2))
        table.add_column()
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for finding in findings:
            mark, style = _MARKS[finding.verdict]
            table.add_row(Text(mark, style=style), Text(finding.part), Text(finding.detail))
        make_data_console().print(table)
    if check.has_failed:
        raise typer.Exit(FAILED)
