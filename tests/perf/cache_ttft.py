"""Time to the first token of one long prompt: computed, found in memory, read from the disk.

Run by hand, on a quiet machine::

    python tests/perf/cache_ttft.py [--model demo] [--tokens 8000] [--rounds 3]

In each round a fresh ``pippin serve`` computes a prompt of seeded random token ids that nobody has
seen, finds it again, is stopped, and a second one on the same folder reads it. Before that the
system is asked to forget the files' contents (``POSIX_FADV_DONTNEED``, where there is such a
thing). Every server answers another prompt first, so that nothing is measured that only a first
request pays for. Times are what a caller sees, over HTTP, from sending to the first event. A table
goes to stdout: medians of the rounds, in seconds, and how many times faster than computing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import statistics
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from server_process import Server, running, say
from workloads import MODEL_NAME

_WARM_UP_TOKENS = 300
_IDS = range(1000, 30_000)


def first_token_s(server: Server, prompt: list[int]) -> tuple[float, int]:
    """Seconds to the first token, and how many of the prompt were not computed."""
    body = {
        "model": MODEL_NAME,
        "prompt": prompt,
        "max_tokens": 2,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    events: list[Any] = []
    started_at = time.perf_counter()
    seconds = 0.0
    with urllib.request.urlopen(request, timeout=600) as reply:
        for line in reply:
            if line.startswith(b"data: {"):
                seconds = seconds or time.perf_counter() - started_at
                events.append(json.loads(line[6:]))
    return seconds, int(events[-1]["usage"]["prompt_tokens_details"]["cached_tokens"])


def forget_files(folder: Path) -> None:
    """Have the system drop what it keeps in memory of these files."""
    if not hasattr(os, "posix_fadvise"):
        return
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_round(args: argparse.Namespace, number: int) -> dict[str, float]:
    """One round's times, by name."""
    rng = random.Random(f"{args.seed} {number}")
    prompt = rng.choices(_IDS, k=args.tokens)
    with tempfile.TemporaryDirectory(prefix="cache-ttft-", dir=args.folder) as name:
        disk, log = Path(name, "kv"), Path(name, "log")
        command = ["pippin.cli", "serve", args.model, "--served-model-name", MODEL_NAME]
        command += ["--kv-disk-dir", str(disk), "--kv-disk-size", args.disk_size]
        command += ["--response-store", "off", *args.pippin_args]
        times = {}
        for run, names in (("first", ("computed", "memory")), ("second", ("disk",))):
            with running(f"pippin, {run}", command, log=log) as server:
                first_token_s(server, rng.choices(_IDS, k=_WARM_UP_TOKENS))
                for which in names:
                    times[which], num_cached = first_token_s(server, prompt)
                    say(f"{which}: {times[which]:.3f} s, {num_cached} tokens not computed")
            size = sum(path.stat().st_size for path in disk.rglob("*") if path.is_file())
            say(f"on the disk: {size / 1e6:.0f} MB")
            forget_files(disk)
    return times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo", help="'demo', a folder, a .gguf or a hub id")
    parser.add_argument("--tokens", type=int, default=8000, help="of the prompt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the blocks are written")
    parser.add_argument("--disk-size", default="8GiB", help="--kv-disk-size")
    parser.add_argument("--pippin-args", type=shlex.split, default=[], help="further options")
    args = parser.parse_args()
    rounds = [measure_round(args, number) for number in range(args.rounds)]
    medians = {name: statistics.median(times[name] for times in rounds) for name in rounds[0]}
    print("| prefix | TTFT, s | times faster |\n| --- | --- | --- |")
    for name, seconds in medians.items():
        print(f"| {name} | {seconds:.3f} | {medians['computed'] / seconds:.1f} |")


if __name__ == "__main__":
    main()
