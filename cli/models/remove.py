"""`pippin models rm`: delete after a question."""

from __future__ import annotations

import sys

import typer

from pippin.core.errors import ConfigError, PippinError
from pippin.core.models.aliases import follow_aliases
from pippin.core.models.inventory import LocalModel, list_local_models
from pippin.core.models.remove import remove_model

from ..byte_size import format_bytes
from ..console import make_data_console
from .output import print_json


def run_remove(name: str, revision: str | None, *, yes: bool, as_json: bool) -> None:
    """Delete a model, or one revision of it.

    Raises:
        PippinError: There is no such model, or it is in use.
    """
    model = _find(follow_aliases(name))
    commits = [] if revision is None else [_find_commit(model, revision)]
    what = model.name if not commits else f"{model.name} at {commits[0][:12]}"
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError(f"give --yes to delete {what} where nobody can be asked")
        whole = format_bytes(model.num_bytes)
        size = f"{whole} in {model.folder}" if not commits else f"at most {whole}"
        typer.confirm(f"delete {what}, {size}?", abort=True, err=True)
    freed = remove_model(model, commits)
    if as_json:
        print_json({"name": model.name, "revisions": commits, "freed_bytes": freed})
        return
    make_data_console().print(
        f"deleted {what}, {format_bytes(freed)}", markup=False, soft_wrap=True
    )


def _find(name: str) -> LocalModel:
    for model in list_local_models():
        if model.name == name:
            return model
    raise PippinError(f"there is no model '{name}' on this disk; see `pippin models ls`")


def _find_commit(model: LocalModel, revision: str) -> str:
    found = [commit for commit in model.revisions if commit.startswith(revision)]
    if len(found) == 1:
        return found[0]
    there = ", ".join(commit[:12] for commit in model.revisions) or "none"
    raise PippinError(f"{model.name} has no single revision '{revision}' here; there are: {there}")
