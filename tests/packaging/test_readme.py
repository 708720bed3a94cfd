"""What the README promises exists: files, endpoints, commands. They need a checkout."""

import re
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from starlette.routing import Route

from pippin.server.app import create_app
from pippin.server.config import ServerConfig

REPO = Path(__file__).resolve().parents[2]
TEST_COMMAND = "pip install -e '.[test]' && pytest"

pytestmark = pytest.mark.skipif(
    not (REPO / "README.md").is_file(), reason="the README is in the repository only"
)


@pytest.fixture(scope="module")
def readme() -> str:
    return (REPO / "README.md").read_text(encoding="utf-8")


def test_linked_and_named_files_exist(readme: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", readme) if "://" not in link]
    named = re.findall(r"(?:cli|configs|core|server|tests)/[\w/]+\.\w+", readme)
    assert links
    assert named
    assert [path for path in (*links, *named) if not (REPO / path).exists()] == []


def test_table_of_endpoints_is_that_of_the_server(readme: str) -> None:
    listed = set(re.findall(r"`((?:GET|POST|DELETE) /[\w./{}-]*)`", readme))
    served = {
        f"{method} {route.path.replace(':path', '')}"
        for route in create_app(FakeEngine(), ServerConfig()).routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert listed == served


def test_ci_runs_the_readmes_test_command(readme: str) -> None:
    assert TEST_COMMAND in readme
    assert f"({TEST_COMMAND})" in (REPO / ".ci" / "run").read_text(encoding="utf-8")
