"""`pippin models alias`: list, show, add, remove."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table
from rich.text import Text

from pippin.core.errors import PippinError
from pippin.core.models.aliases import add_alias, follow_aliases, read_aliases, remove_alias
from pippin.core.models.source import SourceKind, resolve_source

from ..console import make_data_console
from .output import print_json, say


def run_alias(name: str | None, target: str | None, *, remove: bool, as_json: bool) -> None:
    """Do one of the four.

    Raises:
        PippinError: The name or the target cannot be used, or there is no such alias.
    """
    if name is None:
        aliases = read_aliases()
    elif remove:
        aliases = {name: remove_alias(name)}
    elif target is not None:
        add_alias(name, _absolute(target))
        aliases = {name: read_aliases()[name]}
    elif name in read_aliases():
        aliases = {name: follow_aliases(name)}
    else:
        raise PippinError(f"there is no alias '{name}'")
    if as_json:
        print_json(aliases)
        return
    if not aliases:
        say("no aliases yet; `pippin models alias NAME MODEL` makes one")
        return
    table = Table.grid(padding=(0, 2))
    for alias, model in aliases.items():
        table.add_row(Text(alias, style="bold"), Text(model, overflow="fold"))
    make_data_console().print(table)


def _absolute(target: str) -> str:
    """The target, if it is a model, and wherever the command is run next."""
    if target in read_aliases():
        return target
    source = resolve_source(target)
    # Names in the cache folder are as good anywhere.
    if source.kind in (SourceKind.FOLDER, SourceKind.GGUF) and source.path != Path(target):
        return target
    return str(source.path.absolute()) if source.path is not None else target
