"""Every setting has a flag, a variable and a key, reaches a config, and is described everywhere."""

import dataclasses
import re
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import typer.main

from pippin.cli.main import app
from pippin.cli.print_config import default_settings_file
from pippin.cli.setting import Setting
from pippin.cli.settings import SERVE_SETTINGS, ServeSettings
from pippin.cli.settings_file import load_settings, read_settings_file
from pippin.core.config import Speculation

# Fields of the configs that nobody can set, and why.
INTERNAL = {
    "engine.scheduler.mixed_prefill_chunk": "a bound above what the measured step costs allow",
}
# Settings that the command itself acts upon.
NO_CONFIG = {"model", "served_model_name", "warm_prompts", "log_level"}
# What must be given beside a setting for it to hold.
BESIDE: dict[str, dict[str, Any]] = {"draft_model": {"speculation": Speculation.DRAFT}}
OTHER: dict[str, Any] = {
    "kv_bits": "8",
    "block_size": 64,
    "kv_disk_size": 1 << 40,
    "speculation": Speculation.NGRAM,
    "api_key": ("key",),
}


def leaves(config: Any, path: str) -> dict[str, Any]:
    """Every field of a config and of those in it, by its path."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{path}.{field.name}"
        nested = dataclasses.is_dataclass(value) and field.name in ("cache", "scheduler")
        found |= leaves(value, name) if nested else {name: value}
    return found


def configs_with(**values: Any) -> dict[str, Any]:
    settings = ServeSettings(**values)
    return leaves(settings.engine_config(), "engine") | leaves(settings.server_config(), "server")


def other_value(setting: Setting) -> Any:
    if setting.name in OTHER:
        return OTHER[setting.name]
    if setting.type in (int, float):
        return setting.type(1 if setting.default is None else setting.default + 1)
    return ("other",) if setting.type is tuple else "other"


def reached_by(setting: Setting) -> set[str]:
    """The fields that change with a setting."""
    beside = BESIDE.get(setting.name, {})
    value = other_value(setting)
    after = configs_with(**{setting.name: value}, **beside)
    if setting.name == "draft_model":
        return {name for name, is_ in after.items() if is_ == value}
    before = configs_with(**beside)
    return {name for name in before if before[name] != after[name]}


def test_every_field_of_the_configs_can_be_set() -> None:
    reached: set[str] = set()
    for name, setting in SERVE_SETTINGS.items():
        if name not in NO_CONFIG:
            assert reached_by(setting), f"{name} changes nothing"
            reached |= reached_by(setting)
    everything = configs_with().keys()
    assert INTERNAL.keys() <= everything
    missing = everything - reached - INTERNAL.keys()
    assert not missing, f"no flag, no variable and no key sets {sorted(missing)}"


def serve_parameters() -> dict[str, Any]:
    serve: Any = vars(typer.main.get_command(app))["commands"]["serve"]
    return {parameter.name: parameter for parameter in serve.params}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(ServeSettings)])
def test_a_setting_has_flag_variable_key_and_description(name: str, tmp_path: Path) -> None:
    setting, parameter = SERVE_SETTINGS[name], serve_parameters()[name]
    flag = "model" if name == "model" else f"--{name.replace('_', '-')}"
    assert parameter.opts == [flag]
    assert parameter.envvar == f"PIPPIN_{name.upper()}"
    assert setting.about.help.endswith(".")
    default = dataclasses.asdict(ServeSettings())[name]
    assert f"Default: {setting.default_in_words}." in parameter.help
    if isinstance(default, str | int) and setting.about.default is None:
        assert setting.default_in_words == str(default)
    (line,) = re.findall(rf"^(?:# )?({setting.key} = .*)", packaged_settings(), re.MULTILINE)
    path = tmp_path / "one.toml"
    path.write_text(f"[serve]\n{line}\n")
    assert read_settings_file(path).keys() == {name}


def test_no_parameter_of_serve_is_something_else() -> None:
    assert serve_parameters().keys() - SERVE_SETTINGS.keys() == {"config", "print_config"}


def packaged_settings() -> str:
    return (files("pippin.configs") / "default.toml").read_text(encoding="utf-8")


def test_packaged_settings_are_up_to_date() -> None:
    fresh = default_settings_file()
    assert packaged_settings() == fresh, (
        "run python -m pippin.cli.print_config configs/default.toml"
    )


def test_packaged_settings_are_the_codes_defaults(tmp_path: Path) -> None:
    path = tmp_path / "default.toml"
    path.write_text(packaged_settings(), encoding="utf-8")
    assert load_settings({}, path) == ServeSettings()
    # And they are all written out, where there is a value to write.
    without_value = {name for name, setting in SERVE_SETTINGS.items() if setting.default is None}
    assert read_settings_file(path).keys() == SERVE_SETTINGS.keys() - without_value
    assert len(tomllib.loads(path.read_text())["serve"]) == len(SERVE_SETTINGS) - len(without_value)
