"""A cache folder of its own for every test, except for the demo model, which is shared."""

from pathlib import Path

import pytest

from pippin.core.errors import DownloadError
from pippin.core.models.demo import fetch_demo
from pippin.core.models.loader import LoadedModel, load_folder
from pippin.core.models.progress import NullProgress, Stage


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIPPIN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def demo_path() -> Path:
    """The demo model in the user's own cache folder, so that it is fetched once per machine."""
    try:
        return fetch_demo(NullProgress())
    except DownloadError as error:
        pytest.skip(f"no demo model: {error}")


@pytest.fixture(scope="session")
def demo_model(demo_path: Path) -> LoadedModel:
    return load_folder(demo_path, model_id="demo", progress=NullProgress())


class RecordedProgress:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []
        self.notes: list[str] = []
        self.done_bytes: list[int] = []

    def start(self, stage: Stage, text: str, *, total_bytes: int | None = None) -> None:
        self.stages.append(stage)

    def update(self, done_bytes: int, *, total_bytes: int | None = None) -> None:
        self.done_bytes.append(done_bytes)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def finish(self) -> None:
        pass


@pytest.fixture
def progress() -> RecordedProgress:
    return RecordedProgress()
