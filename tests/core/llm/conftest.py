"""Small models in folders, and how long to wait for what must come."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import save_tiny_model


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model that takes any bytes and knows ChatML."""
    path: Path = save_tiny_model("llama-tied", tmp_path_factory.mktemp("tiny"))
    return str(path)
