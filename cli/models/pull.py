"""`pippin models pull`: a model from the hub, with a bar, and a line about what was done."""

from __future__ import annotations

from dataclasses import asdict

from pippin.core.errors import ConfigError
from pippin.core.models.demo import fetch_demo
from pippin.core.models.download import PulledModel, pull_model
from pippin.core.models.source import SourceKind, resolve_source

from ..byte_size import format_bytes
from ..console import make_data_console, make_talk_console
from ..load_display import LoadDisplay
from .output import print_json, silenced

_COMMIT_SHOWN = 12


def run_pull(model: str, revision: str | None, *, verify: bool, as_json: bool) -> None:
    """Fetch what is missing, and tell.

    Raises:
        PippinError: It cannot be fetched; the message says what to do.
    """
    source = resolve_source(model)
    if source.kind is not SourceKind.HUB and source.kind is not SourceKind.DEMO:
        raise ConfigError(f"{model} is on this machine already; pull takes a hub id like org/name")
    if source.kind is SourceKind.DEMO and (revision is not None or verify):
        raise ConfigError("the demo model has no --revision and no --verify")
    # The hub's client tells every time that it tries again, in the middle of the bar.
    with LoadDisplay(make_talk_console()) as display, silenced("huggingface_hub"):
        if source.kind is SourceKind.DEMO:
            folder = fetch_demo(display)
            pulled = None
        else:
            pulled = pull_model(source.model_id, display, revision=revision, verify=verify)
            folder = pulled.folder
    if as_json:
        known = {"folder": folder} if pulled is None else asdict(pulled)
        print_json({"repo_id": source.model_id, **known})
        return
    console = make_data_console()
    line = f"{model} is in {folder}" if pulled is None else _describe(pulled)
    console.print(line, markup=False, soft_wrap=True)


def _describe(pulled: PulledModel) -> str:
    what = f"{pulled.repo_id} at {pulled.revision[:_COMMIT_SHOWN]}"
    if pulled.is_offline:
        return f"{what} is there; the hub does not tell whether it is the newest"
    if not pulled.num_fetched_files:
        checked = f"{pulled.num_verified_files} checksums" if pulled.num_verified_files else "sizes"
        return f"{what} is there already, {format_bytes(pulled.num_bytes)}; {checked} compared"
    files = "file" if pulled.num_fetched_files == 1 else "files"
    return (
        f"{what}: fetched {pulled.num_fetched_files} {files}, "
        f"{format_bytes(pulled.num_fetched_bytes)}; {pulled.num_verified_files} checksums compared"
    )
