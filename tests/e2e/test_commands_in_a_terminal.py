"""Every command through the real binary: in a terminal of any width, without colours, in a pipe."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from disk_records import NAMESPACE, make_record
from fake_engine import FakeEngine
from live_server import serve
from rich.cells import cell_len
from terminal import CTRL_C, TIMEOUT_S, terminal
from tiny_models import save_tiny_model

from pippin.core.cache.disk.store import RecordStore

PIPPIN = str(Path(sys.executable).with_name("pippin"))
COLOUR = re.compile(r"\x1b\[[0-9;]*[34][0-9][0-9;]*m")

# What is asked of each command, and what it says. Names in braces stand for what `places` makes.
WORKS = {
    "": "Commands:",
    "serve {model} --print-config": "[serve]",
    "chat --url {url} --prompt hello": "tokens/s",
    "bench-serve --url {url} --concurrency 1 --num-requests 2 --warmup 0": "E2E",
    "models": "Commands:",
    "models ls": "tiny",
    "models show {model}": "bytes a token",
    "models check {model}": "one token",
    "models alias small {model}": "small",
    "cache": "Commands:",
    "cache ls": "tiny",
    "cache inspect {namespace}": "tiny",
    "cache verify": "5",
    "cache prune --dry-run --older-than 1d": "",
}
FAILS = {
    "serve --no-such-flag": "No such option",
    "serve {model} --config nowhere": "nowhere cannot be read",
    "serve {empty}": "holds no config.json",
    "chat --prompt hello --url http://127.0.0.1:9": "127.0.0.1:9",
    "bench-serve --url http://127.0.0.1:9": "no server answers",
    "bench-serve --turns 3": "--turns goes with",
    "models show nobody-has-this": "no model 'nobody-has-this'",
    "models check {empty}": "config.json",
    "models pull not/a/hub/id": "not/a/hub/id",
    "models convert {model} --output {empty}": "empty",
    "models alias --remove never-made": "never-made",
    "models rm nobody-has-this --yes": "nobody-has-this",
    "cache inspect ffffffff": "ffffffff",
    "cache prune": "--older-than",
    "cache stats --url http://127.0.0.1:9": "127.0.0.1:9",
    "cache warm /nowhere --url {url}": "/nowhere",
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Folders with a model and a cache in them, and a server."""
    base = tmp_path_factory.mktemp("p")
    model = save_tiny_model("llama-tied", base / "cache" / "models" / "tiny")
    with closing(RecordStore(base / "cache" / "kv")) as store:
        for number in range(5):
            store.write(NAMESPACE, make_record(number, parent=number - 1 if number else None))
    (base / "empty").mkdir()
    with serve(FakeEngine()) as server:
        yield {
            "base": str(base),
            "url": server.url,
            "model": str(model),
            "empty": str(base / "empty"),
            "namespace": NAMESPACE.digest[:8],
        }


@pytest.fixture(autouse=True)
def own_folders(places: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*os.environ]:
        if name.startswith(("PIPPIN_", "HF_")) or name == "NO_COLOR":
            monkeypatch.delenv(name)
    for kind in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"PIPPIN_{kind}_DIR", f"{places['base']}/{kind.lower()}")
    monkeypatch.setenv("HF_HOME", f"{places['base']}/hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def filled(command: str, places: dict[str, str]) -> list[str]:
    return [PIPPIN, *(part.format(**places) for part in command.split())]


@pytest.mark.parametrize("columns", [60, 200])
@pytest.mark.parametrize("command", WORKS)
def test_it_works_in_a_terminal(command: str, columns: int, places: dict[str, str]) -> None:
    with terminal(filled(command, places), columns=columns) as screen:
        assert screen.wait_for_end() == 0, screen.text
        assert WORKS[command] in screen.text
        if "--print-config" in command:
            return  # a file, whose lines are as long as they are
        # A bar that is drawn over and over says where its lines end by itself.
        lines = screen.text.replace("\r\n", "\n").split("\n")
        assert [line for line in lines if cell_len(line.rpartition("\r")[2]) > columns] == []


@pytest.mark.parametrize("command", FAILS)
def test_it_fails_in_a_line_or_two(command: str, places: dict[str, str]) -> None:
    with terminal(filled(command, places)) as screen:
        assert screen.wait_for_end() in (1, 2), screen.text
        assert FAILS[command] in " ".join(screen.text.split())
        assert "Traceback" not in screen.text


@pytest.mark.parametrize("command", WORKS)
def test_a_pipe_gets_no_control_codes(command: str, places: dict[str, str]) -> None:
    finished = subprocess.run(
        filled(command, places),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    assert WORKS[command].encode() in finished.stdout + finished.stderr
    assert b"\x1b" not in finished.stdout + finished.stderr


@pytest.mark.parametrize("command", WORKS)
def test_no_color_is_heeded(command: str, places: dict[str, str]) -> None:
    with terminal(filled(command, places), env={"NO_COLOR": "1"}) as screen:
        assert screen.wait_for_end() == 0
        assert COLOUR.findall(screen.output) == []


def test_a_server_starts_and_ends_in_a_terminal(places: dict[str, str]) -> None:
    with terminal([PIPPIN, "serve", places["model"], "--port", "0"]) as screen:
        screen.wait_for("ready after")
        screen.send(CTRL_C)
        assert screen.wait_for_end() == 0
        assert "Traceback" not in screen.text
