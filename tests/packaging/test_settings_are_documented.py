"""Every command and option stands in the help, the man pages and the packaged settings file."""

import dataclasses
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import files
from importlib.resources import files as resource_files
from pathlib import Path
from typing import Any

import pytest
import typer.main

from pippin.cli.main import app
from pippin.cli.settings import ServeSettings, load_settings, read_settings_file

REPO = Path(__file__).resolve().parents[2]


def commands(command: Any = None, name: str = "pippin") -> Iterator[tuple[str, Any]]:
    """Every command of the tree with the name of its man page."""
    command = typer.main.get_command(app) if command is None else command
    yield name, command
    for sub_name, sub_command in getattr(command, "commands", {}).items():
        yield from commands(sub_command, f"{name}-{sub_name}")


def option_names(command: Any) -> set[str]:
    return {
        flag for parameter in command.params for flag in parameter.opts if flag.startswith("--")
    } | {"--help"}


def man_page(name: str) -> str:
    """The text of a man page: the tree's, or in a wheel without a tree the installed one.

    Commands below ``pippin NAME`` stand in the page of that.
    """
    name = "-".join(name.split("-")[:2])
    path = REPO / "man" / f"{name}.1"
    if not path.is_file():
        installed = [f for f in files("pippin") or [] if f.name == path.name]
        assert installed, f"there is no man page {path.name}"
        path = Path(str(installed[0].locate()))
    return path.read_text(encoding="utf-8").replace("\\-", "-")


@pytest.mark.parametrize("name", [name for name, _ in commands()])
def test_man_pages_name_every_option_and_command(name: str) -> None:
    command = dict(commands())[name]
    page = man_page(name)
    assert sorted(option for option in option_names(command) if option not in page) == []
    assert [sub for sub in getattr(command, "commands", {}) if f".B {sub}\n" not in page] == []


def test_man_page_of_serve_names_every_variable_and_default() -> None:
    command = dict(commands())["pippin-serve"]
    page = man_page("pippin-serve")
    for parameter in command.params:
        if parameter.name == "help":
            continue
        assert parameter.envvar in page
    for field in dataclasses.fields(ServeSettings):
        default = field.default
        if isinstance(default, str | int) and field.name != "model":
            assert f"Default: {default}" in page, field.name


def test_help_says_the_defaults_that_the_code_has() -> None:
    command = dict(commands())["pippin-serve"]
    help_texts = {parameter.name: parameter.help for parameter in command.params}
    for field in dataclasses.fields(ServeSettings):
        if isinstance(field.default, str | int):
            assert f"Default: {field.default}." in help_texts[field.name], field.name


def packaged_settings() -> str:
    return (resource_files("pippin.configs") / "default.toml").read_text(encoding="utf-8")


def test_packaged_settings_are_the_codes_defaults(tmp_path: Path) -> None:
    path = tmp_path / "default.toml"
    path.write_text(packaged_settings(), encoding="utf-8")
    assert load_settings({}, path) == ServeSettings()
    # And they are all written out, where there is a value to write.
    written = read_settings_file(path)
    without_value = {f.name for f in dataclasses.fields(ServeSettings) if f.default is None}
    assert written.keys() | without_value == {f.name for f in dataclasses.fields(ServeSettings)}


def test_every_flag_is_in_the_packaged_settings(tmp_path: Path) -> None:
    text = packaged_settings()
    keys = set(re.findall(r"^(?:# )?([a-z-]+) = ", text, re.MULTILINE))
    command = dict(commands())["pippin-serve"]
    flags = {name.removeprefix("--") for name in option_names(command)}
    assert keys == (flags - {"help", "config"}) | {"model"}
    # Lines that are switched off must be right, too.
    path = tmp_path / "all.toml"
    path.write_text(re.sub(r"^# ([a-z-]+ = )", r"\1", text, flags=re.MULTILINE), encoding="utf-8")
    assert len(tomllib.loads(path.read_text())["serve"]) == len(keys)
    read_settings_file(path)
