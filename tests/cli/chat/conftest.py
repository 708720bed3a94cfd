"""Nothing that is saved reaches the machine that runs the tests."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def data_folder(
    no_settings_from_outside: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    folder = tmp_path / "data"
    monkeypatch.setenv("PIPPIN_DATA_DIR", str(folder))
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "EDITOR", "VISUAL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return folder
