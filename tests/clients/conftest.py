"""A live server for outside clients, which are skipped where they are not installed."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_server import LiveServer, serve
from weather import Weather, write_weather_model

from pippin.core.config import CacheConfig, EngineConfig
from pippin.core.engine.async_engine import AsyncEngine
from pippin.server.config import ServerConfig

FOLDER = Path(__file__).parent


class Npm:
    """Packages and programs in ``$PIPPIN_CLIENTS_NODE/node_modules``, programs else in the path."""

    folder = Path(os.environ.get("PIPPIN_CLIENTS_NODE", FOLDER))

    def require(self, package: str) -> None:
        """Skip the test where it is not there."""
        if not (self.folder / "node_modules" / package).is_dir():
            pytest.skip(f"npm's {package} is not installed")

    def program(self, name: str) -> str:
        """Where it is."""
        path = f"{self.folder}/node_modules/.bin:{os.environ['PATH']}"
        found = shutil.which(name, path=path)
        if found is None:
            pytest.skip(f"{name} is not installed")
        return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.clients)
            item.add_marker(pytest.mark.filterwarnings("default"))  # theirs are not ours to mend


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weather_model(tmp_path_factory.mktemp("weather"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[LiveServer]:
    config = EngineConfig(
        cache=CacheConfig(max_bytes=64 << 20), max_model_len=16384, reasoning_parser="think"
    )
    engine = AsyncEngine.start(str(model_folder), config, served_model_name="scripted")
    try:
        store = tmp_path_factory.mktemp("store") / "responses.sqlite"
        with serve(engine, ServerConfig(port=0, aliases=("*",), response_store=store)) as live:
            yield live
    finally:
        engine.close()


@pytest.fixture
def npm() -> Npm:
    return Npm()


@pytest.fixture
def weather() -> Weather:
    return Weather()


@pytest.fixture(autouse=True)
def on_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a client wants of other hosts meets a dead proxy; what it leaves open is its own."""
    for scheme in ("http", "https", "all"):
        for name in (f"{scheme}_proxy", f"{scheme.upper()}_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    monkeypatch.setenv("OPENAI_AGENTS_DISABLE_TRACING", "1")
    yield
    gc.collect()  # connections complain here and not in somebody else's test
