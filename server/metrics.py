"""Numbers of the engine and of HTTP, kept until somebody scrapes them.

`observe_step` runs on the engine thread, all else on the event loop. The exposition formats are
`exposition.py`'s business.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from pippin.core.engine.stats import StepStats
from pippin.core.request import FinishReason

from .histogram import (
    SECONDS_BETWEEN,
    SECONDS_OF_HTTP,
    SECONDS_OVERALL,
    SECONDS_TO_FIRST,
    TOKENS_OF_STEP,
    Histogram,
)


class Metrics:
    """Everything counted since the start. Readers hold `reading`, writers lock by themselves.

    Attributes:
        requests: Generation requests by (endpoint, outcome); an outcome is ``completed``,
            ``failed`` or ``client_gone``. Those refused before are among `http_seconds`.
        answers: Answers that ended in the engine, by finish reason.
        http_seconds: Durations by (path template, method, status).
        step_s: Durations of steps: ``decode`` only drew tokens, ``prefill`` ran prompt tokens, too.
        step_gap_s: Time between steps, while there was work.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.requests: Counter[tuple[str, str]] = Counter()
        self.answers: Counter[FinishReason] = Counter()
        self.http_seconds: dict[tuple[str, str, int], Histogram] = {}
        self.num_steps = 0
        self.num_prompt_tokens = 0
        self.num_output_tokens = 0
        self.num_prefix_queries = 0
        self.num_prefix_hits = 0
        self.num_disk_hits = 0
        self.num_preempted = 0
        self.ttft_s = Histogram(SECONDS_TO_FIRST)
        self.inter_token_s = Histogram(SECONDS_BETWEEN)
        self.e2e_s = Histogram(SECONDS_OVERALL)
        self.queue_s = Histogram(SECONDS_OVERALL)
        self.step_tokens = Histogram(TOKENS_OF_STEP)
        self.step_s = {kind: Histogram(SECONDS_BETWEEN) for kind in ("decode", "prefill")}
        self.step_gap_s = 0.0

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keep all writers out for as long as the block lasts."""
        with self._lock:
            yield

    def observe_step(self, step: StepStats) -> None:
        """Take in one engine step. A `StepObserver`."""
        with self._lock:
            if step.duration_s > 0:  # else it tells only of answers that were given up or failed
                self.num_steps += 1
                self.step_tokens.observe((step.num_prefill_tokens + step.num_decode_tokens,))
                kind = "prefill" if step.num_prefill_tokens else "decode"
                self.step_s[kind].observe((step.duration_s,))
            self.step_gap_s += step.gap_s
            # Of ended answers it would count a prompt n times, and late.
            self.num_prompt_tokens += step.num_prefill_tokens + step.num_prefix_hits
            self.num_output_tokens += step.num_decode_tokens
            self.num_prefix_queries += step.num_prefix_queries
            self.num_prefix_hits += step.num_prefix_hits
            self.num_disk_hits += step.num_disk_hits
            self.num_preempted += step.num_preempted
            self.ttft_s.observe(step.ttft_s)
            self.inter_token_s.observe(step.inter_token_s)
            self.queue_s.observe(step.queue_s)
            for answer in step.finished:
                self.answers[answer.finish_reason] += 1
                self.e2e_s.observe((answer.e2e_s,))

    def observe_request(self, endpoint: str, outcome: str) -> None:
        """Count one generation request that has ended, whatever way."""
        with self._lock:
            self.requests[endpoint, outcome] += 1

    def observe_http(self, path: str, method: str, status: int, seconds: float) -> None:
        """Count one HTTP request. ``path`` is a route's template, never what a caller sent."""
        with self._lock:
            key = (path, method, status)
            if key not in self.http_seconds:
                self.http_seconds[key] = Histogram(SECONDS_OF_HTTP)
            self.http_seconds[key].observe((seconds,))
