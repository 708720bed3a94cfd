"""When sessions of a rate begin."""

from __future__ import annotations

import random
from itertools import islice, pairwise
from statistics import mean

import pytest

from pippin.cli.bench.load import due_times
from pippin.cli.bench.plan import Arrival, Level


def test_a_constant_rate_is_even() -> None:
    level = Level(request_rate=4.0, arrival=Arrival.CONSTANT)
    assert list(islice(due_times(level, random.Random(0)), 4)) == [0.0, 0.25, 0.5, 0.75]


def test_poisson_has_the_rate_and_the_spread_of_its_name() -> None:
    level = Level(request_rate=4.0, arrival=Arrival.POISSON)
    times = list(islice(due_times(level, random.Random(0)), 4001))
    gaps = [later - at for at, later in pairwise(times)]
    assert mean(gaps) == pytest.approx(0.25, rel=0.05)
    assert mean(gap**2 for gap in gaps) == pytest.approx(2 * 0.25**2, rel=0.1)  # of an exponential
    again = list(islice(due_times(level, random.Random(0)), 4001))
    assert again == times
