"""Where pippin keeps things: what can be made again, what a person has set, what a person has made.

Source: XDG Base Directory Specification 0.8; Apple, File System Programming Guide.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """Converted and fetched models, and keys and values; deleting it is always safe.

    ``PIPPIN_CACHE_DIR`` if set, else where the platform keeps caches. It need not exist yet.
    """
    return _folder("CACHE", mac="Caches", other=".cache")


def config_folder() -> Path:
    """What a person has set.

    ``PIPPIN_CONFIG_DIR`` if set, else where the platform keeps settings. It need not exist yet.
    """
    return _folder("CONFIG", mac="Application Support", other=".config")


def data_folder() -> Path:
    """What a person has made, and what cannot be made again.

    ``PIPPIN_DATA_DIR`` if set, else where the platform keeps an application's data. It need not
    exist yet.
    """
    return _folder("DATA", mac="Application Support", other=".local/share")


def _folder(kind: str, *, mac: str, other: str) -> Path:
    if chosen := os.environ.get(f"PIPPIN_{kind}_DIR"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / mac / "pippin"
    xdg = Path(os.environ.get(f"XDG_{kind}_HOME", ""))
    # The specification says that a relative path is to be ignored.
    return (xdg if xdg.is_absolute() else Path.home() / other) / "pippin"
