"""Starting and stopping: drains in a thread, signals in a process of their own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError

import pytest
from fake_engine import FakeEngine, Hold
from live_server import TIMEOUT_S, posted, read_to_end, read_until, serve
from sse_starlette.sse import AppStatus

from pippin.server.config import ServerConfig
from pippin.server.run import run_server

CHAT: dict[str, object] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**CHAT, "stream": True}

# Holds after the first token until a line comes in on stdin.
_PROGRAM = """
import sys, threading
from fake_engine import FakeEngine, Hold
from pippin.server.config import ServerConfig
from pippin.server.run import run_server

engine = FakeEngine(("a", Hold(), "b"))
threading.Thread(target=lambda: (sys.stdin.readline(), engine.release()), daemon=True).start()
run_server(engine, ServerConfig(port=0), on_started=lambda host, port: print(port, flush=True))
print("ended", flush=True)
"""


def _status_of(url: str) -> tuple[int, dict[str, str], bytes]:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def test_new_work_is_refused_while_running_answers_end() -> None:
    engine = FakeEngine(("a", Hold(), "b"))
    with serve(engine) as server, posted(server.port, "/v1/chat/completions", STREAM) as running:
        read_until(running, b'"content":"a"')
        server.begin_drain()

        with posted(server.port, "/v1/chat/completions", CHAT) as late:
            refusal = read_to_end(late)
        status, headers, health = _status_of(f"{server.url}/health")
        # sse_starlette ends all streams within half a second of seeing either flag.
        assert not server.server.should_exit
        assert not AppStatus.should_exit
        engine.release()
        rest = read_to_end(running)
        server.thread.join(TIMEOUT_S)

        assert refusal.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 5" in refusal.lower()
        assert json.loads(refusal.partition(b"\r\n\r\n")[2])["error"]["code"] == "draining"
        assert status == 503
        assert "retry-after" in headers
        assert json.loads(health)["status"] == "draining"
        assert b'"content":"b"' in rest
        assert b"data: [DONE]" in rest
        assert not server.thread.is_alive()
        assert len(engine.submissions) == 1


def test_a_whole_answer_ends_in_a_drain_too() -> None:
    engine = FakeEngine(("a", Hold(), "b"))
    with serve(engine) as server, posted(server.port, "/v1/chat/completions", CHAT) as running:
        assert engine.holding.wait(TIMEOUT_S)
        server.begin_drain()
        engine.release()

        assert b'"content":"ab"' in read_to_end(running)


def test_a_drain_that_takes_too_long_is_cut() -> None:
    engine = FakeEngine(("a", Hold(), "b"))
    config = ServerConfig(port=0, drain_timeout_s=0.05)
    with (
        serve(engine, config) as server,
        posted(server.port, "/v1/chat/completions", STREAM) as running,
    ):
        read_until(running, b'"content":"a"')
        server.begin_drain()
        server.thread.join(TIMEOUT_S)

        assert not server.thread.is_alive()
        assert b"[DONE]" not in read_to_end(running)
        assert engine.aborted.is_set()


def test_a_taken_port_is_an_os_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = ServerConfig(port=taken.getsockname()[1])
        with pytest.raises(OSError, match="in use"):
            run_server(FakeEngine(), config)


@contextmanager
def _process() -> Iterator[tuple[subprocess.Popen[str], int]]:
    support = str(Path(__file__).parents[1] / "support")
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": support},
    ) as process:
        assert process.stdout is not None
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_lets_answers_end_and_then_returns(number: signal.Signals) -> None:
    with _process() as (process, port), posted(port, "/v1/chat/completions", STREAM) as running:
        read_until(running, b'"content":"a"')
        process.send_signal(number)
        while _status_of(f"http://127.0.0.1:{port}/health")[0] == 200:
            pass
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        rest = read_to_end(running)

        assert process.stdout is not None
        assert b"data: [DONE]" in rest
        assert process.stdout.read() == "ended\n"
        assert process.wait(TIMEOUT_S) == 0


def test_the_second_signal_ends_at_once() -> None:
    with _process() as (process, port), posted(port, "/v1/chat/completions", STREAM) as running:
        read_until(running, b'"content":"a"')
        process.send_signal(signal.SIGTERM)
        while _status_of(f"http://127.0.0.1:{port}/health")[0] == 200:
            pass
        process.send_signal(signal.SIGTERM)

        assert b"[DONE]" not in read_to_end(running)
        assert process.wait(TIMEOUT_S) == 0
