"""A server under test as a process of its own, and the load generator that asks it."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_START_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 15.0
_TAIL_BYTES = 2000


@dataclass(frozen=True, slots=True)
class Server:
    """A server process."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def pause(self) -> None:
        """Take it off the processor."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it run again."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it, by force if need be."""
        self.resume()
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_STOP_TIMEOUT_S)
                return

    def wait_ready(self, timeout_s: float) -> None:
        """Return when it answers.

        Raises:
            RuntimeError: It ended, or took too long; with the end of its log.
        """
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                self.get("/v1/models")
                return
            time.sleep(0.3)
        raise RuntimeError(f"{self.name} did not start:\n{self.log_tail()}")

    def get(self, path: str) -> str:
        """The body behind a path.

        Raises:
            OSError: No answer, or not the status 200.
        """
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as reply:
            return bytes(reply.read()).decode()

    def log_tail(self) -> str:
        """The end of what it has written."""
        return self.log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace").strip()

    def _signal(self, number: signal.Signals) -> None:
        # The whole session: a server may have children of its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


@contextlib.contextmanager
def running(
    name: str,
    arguments: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = _START_TIMEOUT_S,
    python: str = sys.executable,
) -> Iterator[Server]:
    """Run ``python -m ARGUMENTS --port N`` on a free port for as long as the block lasts."""
    environment = environment or {}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [python, "-m", *arguments, "--port", str(port)]
    say(" ".join([*(f"{key}={value}" for key, value in environment.items()), shlex.join(command)]))
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            # Nothing from an earlier run: prompts are to be computed.
            env={"PIPPIN_KV_DISK_SIZE": "off", **os.environ, **environment},
            start_new_session=True,
        )
    server = Server(name, port, process, log)
    try:
        server.wait_ready(timeout_s)
        yield server
    finally:
        server.stop()


def load(
    server: Server,
    num_clients: int,
    jobs: Sequence[dict[str, Any]],
    *,
    timeout_s: float | None = None,
) -> dict[str, Any]:
    """Send jobs; return the wall time and a sample for each.

    Raises:
        RuntimeError: The server died of them; with the end of its log.
        subprocess.TimeoutExpired: They took longer than ``timeout_s``.
    """
    command = [sys.executable, str(_HERE / "stream_load.py"), "--port", str(server.port)]
    command += ["--clients", str(num_clients)]
    finished = subprocess.run(
        command,
        input=json.dumps(jobs),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=timeout_s,
    )
    if server.process.poll() is not None:
        raise RuntimeError(f"{server.name} died:\n{server.log_tail()}")
    result: dict[str, Any] = json.loads(finished.stdout)
    return result


def say(line: str) -> None:
    """Tell people how far it is."""
    print(line, file=sys.stderr, flush=True)
