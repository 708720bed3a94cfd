"""Sends thousands of mixed requests through one engine with a small cache and a small disk cache.

Run by hand: ``python tests/perf/soak.py --requests 10000``. A tiny random model; prompts new,
repeated and begun alike, answers of all lengths, several at a time, stop strings, requests given
up. After every step the pools have to add up, at every look the disk cache has to be within its
cap, a few greedy answers have to stay what they were, and the memory of the process must not grow
once it is warm. Prints one line of JSON; exits with 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter, deque
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from disk_kills import CAP, folder_bytes
from engine_driver import bytes_per_token, greedy, make_request
from tiny_models import make_tiny_model

from pippin.core.config import CacheConfig, EngineConfig, SchedulerConfig
from pippin.core.engine.factory import build_engine
from pippin.core.request import FinishReason
from pippin.core.runner.model_adapter import describe_layout
from pippin.core.sampling_params import SamplingParams

_MOST_IN_FLIGHT = 12
_NUM_KEPT = 200
_LOOK_EVERY = 50
_MOST_GROWTH = 0.02
_WARM_SHARE = 0.25
_FEWEST = 2000  # with less, it only gets warm
_CACHE_TOKENS = 2500
# A tiny model computes faster than a disk syncs; what waits for it would count as growth.
_MOST_QUEUED = 256 * 1024


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Soak:
    """One engine, and what it was asked."""

    def __init__(self, family: str, folder: Path, seed: int) -> None:
        self.chosen = random.Random(seed)
        self.folder = folder
        loaded = make_tiny_model(family)
        states = 2 * 16 * describe_layout(loaded.model)[0].state_bytes
        config = EngineConfig(
            max_model_len=1024,
            cache=CacheConfig(
                block_size=16,
                max_bytes=2 * states + _CACHE_TOKENS * bytes_per_token(loaded),
                disk_folder=folder,
                disk_bytes=CAP,
            ),
            scheduler=SchedulerConfig(max_num_seqs=16, prefill_chunk=256),
        )
        self.engine = build_engine(loaded, config).engine
        self.heads = [self.text(400) for _ in range(4)]
        self.kept: deque[list[int]] = deque(maxlen=_NUM_KEPT)
        self.unfinished: dict[str, int] = {}
        self.give_up_at: dict[str, int] = {}
        self.answers: dict[str, list[int]] = {}
        self.counts = Counter[str]()
        self.resident: list[int] = []

    def text(self, length: int) -> list[int]:
        """Random token ids."""
        return [self.chosen.randrange(200) for _ in range(length)]

    def prompt(self) -> list[int]:
        """A new one, one that begins like others, or one of the last ones again."""
        kind = self.chosen.random()
        if kind < 0.3 and self.kept:
            return self.chosen.choice(self.kept)
        head = self.chosen.choice(self.heads)[: self.chosen.randrange(400)] if kind < 0.7 else []
        self.kept.append(head + self.text(int(2 ** self.chosen.uniform(0, 9))))
        return self.kept[-1]

    def params(self) -> SamplingParams:
        """Any length and temperature, and sometimes a stop string."""
        stop = (chr(self.chosen.randrange(97, 123)),) if self.chosen.random() < 0.3 else ()
        return SamplingParams(
            max_tokens=self.chosen.randrange(1, 24),
            temperature=self.chosen.choice((0.0, 0.7, 1.0)),
            stop=stop,
        )

    def add(self) -> None:
        """One more request."""
        self.counts["requests"] += 1
        request_id = f"r{self.counts['requests']}"
        num_answers = self.chosen.choice((1, 1, 1, 2, 3))
        request = make_request(request_id, self.prompt(), self.params(), n=num_answers)
        self.engine.add(request)
        self.unfinished[request_id] = num_answers
        if self.chosen.random() < 0.1:
            self.give_up_at[request_id] = self.counts["steps"] + self.chosen.randrange(20)

    def step(self) -> None:
        """One step of the engine, and what it must leave behind."""
        result = self.engine.step()
        self.engine.scheduler.check_integrity()
        self.counts["steps"] += 1
        while (disk := self.engine.stats().disk) is not None and disk.queued_bytes > _MOST_QUEUED:
            time.sleep(0.005)
            self.engine._advance_disk()
        for output in result.outputs:
            if output.request_id in self.answers:
                self.answers[output.request_id] += output.token_ids
            if output.finish_reason is not None:
                assert output.finish_reason is not FinishReason.ERROR, output.error
                self.counts["answers"] += 1
                self.unfinished[output.request_id] -= 1
                if not self.unfinished[output.request_id]:
                    del self.unfinished[output.request_id]
                    self.give_up_at.pop(output.request_id, None)
        if result.stats is not None:
            self.counts["prompt_tokens"] += result.stats.num_prefix_queries
            self.counts["cached_tokens"] += result.stats.num_prefix_hits
            self.counts["from_disk"] += result.stats.num_disk_hits
            self.counts["preempted"] += result.stats.num_preempted
        for request_id, step in list(self.give_up_at.items()):
            if step <= self.counts["steps"]:
                self.counts["given_up"] += 1
                self.engine.abort(request_id)
                del self.give_up_at[request_id], self.unfinished[request_id]

    def ask(self, prompts: list[list[int]]) -> list[list[int]]:
        """Greedy answers, when nothing else runs."""
        self.answers = {f"ask{number}": [] for number in range(len(prompts))}
        for request_id, prompt in zip(self.answers, prompts, strict=True):
            self.engine.add(make_request(request_id, prompt, greedy(16)))
            self.unfinished[request_id] = 1
        while self.unfinished:
            self.step()
        answers, self.answers = list(self.answers.values()), {}
        return answers

    def run(self, num_requests: int) -> None:
        """All of it."""
        prompts = [self.heads[0][:300], self.text(200), [7]]
        before = self.ask(prompts)
        while self.counts["requests"] < num_requests or self.unfinished:
            while self.counts["requests"] < num_requests and (
                len(self.unfinished) < _MOST_IN_FLIGHT and self.chosen.random() < 0.8
            ):
                self.add()
                if self.counts["requests"] % _LOOK_EVERY == 0:
                    self.look()
            self.step()
        assert self.ask(prompts) == before, "answers have changed"
        while self.engine.has_work:
            self.step()
        stats = self.engine.stats()
        assert stats.num_free_blocks + stats.num_evictable_blocks == stats.num_blocks
        assert stats.disk is not None
        for name in ("spilled", "restored", "evicted", "dropped", "corrupt", "missing"):
            self.counts[name] = getattr(stats.disk, name)
        self.engine.close()
        self.look()

    def look(self) -> None:
        """Note memory and disk."""
        self.resident.append(resident_bytes())
        num_bytes = folder_bytes(self.folder)
        self.counts["most_disk_bytes"] = max(self.counts["most_disk_bytes"], num_bytes)
        assert num_bytes <= CAP, f"{num_bytes} bytes"

    @property
    def growth(self) -> float:
        """From when it was warm to the end, relative."""
        num_looks = len(self.resident)
        warm = int(num_looks * _WARM_SHARE)
        few = max(1, num_looks // 10)
        return median(self.resident[-few:]) / median(self.resident[warm : warm + few]) - 1


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--family", default="llama-tied")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began_at = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(options.family, Path(folder), options.seed)
        soak.run(options.requests)
    told = {"resident_growth": round(soak.growth, 4), "resident_mib": soak.resident[-1] >> 20}
    print(json.dumps({**soak.counts, **told, "seconds": round(time.monotonic() - began_at)}))
    sys.exit(1 if options.requests >= _FEWEST and soak.growth > _MOST_GROWTH else 0)


if __name__ == "__main__":
    main()
