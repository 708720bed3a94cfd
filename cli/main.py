"""The `pippin` command: the tree of commands and what they have in common."""

from __future__ import annotations

from typing import Annotated

import typer

from .bench.command import bench_serve
from .cache import app as cache_app
from .chat.command import chat
from .errors import OneLineErrors
from .models.command import app as models_app
from .serve import serve

app = typer.Typer(
    cls=OneLineErrors,
    # Plain help: the boxes leave half the width to the text.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        # A third of the start-up time of a command that does not need it.
        from importlib.metadata import version

        print(f"pippin {version('pippin')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """One local AI endpoint for MLX models."""
    if context.invoked_subcommand is None:
        print(context.get_help())


app.command()(serve)
app.command()(chat)
app.add_typer(cache_app, name="cache")
app.add_typer(models_app, name="models")
app.command("bench-serve")(bench_serve)
