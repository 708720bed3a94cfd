"""From answers to figures.

TTFT
    From sending a request, a new connection included, to its first piece of text, be it reasoning.
TPOT
    From the first piece of an answer to its last, divided by its tokens less one.
ITL
    Between two pieces of one answer; a piece may hold several tokens.
E2E
    From sending a request to the end of its answer.

Counts of tokens are the server's. Where it gives none for an answer, the figures count pieces.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from .answer import Answer

PERCENTS = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class Distribution:
    """Of a latency in milliseconds; percentiles are interpolated between neighbours."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class Failures:
    """Of one kind."""

    count: int
    example: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of one load, or of a part of its answers; what cannot be said is ``None``.

    Attributes:
        part: Which answers; empty for all.
        output_unit: ``token`` or ``chunk``: what is counted in all figures of output.
        wall_s: ``None`` for answers between which others were given; rates are too.
        input_tokens: Sums over good answers, as are the next two.
        goodput_s: Requests a second that kept to all limits.
        goodput_share: Of all requests, failed ones included.
        late_ms: How long after its due time a request was sent, with a rate.
        client_cpu_share: Of one processor.
    """

    part: str
    requests: int
    succeeded: int
    failures: dict[str, Failures]
    cut: int
    wall_s: float | None
    output_unit: str
    input_tokens: int | None
    cached_tokens: int | None
    output_tokens: int
    requests_s: float | None
    output_tokens_s: float | None
    total_tokens_s: float | None
    goodput_s: float | None
    goodput_share: float | None
    ttft_ms: Distribution | None
    first_answer_ms: Distribution | None
    tpot_ms: Distribution | None
    itl_ms: Distribution | None
    e2e_ms: Distribution | None
    late_ms: Distribution | None
    client_cpu_share: float | None


def make_figures(
    answers: Sequence[Answer],
    *,
    part: str = "",
    wall_s: float | None,
    cpu_s: float | None = None,
    cut: int = 0,
    slo: Mapping[str, float],
) -> Figures:
    """Work everything out."""
    good = [answer for answer in answers if answer.failure is None]
    has_tokens = all(answer.output_tokens is not None or not answer.piece_times for answer in good)

    def num_outputs(answer: Answer) -> int:
        return (answer.output_tokens or 0) if has_tokens else len(answer.piece_times)

    def tpot(answer: Answer) -> float | None:
        steps = num_outputs(answer) - 1
        # In a single piece nothing can be timed.
        if steps < 1 or len(answer.piece_times) < 2:
            return None
        return (answer.piece_times[-1] - answer.piece_times[0]) / steps

    of_answer: dict[str, Callable[[Answer], float | None]] = {
        "ttft": _ttft,
        "tpot": tpot,
        "e2e": lambda answer: answer.ended_at - answer.started_at,
    }

    def keeps_to_limits(answer: Answer) -> bool:
        values = {name: of_answer[name](answer) for name in slo}
        return all(value is None or value * 1000 <= slo[name] for name, value in values.items())

    num_kept = sum(keeps_to_limits(answer) for answer in good) if slo else None
    inputs = _sum(answer.prompt_tokens for answer in good)
    outputs = sum(num_outputs(answer) for answer in good)
    gaps = (later - at for a in good for at, later in itertools.pairwise(a.piece_times))
    reasoned = any(answer.has_reasoning for answer in good)
    return Figures(
        part=part,
        requests=len(answers),
        succeeded=len(good),
        failures=count_failures(answers),
        cut=cut,
        wall_s=wall_s,
        output_unit="token" if has_tokens else "chunk",
        input_tokens=inputs,
        cached_tokens=_sum(answer.cached_tokens for answer in good),
        output_tokens=outputs,
        requests_s=_rate(len(good), wall_s),
        output_tokens_s=_rate(outputs or None, wall_s),
        total_tokens_s=None
        if inputs is None or not has_tokens
        else _rate(inputs + outputs, wall_s),
        goodput_s=_rate(num_kept, wall_s),
        goodput_share=num_kept / len(answers) if num_kept is not None and answers else None,
        ttft_ms=_distribution(_ttft(answer) for answer in good),
        first_answer_ms=_distribution(_first_answer(a) for a in good) if reasoned else None,
        tpot_ms=_distribution(tpot(answer) for answer in good),
        itl_ms=_distribution(gaps),
        e2e_ms=_distribution(answer.ended_at - answer.started_at for answer in good),
        late_ms=_distribution(answer.late_s for answer in answers),
        client_cpu_share=_rate(cpu_s, wall_s),
    )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of values in order, between two of them by how near each is."""
    position = (len(ordered) - 1) * percent / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def count_failures(answers: Iterable[Answer]) -> dict[str, Failures]:
    """By kind, the most frequent first, with the detail of the first of its kind."""
    found: dict[str, list[str]] = {}
    for answer in answers:
        if answer.failure is not None:
            found.setdefault(answer.failure.kind, []).append(answer.failure.detail)
    by_count = sorted(found.items(), key=lambda item: -len(item[1]))
    return {kind: Failures(len(details), details[0]) for kind, details in by_count}


def _ttft(answer: Answer) -> float | None:
    return answer.piece_times[0] - answer.started_at if answer.piece_times else None


def _first_answer(answer: Answer) -> float | None:
    at = answer.first_answer_at
    return None if at is None else at - answer.started_at


def _distribution(seconds: Iterable[float | None]) -> Distribution | None:
    ordered = sorted(value * 1000 for value in seconds if value is not None)
    if not ordered:
        return None
    mean = sum(ordered) / len(ordered)
    percents = (round(percentile(ordered, percent), 3) for percent in PERCENTS)
    return Distribution(len(ordered), round(mean, 3), *percents)


def _sum(counts: Iterable[int | None]) -> int | None:
    """``None`` if any of them is unknown."""
    known = list(counts)
    return None if None in known or not known else sum(count or 0 for count in known)


def _rate(amount: float | None, wall_s: float | None) -> float | None:
    return round(amount / wall_s, 4) if amount is not None and wall_s else None
