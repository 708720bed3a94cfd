"""Settings as TOML: those that hold, for ``--print-config``, and all defaults, for default.toml.

``python -m pippin.cli.print_config FILE`` writes the latter.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w
import typer

from pippin.core.errors import ConfigError

from .byte_size import exact_bytes
from .setting import Setting
from .settings import SERVE_SETTINGS, ServeSettings, is_given

_SECRET = "api_key"
_WIDTH = 100
_HEAD = """\
Settings of `pippin serve`, each with its default. Copy what you want to change into a file of your
own and name it with `--config FILE`. A flag goes before an environment variable, a variable before
the file, the file before the default. Keys may be written with `-` or `_`.

Lines that start with `#` show settings whose default is not a fixed value."""


def find_origins(
    context: typer.Context, from_file: Mapping[str, Any], file: Path | None
) -> dict[str, str]:
    """Where each setting comes from, by field name: flag, variable, file or default."""
    origins = dict.fromkeys(SERVE_SETTINGS, "default") | dict.fromkeys(from_file, str(file))
    for name, setting in SERVE_SETTINGS.items():
        if is_given(context.params[name]):
            source = context.get_parameter_source(name)
            is_variable = source is not None and source.name == "ENVIRONMENT"
            origins[name] = setting.variable if is_variable else setting.flag
    return origins


def print_settings(settings: ServeSettings, origins: Mapping[str, str]) -> None:
    """Print settings as a file that gives the same ones when it is read.

    A terminal gets no API key, but an empty one in its place, with which a server does not start:
    it must not become open to everyone because somebody copied the text.

    Raises:
        ConfigError: A value is out of range, or two do not go together, or a text is no Unicode.
    """
    settings.engine_config()
    settings.server_config()
    lines = ["# The settings of `pippin serve`, and where each comes from.", "[serve]"]
    for name, setting in SERVE_SETTINGS.items():
        value, origin = getattr(settings, name), origins[name]
        if value is None:
            lines.append(f"# {setting.key} is not set: {setting.default_in_words}")
            continue
        if name == _SECRET and value and sys.stdout.isatty():
            origin += f"; {len(value)} not shown on a terminal, only in a file or a pipe"
            value = ("",)
        lines.append(f"{_assignment(setting, value)}  # {_comment(origin)}")
    text = "\n".join(lines)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError("a setting is no Unicode text, and TOML cannot hold it") from error
    print(text)


def _assignment(setting: Setting, value: object) -> str:
    if setting.about.metavar == "SIZE" and isinstance(value, int):
        value = exact_bytes(value)
    return tomli_w.dumps({setting.key: value}).rstrip("\n")


def _comment(origin: str) -> str:
    # The name of a file may hold anything, and a line break would end the comment.
    return "".join(char if char.isprintable() else "?" for char in origin)


def default_settings_file() -> str:
    """The text of default.toml: every setting described, with its default."""
    paragraphs = [textwrap.indent(_HEAD, "# ", lambda _: True).replace("# \n", "#\n"), "[serve]"]
    for setting in SERVE_SETTINGS.values():
        text, value = setting.description, setting.default
        if value is None:
            text += f" Default: {setting.default_in_words}."
        comment = textwrap.fill(
            text, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
        )
        example = setting.about.example
        line = _assignment(setting, value if example is None else example)
        paragraphs.append(f"{comment}\n{'# ' if value is None else ''}{line}")
    return "\n\n".join(paragraphs) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(default_settings_file(), encoding="utf-8")
