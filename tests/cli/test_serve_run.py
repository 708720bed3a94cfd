import io
import socket
import sys
import types
from typing import Any

import pytest
from fake_engine import FakeEngine, make_card
from rich.console import Console

from pippin.cli import serve_run
from pippin.cli.serve_run import base_url, check_port_is_free, run_serve, startup_panel
from pippin.cli.settings import ServeSettings
from pippin.core.cache.disk.stats import DiskStats
from pippin.core.engine.stats import EngineStats, StepObserver
from pippin.core.errors import ConfigError, ModelLoadError, PippinError
from pippin.server.config import ServerConfig


def show(renderable: object) -> str:
    out = io.StringIO()
    Console(file=out, width=100).print(renderable)
    return out.getvalue()


def test_the_panel_says_what_one_wants_to_know() -> None:
    details = {
        "device": "cpu",
        "blas": "OpenBLAS",
        "dtype": "float32",
        "kv_capacity_tokens": 65536,
        "attention_kernel": "plain",
        "speculation": "off",
    }
    card = make_card(model_id="org/[bold]", details=details)
    disk = DiskStats(
        folder="/kv",
        num_records=1,
        num_bytes=1024,
        max_bytes=1 << 30,
        queued_bytes=0,
        is_writing=True,
    )
    stats = EngineStats(kv_cache_bytes=3 * 512 * 1024**2, disk=disk)
    lines = show(startup_panel(card, stats, "http://127.0.0.1:8123")).splitlines()
    assert [line.strip("│ ").split(maxsplit=1) for line in lines[1:-1]] == [
        ["model", "org/[bold]"],
        ["endpoint", "http://127.0.0.1:8123/v1"],
        ["context", "4,096 tokens"],
        ["KV", "cache  65,536 tokens in 1.5 GiB"],
        ["on", "disk   1.0 KiB of at most 1.0 GiB in /kv"],
        ["device", "cpu, OpenBLAS"],
        ["weights", "float32"],
    ]


def test_the_panel_names_what_makes_it_faster_or_keeps_it_from_that() -> None:
    details = {"speculation": "ngram", "draft_tokens": 8, "attention_kernel": "plain: bad numbers"}
    text = show(startup_panel(make_card(details=details), EngineStats(), "http://x"))
    assert "ngram, up to 8 tokens" in text
    assert "plain: bad numbers" in text


def test_the_panel_does_without_what_the_engine_does_not_say() -> None:
    text = show(startup_panel(make_card(details={}), EngineStats(), "http://x"))
    assert "one request at a time" in text
    assert "device" not in text


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://localhost:80"),
        ("::", "http://localhost:80"),
        ("::1", "http://[::1]:80"),
    ],
)
def test_the_url_can_be_opened(host: str, expected: str) -> None:
    assert base_url(host, 80) == expected


def test_a_free_port_is_free_and_stays_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = ServerConfig(port=taken.getsockname()[1])
        with pytest.raises(PippinError, match="in use"):
            check_port_is_free(config)
    check_port_is_free(config)
    check_port_is_free(config)
    check_port_is_free(ServerConfig(port=0))


class StartedEngine(FakeEngine):
    """A fake that remembers how it was started and that it was closed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.args, self.kwargs = args, kwargs
        self.closed = False
        self.observers: list[StepObserver] = []

    def observe(self, observer: StepObserver) -> None:
        self.observers.append(observer)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[StartedEngine]:
    """Engines that `AsyncEngine.start` has made. No model is loaded, nothing listens."""
    started: list[StartedEngine] = []

    def start(*args: Any, **kwargs: Any) -> StartedEngine:
        if args[0] == "org/broken":
            raise ModelLoadError("broken")
        started.append(StartedEngine(*args, **kwargs))
        return started[-1]

    module = types.ModuleType("pippin.core.engine.async_engine")
    module.AsyncEngine = types.SimpleNamespace(start=start)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(serve_run, "set_up_logging", lambda console, level: None)
    return started


def test_settings_reach_engine_and_server_and_the_engine_is_closed(
    engines: list[StartedEngine],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    served: list[Any] = []

    def run_server(
        engine: Any, config: ServerConfig, *, metrics: Any, on_started: Any, **_: Any
    ) -> None:
        served.append((engine, config))
        assert engine.observers == [metrics.observe_step]
        assert not engine.closed
        on_started("127.0.0.1", 4321)

    monkeypatch.setattr("pippin.server.run.run_server", run_server)
    settings = ServeSettings(model="org/x", port=0, served_model_name="x", max_model_len=99)
    run_serve(settings)
    (engine,) = engines
    assert engine.args == ("org/x", settings.engine_config())
    assert engine.kwargs["served_model_name"] == "x"
    assert served == [(engine, settings.server_config())]
    assert engine.closed
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "http://127.0.0.1:4321/v1" in captured.err
    assert "ready after" in captured.err


def test_a_port_taken_meanwhile_closes_the_engine(
    engines: list[StartedEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_server(*_: Any, **__: Any) -> None:
        raise OSError(98, "Address already in use")

    monkeypatch.setattr("pippin.server.run.run_server", run_server)
    with pytest.raises(PippinError):
        run_serve(ServeSettings(model="org/x", port=0))
    assert engines[0].closed


@pytest.mark.usefixtures("engines")
def test_a_model_that_does_not_load_is_a_pippin_error() -> None:
    with pytest.raises(ModelLoadError):
        run_serve(ServeSettings(model="org/broken", port=0))


def test_wrong_settings_are_told_before_an_engine_starts(engines: list[StartedEngine]) -> None:
    with pytest.raises(ConfigError):
        run_serve(ServeSettings(block_size=33))
    with pytest.raises(ConfigError, match="nowhere cannot be read"):
        run_serve(ServeSettings(warm_prompts="nowhere"))
    with pytest.raises(ModelLoadError, match="nowhere"):
        run_serve(ServeSettings(draft_model="nowhere"))
    assert engines == []
