"""The settings file of `pippin serve`: a TOML file with a ``[serve]`` table, read and written."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pippin import configs
from pippin.core.errors import ConfigError

from .settings import SERVE_SETTINGS, ServeSettings, merge_settings

_TABLE = "serve"
_SHIPPED = Path(configs.__file__).parent


def shipped_names() -> list[str]:
    """Settings files that come with pippin, as ``--config`` takes them."""
    return sorted(path.stem for path in _SHIPPED.glob("*.toml"))


def load_settings(given: Mapping[str, Any], file: Path | None) -> ServeSettings:
    """Settings from flags and environment, a file, and the defaults.

    Args:
        given: See `merge_settings`.
        file: See `read_settings_file`.

    Raises:
        ConfigError: As for `read_settings_file`.
    """
    return merge_settings(given, read_settings_file(file) if file is not None else {})


def read_settings_file(path: Path) -> dict[str, Any]:
    """The ``[serve]`` table by field name, checked; keys may be written with ``-`` or ``_``.

    Args:
        path: A file, or the name of a shipped one if there is no such file.

    Raises:
        ConfigError: The file cannot be read, holds an unknown key or a value of a wrong type; the
            message names the key and the file.
    """
    if not path.exists() and str(path) in shipped_names():
        path = _SHIPPED / f"{path}.toml"
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        names = ", ".join(shipped_names())
        hint = f" (there are: {names})" if path.name == str(path) and not path.suffix else ""
        raise ConfigError(f"{path} cannot be read: {error.strerror}{hint}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    for name, table in content.items():
        if name != _TABLE or not isinstance(table, dict):
            raise ConfigError(f"{path}: '{name}' is not known; settings go into a [{_TABLE}] table")
    values: dict[str, Any] = {}
    for key, value in content.get(_TABLE, {}).items():
        name = key.replace("-", "_")
        if name in values:
            raise ConfigError(f"{path}: '{key}' is given twice")
        if name not in SERVE_SETTINGS:
            close = difflib.get_close_matches(name, SERVE_SETTINGS, n=1)
            hint = f"; did you mean '{SERVE_SETTINGS[close[0]].key}'?" if close else ""
            raise ConfigError(f"{path}: unknown setting '{key}'{hint}")
        try:
            values[name] = SERVE_SETTINGS[name].read(value)
        except ValueError as error:
            raise ConfigError(f"{path}: '{key}': {error}") from error
    return values
