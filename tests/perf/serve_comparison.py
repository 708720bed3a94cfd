"""pippin and another server: same machine, weights and prompts, in one run.

Run by hand, on a quiet machine::

    python tests/perf/serve_comparison.py [--model demo] [--clients 1,4,16,64]
    python tests/perf/serve_comparison.py --peer llama_cpp --model FILE.gguf [--peer-python PYTHON]

The other is ``python -m mlx_lm server`` or llama-cpp-python's. The latter reads the GGUF itself and
multiplies in 8 bits; with the former both load one folder (``same_weights.py``) and use the same
BLAS with as many threads. They keep their other defaults and stay up for the whole run; whichever
is not measured is stopped with SIGSTOP. Each level of clients is warmed up once and then measured
in rounds of pippin, peer, pippin, peer, so that a drift of the machine meets both.

The clients (``stream_load.py``, a process of its own) form a closed loop: each sends its next
request when its last answer has ended. Requests are greedy and stream, with usage. Their prompts
have some 50 to 400 tokens, are the same for both servers, and begin with a number of their own, so
that no prefix cache has seen them.

``comparison_report.py`` says what the figures mean. A table goes to stderr, one line of JSON to
stdout.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from server_process import Server, load, running, say
from workloads import MODEL_NAME, make_jobs

_HERE = Path(__file__).parent
_WARM_UP_TOKENS = 8
_PEERS = {
    "mlx_lm": ("mlx_lm", "server"),
    # A new request would break off the one before it.
    "llama_cpp": (
        *("llama_cpp.server", "--model_alias", MODEL_NAME),
        *("--n_ctx", "2048", "--interrupt_requests", "false"),
    ),
}


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
    parser.add_argument("--peer", choices=list(_PEERS), default="mlx_lm", help="the other server")
    parser.add_argument("--peer-python", default=sys.executable, help="that has it installed")
    parser.add_argument("--peer-args", type=shlex.split, default=[], help="further options")
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
    ours = ["pippin.cli", "serve", folder, "--served-model-name", MODEL_NAME, *args.pippin_args]
    is_mlx = args.peer == "mlx_lm"
    theirs = [*_PEERS[args.peer], "--model", folder if is_mlx else args.model, *args.peer_args]
    levels = []
    with (
        tempfile.TemporaryDirectory(prefix="serve-comparison-") as logs,
        running("pippin", ours, log=Path(logs, "pippin"), environment=environment) as pippin,
        running(
            args.peer,
            theirs,
            log=Path(logs, args.peer),
            environment=environment | preload if is_mlx else {},
            python=args.peer_python,
        ) as peer,
    ):
        pippin.pause()
        peer.pause()
        for num_clients, num_requests in zip(args.clients, args.requests, strict=True):
            levels.append(measure_level([pippin, peer], num_clients, num_requests, args))
    about = {
        "command": shlex.join(["python", *sys.argv]),
        "versions": {n: importlib.metadata.version(n) for n in ("pippin", "mlx", "mlx-lm")},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        **{key: weights[key] for key in ("device", "dtype", "blas")},
        "blas_threads": threads,
    }
    measured = {"about": about, "servers": ["pippin", args.peer], "levels": levels}
    report = [sys.executable, str(_HERE / "comparison_report.py")]
    subprocess.run(report, input=json.dumps(measured), text=True, check=True)


if __name__ == "__main__":
    main()
