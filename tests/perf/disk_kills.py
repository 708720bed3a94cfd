"""Kills `pippin serve` with SIGKILL while it writes to its disk cache, again and again.

Run by hand: ``python tests/perf/disk_kills.py --rounds 200``. A tiny random model, a cap that is
always reached, four callers. Each start has to give the same answers as a server without a disk
cache, before the kill and while it writes; what the killed server leaves is within the cap, and
`verify` finds nothing there that it cannot repair. Prints one line of JSON; exits with 1 otherwise.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from tiny_models import save_tiny_model

from pippin.core.cache.disk.maintenance import verify
from pippin.core.cache.disk.record_file import disk_bytes

CAP = 8 * 1024**2
_CALLERS = 4
_START_TIMEOUT_S = 60.0
_ANSWER_TOKENS = 8
# Of kills, those that come while a server starts.
_EARLY = 0.15
_LONGEST_START_S = 3.0


def make_prompts(chosen: random.Random, count: int) -> list[list[int]]:
    """Token ids; some prompts begin alike, and together they are more than the cap holds."""
    heads = [[chosen.randrange(200) for _ in range(320)] for _ in range(4)]
    return [
        heads[chosen.randrange(4)][: chosen.randrange(320)]
        + [chosen.randrange(200) for _ in range(chosen.randrange(32, 600))]
        for _ in range(count)
    ]


class Server:
    """One process of `pippin serve`."""

    def __init__(self, model: Path, folder: Path, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [sys.executable, "-m", "pippin.cli", "serve", str(model), *options]
        command += ["--port", str(self.port), "--kv-cache-memory", "2MB", "--max-model-len", "1024"]
        command += ["--kv-disk-dir", str(folder), "--response-store", "off"]
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 -- as long as the server
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def wait_ready(self) -> bool:
        """Whether it came to answer before it ended."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "it did not start"
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return True
            time.sleep(0.02)
        return False

    def ask(self, prompt: list[int]) -> list[str] | None:
        """The greedy answer's tokens, or ``None`` if the server died over it."""
        body = {"model": "model", "prompt": prompt, "max_tokens": _ANSWER_TOKENS, "temperature": 0}
        body |= {"ignore_eos": True, "logprobs": 0}
        with suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            connection.request("POST", "/v1/completions", json.dumps(body))
            reply: Any = json.loads(connection.getresponse().read())
            assert "choices" in reply, reply
            return list(reply["choices"][0]["logprobs"]["tokens"])
        return None

    def metric(self, name: str) -> int:
        """A counter, or 0 if the server died over it."""
        with suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
            return int(float(text.partition(f"\n{name} ")[2].partition("\n")[0]))
        return 0

    def kill(self) -> None:
        """Without a word of warning."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def said(self) -> str:
        """All that it wrote."""
        self.log.seek(0)
        return self.log.read().decode(errors="replace")


@contextmanager
def started(model: Path, folder: Path, *options: str) -> Iterator[Server]:
    """A server that is killed at the end of the block, if not before."""
    server = Server(model, folder, *options)
    try:
        yield server
    finally:
        server.kill()
        server.log.close()


def folder_bytes(folder: Path) -> int:
    """Of all files, as the cap counts them: whole blocks of the file system."""
    total = 0
    for base, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += disk_bytes((Path(base) / name).stat().st_size)
    return total


class Kills:
    """All rounds on one folder."""

    def __init__(self, work: Path, seed: int) -> None:
        self.chosen = random.Random(seed)
        self.model = save_tiny_model("llama-tied", work / "model")
        self.folder, self.copy = work / "kv", work / "copy"
        self.prompts = make_prompts(self.chosen, 48)
        with started(self.model, self.folder, "--kv-disk-size", "off") as server:
            assert server.wait_ready(), server.said()
            self.expected = [server.ask(prompt) for prompt in self.prompts]
        assert None not in self.expected
        self.counts = Counter[str]()

    def round(self) -> None:
        """Start, compare, load, kill, look at what is left."""
        with started(self.model, self.folder, "--kv-disk-size", str(CAP)) as server:
            is_early = self.chosen.random() < _EARLY
            if is_early:
                threading.Timer(self.chosen.uniform(0, _LONGEST_START_S), server.kill).start()
            is_ready = server.wait_ready()
            assert is_ready or is_early, server.said()
            if is_ready:
                for number in self.chosen.sample(range(len(self.prompts)), 2):
                    self.compare(server, number)
                self.counts["restored"] += server.metric("pippin_disk_restored_records_total")
                self.load(server, self.chosen.uniform(0, 1.5))
            server.kill()
            said = server.said()
            assert "Traceback" not in said, said
            self.counts["warnings"] += said.count("WARNING")
        self.counts["rounds"] += 1
        num_bytes = folder_bytes(self.folder)
        self.counts["most_bytes"] = max(self.counts["most_bytes"], num_bytes)
        assert num_bytes <= CAP, f"{num_bytes} bytes"
        self.check_copy()

    def compare(self, server: Server, number: int) -> None:
        """Ask for one prompt. A server that is dead is none that is wrong."""
        answer = server.ask(self.prompts[number])
        if answer is not None:
            self.counts["answers"] += 1
            self.counts["wrong"] += answer != self.expected[number]

    def load(self, server: Server, seconds: float) -> None:
        """Callers without a pause; the kill comes in the middle of whatever they ask."""

        def call(seed: int) -> None:
            chosen = random.Random(seed)
            while server.process.poll() is None:
                self.compare(server, chosen.randrange(len(self.prompts)))

        seeds = [self.chosen.random() for _ in range(_CALLERS)]
        threads = [threading.Thread(target=call, args=(seed,)) for seed in seeds]
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        server.process.send_signal(signal.SIGKILL)
        for thread in threads:
            thread.join()

    def check_copy(self) -> None:
        """Verify a copy, so that the next server finds what the killed one left."""
        shutil.rmtree(self.copy, ignore_errors=True)
        if not self.folder.exists():
            return
        shutil.copytree(self.folder, self.copy)
        found = verify(self.copy)
        self.counts["records"] = found.num_records
        self.counts["damaged"] += len(found.damaged)
        assert not found.unreadable
        again = verify(self.copy)
        assert not again.damaged
        assert again.num_records == found.num_records - len(found.damaged)
        repairs = again.repairs
        assert (repairs.adopted, repairs.removed_rows, repairs.removed_files) == (0, 0, 0)


def main() -> None:
    """Run the rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no round after these")
    options = parser.parse_args()
    began_at = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        kills = Kills(Path(work), options.seed)
        for number in range(options.rounds):
            if time.monotonic() - began_at > options.seconds:
                break
            kills.round()
            if number % 10 == 9:
                print(dict(kills.counts), file=sys.stderr, flush=True)
    print(json.dumps({**kills.counts, "seconds": round(time.monotonic() - began_at)}))
    sys.exit(1 if kills.counts["wrong"] or kills.counts["damaged"] else 0)


if __name__ == "__main__":
    main()
