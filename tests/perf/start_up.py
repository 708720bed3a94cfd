"""From ``pippin serve`` to the first token, as a caller sees it.

Run by hand: ``python tests/perf/start_up.py [--model demo] [--rounds 5]``. The model must be on
disk.
A caller tries again until it gets an answer to a short greedy question, streamed. Files are as warm
as the round before left them. A line for each round goes to stderr, one of JSON to stdout.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

_RETRY_S = 0.01
_TIMEOUT_S = 120.0
_CHAT = {
    "model": "model",
    "messages": [{"role": "user", "content": "Say hello."}],
    "max_tokens": 4,
    "temperature": 0,
    "stream": True,
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo", help="as for `pippin serve`")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve-args", default="", help="further options")
    args = parser.parse_args()
    rounds = []
    for _ in range(args.rounds):
        rounds.append(_measure(args.model, args.serve_args.split()))
        print(json.dumps(rounds[-1]), file=sys.stderr, flush=True)
    medians = {key: statistics.median(it[key] for it in rounds) for key in rounds[0]}
    print(json.dumps({"model": args.model, "rounds": args.rounds, "medians": medians}))


def _measure(model: str, options: list[str]) -> dict[str, float]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "pippin.cli", "serve", model, "--port", str(port)]
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.monotonic()
    process = subprocess.Popen(
        [*command, "--served-model-name", "model", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PIPPIN_KV_DISK_SIZE": "off"},
        start_new_session=True,
    )
    times: dict[str, float] = {}
    try:
        while "first_token_s" not in times:
            if process.poll() is not None or time.monotonic() - begun > _TIMEOUT_S:
                raise SystemExit(f"{command} did not answer")
            with contextlib.suppress(OSError, http.client.HTTPException):
                _ask(port, begun, times)
            time.sleep(_RETRY_S)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    times["cpu_s"] = used.ru_utime + used.ru_stime - spent.ru_utime - spent.ru_stime
    return {key: round(value, 2) for key, value in times.items()}


def _ask(port: int, begun: float, times: dict[str, float]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    try:
        connection.connect()
        times.setdefault("listens_s", time.monotonic() - begun)
        body = json.dumps(_CHAT)
        connection.request(
            "POST", "/v1/chat/completions", body, {"content-type": "application/json"}
        )
        reply = connection.getresponse()
        if reply.status != http.HTTPStatus.OK:
            return  # still loading
        for line in reply:
            if line.startswith(b"data: {") and _text(json.loads(line.removeprefix(b"data: "))):
                times["first_token_s"] = time.monotonic() - begun
                return
    finally:
        connection.close()


def _text(chunk: dict[str, Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])


if __name__ == "__main__":
    main()
