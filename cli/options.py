"""Options of the commands, derived from the settings that they set.

Defaults are absent on purpose: ``None`` means "not given", and `settings` then looks into the file
and at last at the configs' own defaults.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from .completion import complete_configs, complete_models
from .setting import Setting
from .settings import SERVE_SETTINGS


def setting_option(name: str) -> Any:
    """The option that sets a setting, to annotate a parameter with; an argument for the model."""
    setting = SERVE_SETTINGS[name]
    about = setting.about
    traits: dict[str, Any] = {
        "metavar": about.metavar,
        "help": _help(setting),
        "envvar": setting.variable,
        "autocompletion": complete_models if about.metavar == "MODEL" else None,
    }
    if about.parse is None:
        traits |= {"min": about.minimum, "max": about.maximum}
    else:
        traits["parser"] = _as_parser(about.parse)
    if name == "model":
        return typer.Argument(**traits)
    return typer.Option(setting.flag, **traits)


def _help(setting: Setting) -> str:
    several = (
        " May be given more than once, and the variable may hold several with spaces between."
        if setting.type is tuple
        else ""
    )
    return f"{setting.about.help}{several} Default: {setting.default_in_words}."


def _as_parser(parse: Callable[[str], object]) -> Callable[[str], object]:
    def parse_option(text: str) -> object:
        try:
            return parse(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error

    return parse_option


def with_setting_options(command: Callable[..., None]) -> Callable[..., None]:
    """Let typer see a parameter for every setting in place of the command's ``**given``."""
    own = inspect.signature(command, eval_str=True).parameters.values()
    annotated: Any = Annotated  # with arguments that only this loop knows
    derived = [
        inspect.Parameter(
            setting.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=annotated[
                (list[str] if setting.type is tuple else setting.type) | None,
                setting_option(setting.name),
            ],
        )
        for setting in SERVE_SETTINGS.values()
    ]
    named = [parameter for parameter in own if parameter.kind is not parameter.VAR_KEYWORD]
    target: Any = command
    target.__signature__ = inspect.Signature([*named, *derived])
    return command


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="TOML file with a [serve] table, or the name of one that comes with pippin; flags and "
        "environment go before it. Default: none.",
        envvar="PIPPIN_CONFIG",
        autocompletion=complete_configs,
    ),
]
KvBitsOption = Annotated[str | None, setting_option("kv_bits")]
BlockSizeOption = Annotated[int | None, setting_option("block_size")]
KvDiskDirOption = Annotated[str | None, setting_option("kv_disk_dir")]
KvDiskSizeOption = Annotated[int | None, setting_option("kv_disk_size")]
