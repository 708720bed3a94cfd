"""No setting of the machine that runs the tests reaches them."""

import os
import sys
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PIPPIN_") and name != "PIPPIN_CACHE_DIR":
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def binary() -> str:
    """The installed console script."""
    return str(Path(sys.executable).with_name("pippin"))
