"""A histogram that takes many observations under one lock of its owner.

prometheus_client's own takes a lock per observation and label lookup, and the engine thread would
pay that for every token of every step, twice, since most numbers have two names.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

_MINUTES = (60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 3600.0)
SECONDS_TO_FIRST = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 30.0, *_MINUTES),
)
SECONDS_BETWEEN = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0),
)
SECONDS_OVERALL = (
    *(0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 45.0),
    *_MINUTES,
)
SECONDS_OF_HTTP = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
TOKENS_OF_STEP = tuple(float(2**power) for power in range(15))


class Histogram:
    """Counts of observations by upper bound.

    Args:
        bounds: Upper bounds, inclusive, ascending; infinity is added.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._total = 0.0

    @property
    def total(self) -> float:
        """Sum of all observations."""
        return self._total

    def observe(self, values: Iterable[float]) -> None:
        """Add observations."""
        bounds, counts = self._bounds, self._counts
        for value in values:
            counts[bisect_left(bounds, value)] += 1
            self._total += value

    def buckets(self) -> list[tuple[str, float]]:
        """``(upper bound, observations up to it)``, cumulative, the last one ``+Inf``."""
        rows = []
        cumulative = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            cumulative += count
            rows.append((bound, float(cumulative)))
        return rows
