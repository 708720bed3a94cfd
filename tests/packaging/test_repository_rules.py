"""Rules of the tree that no linter in the tool chain covers. They need a checkout."""

import ast
import shutil
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
SHIPPED = ("cli", "configs", "core", "server")
MAX_LINES = 400

pytestmark = pytest.mark.skipif(
    not (REPO / "pyproject.toml").is_file(), reason="these are rules of the repository's tree"
)


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (REPO / folder).rglob("*.py"))


def test_the_top_level_holds_what_was_agreed() -> None:
    visible = {path.name for path in REPO.iterdir() if not path.name.startswith(".")}
    agreed = {*SHIPPED, "man", "tests", "pyproject.toml", "README.md", "LICENSE"}
    assert visible - {"dist", "build", "shared"} == agreed


def test_source_files_stay_short() -> None:
    lengths = {
        str(path.relative_to(REPO)): len(path.read_text(encoding="utf-8").splitlines())
        for path in python_files(*SHIPPED)
    }
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(REPO))
        for path in python_files(*SHIPPED)
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []


def test_there_are_no_dumping_grounds() -> None:
    banned = {"utils", "util", "helpers", "common", "misc"}
    named = [path for path in python_files(*SHIPPED) if {path.stem, path.parent.name} & banned]
    assert named == []


def test_the_editable_view_links_every_shipped_folder() -> None:
    view = REPO / ".editable" / "pippin"
    links = {link.name: link.resolve() for link in view.iterdir()}
    assert links == {name: REPO / name for name in SHIPPED}


def test_only_the_backend_imports_mlx() -> None:
    """Otherwise mlx could load before the process is prepared for it.

    Whatever of mlx-lm loads ``mlx.core``, too. At the top of a module it may be imported behind
    the backend (with ``# isort: split`` between them); inside a function the backend has been
    imported long before.
    """
    offenders = []
    for path in python_files(*SHIPPED):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module == "backend" and node.level:
                break
            if imports_mlx(node) and path != REPO / "core" / "backend.py":
                offenders.append(f"{path.relative_to(REPO)}:{node.lineno}")
    assert offenders == []


def imports_mlx(node: ast.stmt) -> bool:
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.level == 0:
        names = [node.module or ""]
    return any(name.split(".")[0] in ("mlx", "mlx_lm", "mlx_vlm") for name in names)


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_man_pages_parse_without_a_warning() -> None:
    pages = sorted((REPO / "man").glob("*.1"))
    assert pages
    for page in pages:
        finished = subprocess.run(
            ["groff", "-ww", "-man", "-z", str(page)], capture_output=True, text=True, check=True
        )
        assert finished.stderr == ""
