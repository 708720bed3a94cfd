"""What ``gpu_comparison.py`` measures on a running server, one row of figures at a time.

Times are the client's. ``tok_s`` is output tokens by the server's usage per second of wall time,
prefill and all; steps and gaps are seconds between two pieces of text of one answer.
"""

from __future__ import annotations

import contextlib
import itertools
import operator
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from comparison_report import figures, percentile, rounded
from server_process import Server, load
from workloads import make_jobs

Row: TypeAlias = dict[str, Any]
Jobs: TypeAlias = list[dict[str, Any]]

_FEW_TOKENS = 4
_SERVE_FIGURES = (
    *("ttft_p50_s", "ttft_p99_s", "inter_token_p50_s", "inter_token_p99_s"),
    *("requests", "prompt_tokens", "failures"),
)
_GAP_COUNTERS = ("pippin_inter_token_seconds_sum", "pippin_inter_token_seconds_count")
_DRAFT_COUNTERS = (
    "vllm:spec_decode_num_draft_tokens_total",
    "vllm:spec_decode_num_accepted_tokens_total",
)
_REQUESTS_ALONE = 3  # of a single client in a round: its figures vary most


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is asked; lengths in tokens.

    Attributes:
        clients: Of ``serve``.
        rows: Answers that run together in the other parts.
        decode: Answers of ``context``.
        stalled: Answers that run when the prompt of ``arriving`` comes, after ``start_after``.
        repeated: Texts to repeat, and their answers.
        rounds: Times that things are measured.
    """

    clients: tuple[int, ...] = (1, 16, 64)
    rows: int = 16
    prompt: int = 230
    answer: int = 128
    short: int = 512
    long: int = 4096
    longest: int = 32768
    decode: int = 256
    prefill: int = 8192
    arriving: int = 16384
    stalled: int = 512
    start_after: int = 100
    repeated: int = 256
    rounds: int = 2


TINY_SIZES = Sizes(
    clients=(1, 3),
    rows=3,
    prompt=40,
    answer=8,
    short=48,
    long=128,
    longest=512,
    decode=48,
    prefill=256,
    arriving=512,
    stalled=64,
    start_after=8,
    repeated=48,
    rounds=1,
)


@dataclass(frozen=True, slots=True)
class Bench:
    """A server, and how much may be asked of it until when."""

    server: Server
    sizes: Sizes
    ends_at: float

    def load(self, jobs: Jobs, num_clients: int | None = None) -> dict[str, Any]:
        """Send jobs, each by a client of its own if not said otherwise."""
        left_s = self.ends_at - time.monotonic()
        return load(self.server, num_clients or len(jobs), jobs, timeout_s=max(0.1, left_s))

    def counters(self, *names: str) -> list[float]:
        """These of its metrics, summed over labels; 0 where there is none."""
        lines: list[str] = []
        with contextlib.suppress(OSError):
            lines = self.server.get("/metrics").splitlines()
        found = [line.rpartition(" ") for line in lines]
        return [
            sum(float(value) for series, _, value in found if series.partition("{")[0] == name)
            for name in names
        ]


def serve(bench: Bench) -> Iterator[Row]:
    """Throughput by clients, a request each (three for one); ``by_first`` is by the fewest."""
    sizes = bench.sizes
    first = None
    for num_clients in sizes.clients:
        bench.load(
            _stories(f"warm-up {num_clients}", [sizes.prompt] * num_clients, sizes.answer // 8)
        )
        lengths = [sizes.prompt] * num_clients * (_REQUESTS_ALONE if num_clients == 1 else 1)
        found = figures(
            [
                bench.load(_stories(f"{num_clients} {turn}", lengths, sizes.answer), num_clients)
                for turn in range(sizes.rounds)
            ]
        )
        first = first or found["output_tok_s"]
        yield {
            "case": f"{num_clients} clients",
            "failed": f"{sum(found['failures'].values())} of {found['requests']}",
            "tok_s": found["output_tok_s"],
            "by_first": _ratio(found["output_tok_s"], first),
            **{key: found[key] for key in _SERVE_FIGURES},
        }


def context(bench: Bench) -> Iterator[Row]:
    """Decoding with long contexts, while all answers of a case run.

    ``by_lengths`` of the mixed case is its step by the one that a straight line through the two
    even cases gives for the sum of its lengths: 1 if a step costs what its contexts hold, and far
    more if each row costs as much as the longest.
    """
    sizes = bench.sizes
    others = sizes.rows - 1
    cases = {
        f"{sizes.rows} x {sizes.short}": [sizes.short] * sizes.rows,
        f"{sizes.rows} x {sizes.long}": [sizes.long] * sizes.rows,
        f"1 x {sizes.longest} + {others} x {sizes.short}": [sizes.longest] + [sizes.short] * others,
    }
    steps: list[tuple[int, float]] = []
    for case, lengths in cases.items():
        jobs = _stories(case, lengths, sizes.decode)
        if lengths[0] > lengths[-1]:
            for job in jobs[1:]:
                job["start_after"] = 2  # there may be an event before the first token's
        # Of the same prompts: what a prefix cache holds of them makes the answers start together.
        bench.load([{**job, "max_tokens": sizes.decode // 8} for job in jobs])
        before = bench.counters(*_GAP_COUNTERS)
        samples = _good(bench.load(jobs))
        gap_sum, num_gaps = map(operator.sub, bench.counters(*_GAP_COUNTERS), before)
        speed = _speed_together(samples) if len(samples) == len(jobs) else None
        if speed:
            num_tokens = sum(sample["prompt_tokens"] for sample in samples)
            steps.append((num_tokens, sizes.rows / speed))
        yield {
            "case": case,
            "failed": f"{len(jobs) - len(samples)} of {len(jobs)}",
            "decode_tok_s": speed,
            "step_s": _ratio(sizes.rows, speed),
            "by_lengths": _ratio(steps[2][1], _on_line(*steps)) if len(steps) == 3 else None,
            "engine_gap_s": _ratio(gap_sum, num_gaps),
        }


def prefill(bench: Bench) -> Iterator[Row]:
    """One long prompt at a time."""
    length = bench.sizes.prefill
    bench.load(_stories("warm-up", [length], _FEW_TOKENS))
    samples = _good(bench.load(_stories("prefill", [length] * 3, _FEW_TOKENS), 1))
    waits = [sample["first_at"] - sample["sent_at"] for sample in samples]
    computed = [sample["prompt_tokens"] - sample["cached_tokens"] for sample in samples]
    yield {
        "case": f"{length} tokens",
        "failed": f"{3 - len(samples)} of 3",
        "prefill_tok_s": rounded(sum(computed) / sum(waits)) if waits else None,
        "ttft_p50_s": rounded(statistics.median(waits)) if waits else None,
    }


def stall(bench: Bench) -> Iterator[Row]:
    """Gaps of running answers while a long prompt arrives: until its first token, and before."""
    sizes = bench.sizes
    lengths = [sizes.short] * (sizes.rows - 1) + [sizes.arriving]
    before, within, ttft = list[float](), list[float](), list[float]()
    num_failed = 0
    for turn in range(-1, sizes.rounds):
        jobs = _stories(f"stall {turn}", lengths, sizes.stalled)
        jobs[-1] |= {"max_tokens": _FEW_TOKENS, "start_after": sizes.start_after}
        samples = bench.load(jobs)["samples"]
        if turn < 0:
            continue  # that was to warm up
        num_failed += len(samples) - len(_good(samples))
        arrived = samples[-1]
        if arrived["error"] is not None:
            continue
        since, until = arrived["sent_at"], arrived["first_at"]
        ttft.append(until - since)
        running = _good(samples[:-1])
        all_run_at = max((sample["first_at"] for sample in running), default=since)
        for start, stop in (gap for each in running for gap in itertools.pairwise(_times(each))):
            if start >= all_run_at and stop <= since:
                before.append(stop - start)
            # The one that a stall has made longer may end after the prompt's first token.
            elif stop > since and start < until:
                within.append(stop - start)
    usual, p50, p99 = percentile(before, 50), percentile(within, 50), percentile(within, 99)
    yield {
        "case": f"{sizes.arriving} into {sizes.rows - 1} x {sizes.short}",
        "failed": f"{num_failed} of {len(lengths) * sizes.rounds}",
        "p50_before_s": usual,
        "p50_s": p50,
        "p99_s": p99,
        "max_s": percentile(within, 100),
        "p99_by_before": _ratio(p99, usual),
        "p99_by_p50": _ratio(p99, p50),
        "gaps": len(within),
        "ttft_s": percentile(ttft, 50),
    }


def speculation(
    plain: Bench, guessing: Bench, workloads: dict[str, Callable[..., Jobs]]
) -> Iterator[Row]:
    """Two servers in turns, both paused to begin with.

    Args:
        workloads: Give so many jobs, from a ``seed``.
    """
    sizes = plain.sizes
    for num_clients, (name, make) in itertools.product((1, sizes.rows), workloads.items()):
        runs: tuple[list[dict[str, Any]], ...] = ([], [])
        before = counted = [0.0, 0.0]
        for turn in range(-1, sizes.rounds):
            count = _REQUESTS_ALONE if num_clients == 1 else num_clients
            jobs = make(count, seed=f"{name} {num_clients} {turn}")
            pairs = [*zip((plain, guessing), runs, strict=True)]
            # In changing order, for a drift of the machine to meet both.
            for bench, mine in pairs[:: -1 if turn % 2 else 1]:
                bench.server.resume()
                if bench is guessing and turn == 0:
                    before = bench.counters(*_DRAFT_COUNTERS)
                mine.append(bench.load(jobs, num_clients))
                if bench is guessing:
                    counted = bench.counters(*_DRAFT_COUNTERS)
                bench.server.pause()
        off, on = (figures(mine[1:]) for mine in runs)
        texts = [[s.get("text") for run in mine[1:] for s in run["samples"]] for mine in runs]
        yield {
            "case": f"{name}, {num_clients} clients",
            "failed": sum(off["failures"].values()) + sum(on["failures"].values()),
            "off_tok_s": off["output_tok_s"],
            "tok_s": on["output_tok_s"],
            "by_off": _ratio(on["output_tok_s"], off["output_tok_s"]),
            "drafted": counted[0] - before[0],
            "accepted": counted[1] - before[1],
            "output": on["output_tokens"],
            "same_text": f"{sum(a == b for a, b in zip(*texts, strict=True))} of {len(texts[0])}",
        }


def _stories(seed: str, lengths: Sequence[int], max_tokens: int) -> Jobs:
    return [
        make_jobs(1, seed=f"{seed} {index}", max_tokens=max_tokens, num_tokens=length)[0]
        for index, length in enumerate(lengths)
    ]


def _good(answered: dict[str, Any] | list[Row]) -> list[Row]:
    samples = answered["samples"] if isinstance(answered, dict) else answered
    return [sample for sample in samples if sample["error"] is None]


def _times(sample: Row) -> Iterator[float]:
    """When its pieces of text came."""
    return itertools.accumulate(sample["gaps"], initial=sample["first_at"])


def _speed_together(samples: Sequence[Row]) -> float | None:
    """Output tokens per second while all answers run; ``None`` if they never do."""
    since = max(sample["first_at"] for sample in samples)
    until = min(sample["done_at"] for sample in samples)
    if since >= until:
        return None
    num_tokens = 0.0
    for sample in samples:
        num_pieces = sum(since < at <= until for at in _times(sample))
        num_tokens += num_pieces * sample["output_tokens"] / (1 + len(sample["gaps"]))
    return rounded(num_tokens / (until - since))


def _on_line(first: tuple[int, float], second: tuple[int, float], at: tuple[int, float]) -> float:
    slope = (second[1] - first[1]) / (second[0] - first[0])
    return first[1] + slope * (at[0] - first[0])


def _ratio(value: float | None, base: float | None) -> float | None:
    return rounded(value / base) if value and base else None
