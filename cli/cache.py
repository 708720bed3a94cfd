"""`pippin cache`: the commands and their options. What they do is in `cache_run`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .byte_size import parse_bytes
from .settings_file import load_settings

app = typer.Typer(rich_markup_mode=None)

_URL = "http://127.0.0.1:8000"
_AGE = re.compile(r"(\d+(?:\.\d+)?)([smhdw])", re.ASCII)
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


def parse_age(text: str) -> float:
    """Seconds of ``30d``, ``12h``, ``2w``, ``90m`` or ``45s``."""
    match = _AGE.fullmatch(text)
    if match is None:
        raise typer.BadParameter(f"'{text}' is not an age; write it like 30d or 12h")
    return float(match[1]) * _SECONDS[match[2]]


def _parse_size(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


FolderOption = Annotated[
    Path | None,
    typer.Option(
        "--kv-disk-dir",
        metavar="FOLDER",
        help="The folder of the disk cache. Default: kv in pippin's cache folder.",
        envvar="PIPPIN_KV_DISK_DIR",
    ),
]
UrlOption = Annotated[
    str | None,
    typer.Option("--url", help="Address of the server. Default: http://127.0.0.1:8000."),
]
KeyOption = Annotated[
    str | None,
    typer.Option("--api-key", help="Key of the server, if it wants one.", envvar="PIPPIN_API_KEY"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", metavar="NAME", help="Only of the model with this name."),
]


@app.callback(invoke_without_command=True)
def group(context: typer.Context) -> None:
    """Look at the KV cache on the disk, and clean it. Safe while servers use it."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command("ls")
def list_caches(folder: FolderOption = None, *, as_json: JsonOption = False) -> None:
    """List what is kept, by model and layout."""
    from .cache_run import run_list

    run_list(folder, as_json=as_json)


@app.command()
def inspect(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="A namespace's digest or its beginning, or a model's name; as `ls` shows them. "
            "Needless if there is only one.",
        ),
    ] = None,
    folder: FolderOption = None,
    *,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=400, help="Most prefixes to show. Default: 40.")
    ] = 40,
    as_json: JsonOption = False,
) -> None:
    """Show one namespace: its prefixes as a tree, their use and their age."""
    from .cache_run import run_inspect

    run_inspect(folder, name, limit=limit, as_json=as_json)


@app.command()
def prune(
    folder: FolderOption = None,
    *,
    older_than: Annotated[
        float | None,
        typer.Option(
            "--older-than",
            metavar="AGE",
            parser=parse_age,
            help="Only what was not used for so long, like 30d, 12h or 2w.",
        ),
    ] = None,
    max_size: Annotated[
        int | None,
        typer.Option(
            "--max-size",
            metavar="SIZE",
            parser=_parse_size,
            help="Only the least recently used, until all that is left has this size, like 20GiB.",
        ),
    ] = None,
    model: ModelOption = None,
    orphaned: Annotated[
        bool,
        typer.Option("--orphaned", help="Only of models whose folder does not exist any more."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Delete nothing, but say how much it would be.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete what meets all the conditions given."""
    if older_than is None and max_size is None and model is None and not orphaned:
        raise typer.BadParameter(
            "give --older-than, --max-size, --model or --orphaned; `pippin cache clear` deletes all"
        )
    from .cache_run import run_prune

    run_prune(
        folder,
        unused_for_s=older_than,
        max_bytes=max_size,
        model=model,
        orphaned=orphaned,
        dry_run=dry_run,
        as_json=as_json,
    )


@app.command()
def verify(folder: FolderOption = None, *, as_json: JsonOption = False) -> None:
    """Read everything, delete what is damaged, and repair the index."""
    from .cache_run import run_verify

    run_verify(folder, as_json=as_json)


@app.command()
def clear(
    folder: FolderOption = None, *, model: ModelOption = None, as_json: JsonOption = False
) -> None:
    """Delete everything, or everything of one model."""
    from .cache_run import run_prune

    run_prune(folder, model=model, as_json=as_json)


@app.command()
def warm(  # noqa: PLR0913 - typer makes one parameter of every option
    model_and_file: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL] FILE",
            help="A file of prompts, and perhaps a model to load for them, as `pippin serve` takes "
            "it; without one, a running server computes them.",
        ),
    ],
    url: UrlOption = None,
    api_key: KeyOption = None,
    *,
    config: options.ConfigOption = None,
    kv_disk_dir: options.KvDiskDirOption = None,
    kv_disk_size: options.KvDiskSizeOption = None,
    kv_bits: options.KvBitsOption = None,
    block_size: options.BlockSizeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compute prompts ahead of need, in a running server or into the disk cache."""
    if len(model_and_file) > 2:
        raise typer.BadParameter("give a file, and at most one model before it")
    *models, file = model_and_file
    if models and url is not None:
        raise typer.BadParameter("give a model or --url, not both")
    from .cache_warm import run_warm_model, run_warm_url

    if not models:
        run_warm_url(url or _URL, Path(file), api_key=api_key, as_json=as_json)
        return
    given = {
        "model": models[0],
        "kv_disk_dir": None if kv_disk_dir is None else str(kv_disk_dir),
        "kv_disk_size": kv_disk_size,
        "kv_bits": kv_bits,
        "block_size": block_size,
    }
    run_warm_model(load_settings(given, config), Path(file), as_json=as_json)


@app.command()
def stats(url: UrlOption = None, api_key: KeyOption = None, *, as_json: JsonOption = False) -> None:
    """Show how well the caches of a running server do."""
    from .cache_stats import run_stats

    run_stats(url or _URL, api_key=api_key, as_json=as_json)
