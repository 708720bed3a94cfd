"""pippin and ``python -m mlx_lm server``: same machine, weights and prompts, in one run.

Run by hand, on a quiet machine::

    python tests/perf/serve_comparison.py [--model demo] [--clients 1,4,16,64]

Both servers load one folder (``same_weights.py``), use the same BLAS with as many threads, keep
their other defaults and stay up for the whole run; whichever is not measured is stopped with
SIGSTOP. Each level of clients is warmed up once and then measured in rounds of pippin, mlx_lm,
pippin, mlx_lm, so that a drift of the machine meets both. The clients (``stream_load.py``, a
process of its own) form a closed loop: each sends its next request when its last answer has ended.
Requests are greedy and stream, with usage. Their prompts have some 50 to 400 tokens, are the same
for both servers, and begin with a number of their own, so that no prefix cache has seen them.

``comparison_report.py`` says what the figures mean. A table goes to stderr, one line of JSON to
stdout.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import random
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_MODEL_NAME = "default_model"  # what mlx_lm calls the one on its command line
_START_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 15.0
_WARM_UP_TOKENS = 8
_MIN_WORDS, _MAX_WORDS = 4, 320
_TEXT = """
river stone morning market window garden letter winter engine silver bridge forest music harbor
paper candle mountain doctor island thunder kitchen yellow story planet soldier bread summer
teacher ocean mirror castle village horse lantern
"""
_WORDS = _TEXT.split()


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

    def wait_ready(self) -> None:
        """Return when it answers.

        Raises:
            RuntimeError: It ended, or took too long; with the end of its log.
        """
        deadline = time.monotonic() + _START_TIMEOUT_S
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
                return
            time.sleep(0.3)
        tail = self.log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise RuntimeError(f"{self.name} did not start:\n{tail}")

    def _signal(self, number: signal.Signals) -> None:
        # The whole session: a server may have children of its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


@contextlib.contextmanager
def running(
    name: str, arguments: Sequence[str], environment: Mapping[str, str]
) -> Iterator[Server]:
    """Run ``python -m ARGUMENTS --port N`` on a free port for as long as the block lasts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", *arguments, "--port", str(port)]
    say(" ".join([*(f"{key}={value}" for key, value in environment.items()), shlex.join(command)]))
    with tempfile.TemporaryDirectory(prefix="serve-comparison-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        server = Server(name, port, process, log)
        try:
            server.wait_ready()
            yield server
        finally:
            server.stop()


def make_jobs(count: int, *, seed: str, max_tokens: int) -> list[dict[str, Any]]:
    """Requests of mixed length, each with a number of its own in front."""
    draw = random.Random(seed)
    jobs = []
    for _ in range(count):
        words = " ".join(draw.choices(_WORDS, k=draw.randint(_MIN_WORDS, _MAX_WORDS)))
        messages = [
            {"role": "system", "content": f"{draw.randrange(10**9)} is your number."},
            {"role": "user", "content": f"Write a long story with: {words}"},
        ]
        jobs.append(
            {
                "model": _MODEL_NAME,
                "messages": messages,
                "max_tokens": max_tokens,
                "temperature": 0.0,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        )
    return jobs


def load(server: Server, num_clients: int, jobs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Send jobs; return the wall time and a sample for each."""
    command = [sys.executable, str(_HERE / "stream_load.py"), "--port", str(server.port)]
    command += ["--clients", str(num_clients)]
    finished = subprocess.run(
        command, input=json.dumps(jobs), stdout=subprocess.PIPE, text=True, check=True
    )
    result: dict[str, Any] = json.loads(finished.stdout)
    return result


def measure_level(
    servers: Sequence[Server], num_clients: int, num_requests: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Run one level on all servers in turn."""
    runs: dict[str, list[dict[str, Any]]] = {server.name: [] for server in servers}
    # Of the same kind as the measured ones: kernels are compiled by shapes and numbers of rows.
    warm_up = make_jobs(num_clients, seed=f"warm-up {num_clients}", max_tokens=_WARM_UP_TOKENS)
    for server in servers:
        server.resume()
        load(server, num_clients, warm_up)
        server.pause()
    for turn in range(args.rounds):
        jobs = make_jobs(
            num_clients * num_requests,
            seed=f"{args.seed} {num_clients} {turn}",
            max_tokens=args.max_tokens,
        )
        for server in servers:
            server.resume()
            run = load(server, num_clients, jobs)
            server.pause()
            runs[server.name].append(run)
            say(f"{num_clients} clients, round {turn + 1}, {server.name}: {run['wall_s']:.1f} s")
    return {"clients": num_clients, "runs": runs}


def say(line: str) -> None:
    """Tell people how far it is."""
    print(line, file=sys.stderr, flush=True)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo", help="'demo', a folder, a .gguf or a hub id")
    parser.add_argument("--clients", type=_numbers, default=[1, 4, 16, 64], help="the levels")
    parser.add_argument(
        "--requests",
        type=_numbers,
        help="of a client in a round, one number or one per level; default: 6, less for many",
    )
    parser.add_argument("--rounds", type=int, default=2, help="per level and server")
    parser.add_argument("--max-tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts")
    parser.add_argument("--blas-threads", type=int, help="of both; default: what pippin takes")
    parser.add_argument("--pippin-args", type=shlex.split, default=[], help="further options")
    parser.add_argument("--mlx-lm-args", type=shlex.split, default=[], help="further options")
    args = parser.parse_args()
    if args.requests is None:
        args.requests = [min(6, max(1, 32 // num_clients)) for num_clients in args.clients]
    if len(args.requests) == 1:
        args.requests *= len(args.clients)
    if len(args.requests) != len(args.clients):
        parser.error("--requests takes one number, or one for each level of --clients")
    return args


def main() -> None:
    """Measure, then have it reported."""
    # An orderly end takes the servers along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    args = _parse()
    prepare = [sys.executable, str(_HERE / "same_weights.py"), args.model]
    prepared = subprocess.run(prepare, stdout=subprocess.PIPE, check=False)
    if prepared.returncode:
        sys.exit(prepared.returncode)
    weights = json.loads(prepared.stdout)
    folder, library = weights["folder"], weights["blas_library"]
    threads = args.blas_threads or weights["blas_threads"]
    environment = {} if threads is None else {"OPENBLAS_NUM_THREADS": str(threads)}
    preload = {} if library is None else {"LD_PRELOAD": library}
    ours = ["pippin.cli", "serve", folder, "--served-model-name", _MODEL_NAME, *args.pippin_args]
    theirs = ["mlx_lm", "server", "--model", folder, *args.mlx_lm_args]
    levels = []
    with (
        running("pippin", ours, environment) as pippin,
        running("mlx_lm", theirs, environment | preload) as mlx_lm,
    ):
        pippin.pause()
        mlx_lm.pause()
        for num_clients, num_requests in zip(args.clients, args.requests, strict=True):
            levels.append(measure_level([pippin, mlx_lm], num_clients, num_requests, args))
    about = {
        "command": shlex.join(["python", *sys.argv]),
        "versions": {n: importlib.metadata.version(n) for n in ("pippin", "mlx", "mlx-lm")},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        **{key: weights[key] for key in ("device", "dtype", "blas")},
        "blas_threads": threads,
    }
    measured = {"about": about, "servers": ["pippin", "mlx_lm"], "levels": levels}
    report = [sys.executable, str(_HERE / "comparison_report.py")]
    subprocess.run(report, input=json.dumps(measured), text=True, check=True)


if __name__ == "__main__":
    main()
