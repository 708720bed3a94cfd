"""What is installed is what the tree holds.

Under an editable install this is nearly a tautology. It is meant for a wheel in a fresh virtual
environment, run from a checkout: ``pytest tests/packaging tests/cli``.
"""

from importlib.metadata import distribution, entry_points
from importlib.resources import files
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
SHIPPED = ("cli", "configs", "core", "server")


def tree(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.parametrize("name", SHIPPED)
def test_installed_files_are_the_trees(name: str) -> None:
    if not (REPO / name).is_dir():
        pytest.skip("there is no checkout to compare with")
    installed = Path(str(files(f"pippin.{name}")))
    assert tree(installed) == tree(REPO / name)


def test_the_console_script_is_there() -> None:
    (script,) = entry_points(group="console_scripts", name="pippin")
    assert script.value == "pippin.cli.main:app"


def test_man_pages_are_installed() -> None:
    if not (REPO / "man").is_dir():
        pytest.skip("there is no checkout to compare with")
    installed = [file.as_posix() for file in distribution("pippin").files or []]
    if any(name.endswith("_pippin.pth") or name.endswith("pippin.pth") for name in installed):
        pytest.skip("an editable install holds the man pages of the day it was made")
    wanted = {path.name for path in (REPO / "man").glob("*.1")}
    assert {Path(name).name for name in installed if "share/man/man1/" in name} == wanted


def test_nothing_else_is_installed() -> None:
    top = {
        file.parts[0]
        for file in distribution("pippin").files or []
        if file.suffix == ".py" and ".." not in file.parts
    }
    assert top <= {"pippin"}
