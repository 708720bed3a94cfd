"""`pippin serve`: the command, from its options to its settings."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from . import options
from .settings import merge_settings
from .settings_file import read_settings_file


@options.with_setting_options
def serve(
    context: typer.Context,
    *,
    config: options.ConfigOption = None,
    print_config: Annotated[
        bool,
        typer.Option(
            "--print-config",
            help="Print the settings that hold, as a file for --config, with where each comes "
            "from, and start nothing. API keys are shown in a file or a pipe, not on a terminal.",
        ),
    ] = False,
    **given: Any,
) -> None:
    """Serve a model over OpenAI's, Anthropic's and Ollama's APIs."""
    from_file = read_settings_file(config) if config is not None else {}
    settings = merge_settings(given, from_file)
    if print_config:
        from .print_config import find_origins, print_settings

        print_settings(settings, find_origins(context, from_file, config))
        return
    # Brings rich now and mlx later: `pippin --help` must not pay for them.
    from .serve_run import run_serve

    run_serve(settings)
