"""Fixtures of the server's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from fake_engine import FakeEngine
from starlette.testclient import TestClient

from pippin.server.app import create_app
from pippin.server.config import ServerConfig
from pippin.server.metrics import Metrics

MakeClient = Callable[..., TestClient]


@pytest.fixture
def make_client() -> Iterator[MakeClient]:
    """Make clients of an app around an engine: ``make_client(engine, metrics=..., **config)``."""
    with ExitStack() as stack:

        def make(
            engine: FakeEngine | None = None, *, metrics: Metrics | None = None, **config: object
        ) -> TestClient:
            settings = ServerConfig(**config)  # type: ignore[arg-type]
            app = create_app(engine or FakeEngine(), settings, metrics=metrics)
            return stack.enter_context(TestClient(app))

        yield make
