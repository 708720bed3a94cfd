"""The command as people start it: a process of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

HEAVY = ("mlx", "uvicorn", "httpx", "transformers", "huggingface_hub", "numpy", "starlette")


def pippin(binary: str, *args: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [binary, *args],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("args", [["--help"], ["serve", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(args: list[str]) -> None:
    code = f"""
import json, sys
from pippin.cli.main import app
try:
    app({args!r})
except SystemExit as end:
    code = end.code
print(json.dumps([code, sorted(set(sys.modules) & set({HEAVY!r}))]))
"""
    finished = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert json.loads(finished.stdout.splitlines()[-1]) == [0, []]


def test_version_and_help_go_to_stdout(binary: str) -> None:
    assert pippin(binary, "--version").stdout == f"pippin {version('pippin')}\n"
    bare, asked = pippin(binary), pippin(binary, "--help")
    assert (bare.returncode, asked.returncode) == (0, 0)
    assert bare.stdout == asked.stdout
    assert "serve" in asked.stdout


def test_it_runs_as_a_module() -> None:
    finished = subprocess.run(
        [sys.executable, "-P", "-m", "pippin.cli", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert finished.stdout == f"pippin {version('pippin')}\n"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["serve", "--no-such-flag"], "No such option: --no-such-flag"),
        (["serve", "--port", "many"], "--port"),
        (["serve", "--port", "70000"], "--port"),
        (["serve", "--kv-cache-memory", "2XB"], "'2XB' is not a size"),
        (["serve", "--log-level", "loud"], "--log-level"),
        (["serve", "--block-size", "33"], "power of two"),
        (["serve", "a", "b"], "unexpected extra argument"),
        (["nothing"], "No such command"),
        (["serve", "--config", "/no/such.toml"], "/no/such.toml"),
        (["serve", "--api-key", ""], "api-key"),
    ],
)
def test_misuse_is_one_line_and_exit_code_2(binary: str, args: list[str], said: str) -> None:
    finished = pippin(binary, *args)
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert finished.stderr.count("\n") == 1
    assert said in finished.stderr


def test_a_wrong_variable_is_misuse(binary: str) -> None:
    finished = pippin(binary, "serve", PIPPIN_MAX_QUEUE="none")
    assert finished.returncode == 2
    assert "PIPPIN_MAX_QUEUE" in finished.stderr


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("no-such-model", "no model 'no-such-model'"),
        ("gone.gguf", "there is no file gone.gguf"),
        ("", "no model ''"),
    ],
)
def test_a_bad_model_is_one_line_and_exit_code_1(binary: str, model: str, said: str) -> None:
    finished = pippin(binary, "serve", model, "--port", "0")
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr.count("\n") == 1
    assert said in finished.stderr


def test_a_port_in_use_is_said_before_anything_is_loaded(binary: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        finished = pippin(binary, "serve", "demo", "--port", str(port))
    assert (finished.returncode, finished.stdout) == (1, "")
    expected = f"pippin: 127.0.0.1 port {port} is in use; choose another with --port\n"
    assert finished.stderr == expected


def test_an_address_that_is_not_ours_is_one_line(binary: str) -> None:
    finished = pippin(binary, "serve", "demo", "--host", "192.0.2.1")
    assert finished.returncode == 1
    assert "cannot listen on 192.0.2.1" in finished.stderr
    assert finished.stderr.count("\n") == 1


STUCK_ENGINE = """
import sys, threading, time, types

class AsyncEngine:
    @staticmethod
    def start(source, config, **_):
        # As a load does: a thread that no signal reaches, and the main thread waiting for it.
        thread = threading.Thread(target=time.sleep, args=(60,))
        thread.start()
        print("loading", file=sys.stderr, flush=True)
        thread.join()

module = types.ModuleType("pippin.core.engine.async_engine")
module.AsyncEngine = AsyncEngine
sys.modules[module.__name__] = module
from pippin.cli.main import app
app(["serve", "demo", "--port", "0"])
"""


def test_an_interrupt_while_loading_ends_at_once_without_a_traceback() -> None:
    with subprocess.Popen(
        [sys.executable, "-P", "-c", STUCK_ENGINE],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert said == "interrupted\n"


def test_a_reader_that_goes_away_is_no_traceback(binary: str, tmp_path: Path) -> None:
    errors = tmp_path / "errors"
    command = f"'{binary}' serve --help 2>'{errors}' | true"
    subprocess.run(["sh", "-c", command], check=True, timeout=60)
    assert "Traceback" not in errors.read_text()
