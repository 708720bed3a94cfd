"""The manual pages are those that the command tree gives today, and no formatter finds fault."""

import shlex
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import files
from pathlib import Path
from typing import Any

import pytest
import typer.main

from pippin.cli.main import app
from pippin.cli.man_page import man_pages, write_man_pages
from pippin.cli.man_prose import PROSE

REPO = Path(__file__).resolve().parents[2]
SECTIONS = [
    *("NAME", "SYNOPSIS", "DESCRIPTION", "COMMANDS", "OPTIONS", "ENVIRONMENT", "FILES"),
    *("EXIT STATUS", "EXAMPLES", "SEE ALSO"),
]


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return man_pages()


@pytest.fixture
def folder(pages: dict[str, str], tmp_path: Path) -> Path:
    for name, text in pages.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def commands(command: Any = None, path: str = "pippin") -> Iterator[tuple[str, Any]]:
    command = typer.main.get_command(app) if command is None else command
    yield path, command
    for name, sub in getattr(command, "commands", {}).items():
        yield from commands(sub, f"{path} {name}")


def test_shipped_pages_are_up_to_date(pages: dict[str, str]) -> None:
    """The tree's, or in a wheel without a tree the installed ones."""
    found = list((REPO / "man").glob("pippin*.1")) or [
        Path(str(file.locate())) for file in files("pippin") or [] if "man1" in file.parts
    ]
    shipped = {path.name: path.read_text(encoding="utf-8") for path in found}
    assert shipped.keys() == pages.keys()
    old = [name for name, text in pages.items() if shipped[name] != text]
    assert old == [], "run python -m pippin.cli.man_page man"


@pytest.mark.parametrize(("path", "command"), [*commands()], ids=lambda it: str(it)[:40])
def test_a_page_has_all_of_its_command(pages: dict[str, str], path: str, command: Any) -> None:
    """Commands below `pippin NAME` stand in the page of that."""
    page = pages[f"{'-'.join(path.split()[:2])}.1"].replace("\\-", "-")
    assert path.count(" ") < 2 or f"\\fB{path}\\fR" in page
    for parameter in command.params:
        if not getattr(parameter, "hidden", False):
            variables = parameter.envvar or []
            for variable in [variables] if isinstance(variables, str) else variables:
                assert f"\\fB{variable}\\fR" in page
            flags = [flag for flag in parameter.opts if flag.startswith("--")]
            assert all(f"\\fB{flag}\\fR" in page for flag in flags)


def test_pages_have_their_sections_in_the_usual_order(pages: dict[str, str]) -> None:
    for name, page in pages.items():
        lines = page.splitlines()
        found = [line.removeprefix(".SH ") for line in lines if line.startswith(".SH ")]
        assert found == [section for section in SECTIONS if section in found], name
        assert {*SECTIONS} - {*found} <= {"COMMANDS", "OPTIONS", "FILES"}, name
        assert {"COMMANDS", "OPTIONS"} & {*found}, name


def test_prose_is_of_commands_that_exist() -> None:
    assert PROSE.keys() == {path for path, _ in commands() if path.count(" ") < 2}


def test_examples_are_command_lines_that_the_parser_takes(pages: dict[str, str]) -> None:
    """But for what runs then: the parser stops before it."""
    tree = dict(commands())
    for prose in PROSE.values():
        for line, _ in prose.examples:
            words = shlex.split(line.split(" > ")[0].split(" | ")[-1])
            path = " ".join(words[: 3 if " ".join(words[:3]) in tree else 2])
            arguments = words[len(path.split()) :]
            tree[path].make_context(path, arguments, resilient_parsing=False).close()


def test_writing_replaces_the_pages_of_commands_that_are_no_more(tmp_path: Path) -> None:
    (tmp_path / "pippin-gone.1").write_text("old")
    (tmp_path / "other.1").write_text("not ours")
    write_man_pages(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*man_pages(), "other.1"}


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_groff_finds_no_fault(folder: Path) -> None:
    for page in sorted(folder.iterdir()):
        command = ["groff", "-ww", "-man", "-z", str(page)]
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
        assert ended.stderr == ""


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="mandoc is not installed")
def test_mandoc_finds_no_fault(folder: Path) -> None:
    for page in sorted(folder.iterdir()):
        command = ["mandoc", "-T", "lint", str(page)]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        # A date would make two builds of one version differ.
        faults = [line for line in said.splitlines() if 'missing date, using ""' not in line]
        assert faults == []
