"""How a quantised layer multiplies at how many rows, chosen from measured times.

Four ways give the same numbers up to rounding. *Stock* is mlx's quantised kernel on the rows as
they are. *Padded* is the same kernel on more rows, for backends where few rows cost more than some
more. *Dense* unpacks the weights first, which pays once enough rows share the unpacked ones.
*Own* is our own quantised kernel, where there is one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

# What must be won for leaving the stock way; less is noise.
MARGIN = 0.95


@dataclass(frozen=True, slots=True)
class LinearShape:
    """What the speed of a quantised layer depends on.

    Attributes:
        num_experts: 0 for an ordinary layer.
        dtype: Of the activations, such as ``bfloat16``.
    """

    input_dims: int
    output_dims: int
    num_experts: int
    bits: int
    group_size: int
    mode: str
    dtype: str

    def __str__(self) -> str:
        experts = f"{self.num_experts}x" if self.num_experts else ""
        weights = f"{self.mode} {self.bits}-bit group {self.group_size}"
        return f"{experts}{self.input_dims}->{self.output_dims} {weights} {self.dtype}"


@dataclass(frozen=True, slots=True)
class LinearTimings:
    """Seconds that one product takes, by number of rows.

    Attributes:
        padded: Rows that were run in place of the key, and the seconds.
    """

    stock: Mapping[int, float]
    padded: Mapping[int, tuple[int, float]] = field(default_factory=dict)
    dense: Mapping[int, float] = field(default_factory=dict)
    own: Mapping[int, float] = field(default_factory=dict)

    def seconds(self, rows: int) -> float:
        """Of a few rows, by the best way but the dense one."""
        bucket = max(bucket for bucket in self.stock if bucket <= rows)
        padded, own = self.padded.get(bucket, (0, math.inf))[1], self.own.get(bucket, math.inf)
        return min(self.stock[bucket], padded, own)

    def to_json(self) -> dict[str, Any]:
        """The same for `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> LinearTimings:
        """The inverse of `to_json`, through JSON, which turns keys into strings."""
        return cls(
            stock={int(rows): seconds for rows, seconds in record["stock"].items()},
            padded={
                int(rows): (target, seconds) for rows, (target, seconds) in record["padded"].items()
            },
            dense={int(rows): seconds for rows, seconds in record["dense"].items()},
            own={int(rows): seconds for rows, seconds in record["own"].items()},
        )


@dataclass(frozen=True, slots=True)
class LinearPlan:
    """What to do at how many rows.

    Attributes:
        padded: Entry ``rows - 1`` is how many rows to run; past its end, as many as there are.
        dense_from: Rows from which the dense way is taken; ``None`` for never.
        own: Ranges of rows where our own kernel is taken, whatever else is said.
    """

    padded: tuple[int, ...] = ()
    dense_from: int | None = None
    own: tuple[range, ...] = ()

    def is_own(self, rows: int) -> bool:
        """Whether our own kernel is taken."""
        return any(rows in span for span in self.own)

    def is_dense(self, rows: int) -> bool:
        """Whether the dense way is taken, if our own kernel is not."""
        return self.dense_from is not None and rows >= self.dense_from

    def rows_to_run(self, rows: int) -> int:
        """How many rows the quantised kernel is given, at least `rows`."""
        return self.padded[rows - 1] if 0 < rows <= len(self.padded) else rows

    def __str__(self) -> str:
        runs = [f"{rows} as {run}" for rows, run in enumerate(self.padded, 1) if run != rows]
        dense = [] if self.dense_from is None else [f"dense from {self.dense_from}"]
        own = [f"own kernel from {span.start} to {span[-1]}" for span in self.own]
        return ", ".join(runs + dense + own) or "stock"


def choose_plan(timings: LinearTimings) -> LinearPlan:
    """The fastest way at each number of rows; between those measured, that of the next lower."""
    padded: list[int] = []
    if timings.padded:
        for bucket, following in pairwise(sorted(timings.stock)):
            target, seconds = timings.padded.get(bucket, (0, math.inf))
            wins = seconds < MARGIN * timings.stock[bucket]
            padded += [target if wins else rows for rows in range(bucket, following)]
    while padded and padded[-1] == len(padded):
        padded.pop()
    return LinearPlan(tuple(padded), _dense_from(timings), tuple(_own_ranges(timings)))


def _dense_from(timings: LinearTimings) -> int | None:
    """Where the dense way begins to win for good.

    Both ways take a constant and so much a row, so between a loss and a win the advantage grows
    along a straight line.
    """
    best, best_gain = None, 0.0
    for rows in sorted(timings.dense, reverse=True):
        gain = MARGIN * timings.stock[rows] - timings.dense[rows]
        if gain <= 0:
            if best is None:
                return None
            return rows + math.ceil((best - rows) * -gain / (best_gain - gain))
        best, best_gain = rows, gain
    return best


def _own_ranges(timings: LinearTimings) -> list[range]:
    """Where our own kernel wins: between two measured numbers of rows, if it wins at both.

    Its time goes up in steps, so that a win tells nothing of the rows behind it.
    """
    ranges: list[range] = []
    is_inside = False
    for rows in sorted(timings.own):
        others = (
            timings.stock[rows],
            timings.padded.get(rows, (0, math.inf))[1],
            timings.dense.get(rows, math.inf),
        )
        wins = timings.own[rows] < MARGIN * min(others)
        if wins:
            start = ranges.pop().start if is_inside else rows
            ranges.append(range(start, rows + 1))
        is_inside = wins
    return ranges
