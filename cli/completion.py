"""What the shell offers behind a TAB, beside commands, options and choices. No heavy import here.

Where nothing of ours fits, typer's shell scripts fall back to the names of files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pippin.core.errors import ConfigError
from pippin.core.models.cache_folder import models_folder
from pippin.core.models.source import DEMO


def complete_configs(_incomplete: str) -> list[str]:
    """Settings files that come with pippin, and TOML files here."""
    # Only here, for the two need each other's names.
    from .settings_file import shipped_names

    return [*shipped_names(), *sorted(path.name for path in Path().glob("*.toml"))]


def complete_models(_incomplete: str) -> list[str]:
    """The demo model, aliases, and what the caches hold."""
    from pippin.core.models.aliases import read_aliases

    aliases: dict[str, str] = {}
    with suppress(ConfigError):  # nobody reads it in the middle of a line
        aliases = read_aliases()
    return [DEMO, *aliases, *sorted({*_own_models(), *_hub_models()})]


def _own_models() -> Iterator[str]:
    for path in models_folder().glob("[!.]*/"):
        if not path.name.startswith(f"{DEMO}-"):
            yield path.name


def _hub_models() -> Iterator[str]:
    # Source: huggingface.co, "Understand caching" and "Environment variables" of huggingface_hub,
    # which is too slow to import for a TAB.
    environ = os.environ
    home = environ.get("HF_HOME") or Path(
        environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"
    )
    cache = Path(environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()
    for path in cache.glob("models--*--*/"):
        yield path.name.removeprefix("models--").replace("--", "/", 1)
