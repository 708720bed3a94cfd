"""The governor against simulated servers, whose true costs it is not told."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pippin.core.speculation.governor import DecodeStep, Governor

DRAFT = 4


@dataclass
class Server:
    """Runs steps as the governor wishes.

    Attributes:
        plain: Mean seconds of a plain step, by number of sequences.
        cost: Mean duration of a speculative step, in plain steps.
        predictability: Chance that a guess is right.
        noise: Standard deviation of a step's duration, as a share of it.
        drafts_are_free: Whether drafts are judged while speculation is off.
        lost: Seconds that each step took beyond what its tokens take without speculation.
        speculative: Whether each step was speculative.
    """

    plain: Callable[[int], float] = lambda _: 0.01
    cost: float = 1.3
    predictability: float = 0.5
    noise: float = 0.1
    num_sequences: int = 1
    drafts_are_free: bool = True
    seed: int = 0
    governor: Governor = field(default_factory=Governor)
    seconds: list[float] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)
    speculative: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        # What each sequence's open draft gives, and how much of that has been drawn.
        self._open: list[tuple[int, int]] = []

    @property
    def usual(self) -> float:
        """Mean seconds of a plain step."""
        return self.plain(self.num_sequences)

    def run(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self._step()

    def share(self, last: int) -> float:
        """Share of the last steps that were speculative."""
        return sum(self.speculative[-last:]) / last

    def worst_stretch(self) -> float:
        """The most that any stretch of time lost beyond 2 % of it, in seconds."""
        beyond = (lost - 0.02 * taken for lost, taken in zip(self.lost, self.seconds, strict=True))
        worst = lowest = 0.0
        for total in accumulate(beyond):
            worst = max(worst, total - lowest)
            lowest = min(lowest, total)
        return worst

    def _step(self) -> None:
        n = self.num_sequences
        speculates = self.governor.wants_speculation(n)
        num_tokens = sum(self._tokens() for _ in range(n)) if speculates else n
        mean = self.usual * (self.cost if speculates else 1)
        if not speculates and self.speculative[-1:] == [True]:
            mean += self.usual / 2  # nothing was prepared ahead
        self._report(mean * max(0.2, self._random.gauss(1, self.noise)), num_tokens, speculates)
        if not speculates and self.drafts_are_free:
            self._judge_unrun()
        self.lost.append(mean - num_tokens / n * self.usual)

    def _report(self, seconds: float, num_tokens: int, speculates: bool) -> None:
        self.governor.observe(
            DecodeStep(
                seconds=seconds,
                num_sequences=self.num_sequences,
                num_tokens=num_tokens,
                is_speculative=speculates,
            )
        )
        self.seconds.append(seconds)
        self.speculative.append(speculates)

    def _judge_unrun(self) -> None:
        n = self.num_sequences
        self._open = [(given, drawn + 1) for given, drawn in self._open[:n]]
        closed = [given for given, drawn in self._open if drawn == given]
        self._open = [(given, drawn) for given, drawn in self._open if drawn < given]
        self._open += [(self._tokens(), 0) for _ in range(n - len(self._open))]
        self.governor.observe_unrun(num_sequences=n, num_steps=len(closed), num_tokens=sum(closed))

    def _tokens(self) -> int:
        count = 1
        while count <= DRAFT and self._random.random() < self.predictability:
            count += 1
        return count


@pytest.mark.parametrize("num_sequences", [1, 7])
@pytest.mark.parametrize("drafts_are_free", [True, False])
@pytest.mark.parametrize(("predictability", "cost"), [(0.3, 1.1), (0.6, 1.5), (0.9, 2.5)])
def test_it_ends_up_on_where_it_pays(
    num_sequences: int, drafts_are_free: bool, predictability: float, cost: float
) -> None:
    server = Server(
        num_sequences=num_sequences,
        drafts_are_free=drafts_are_free,
        predictability=predictability,
        cost=cost,
    )
    server.run(2000)
    assert server.share(1000) > 0.9
    gain = server.governor.gain(num_sequences)
    true_gain = sum(predictability**i for i in range(DRAFT + 1)) / cost
    assert gain == pytest.approx(true_gain, rel=0.25)


@settings(max_examples=60, deadline=None)
@given(
    costs=st.lists(st.floats(1.0, 9.0), min_size=1, max_size=3),
    texts=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6),
    noise=st.sampled_from([0.0, 0.05, 0.1]),
    num_sequences=st.sampled_from([1, 3, 16]),
    drafts_are_free=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_no_stretch_of_time_loses_more_than_the_budget(
    costs: list[float],
    texts: list[float],
    noise: float,
    num_sequences: int,
    drafts_are_free: bool,
    seed: int,
) -> None:
    server = Server(
        noise=noise, num_sequences=num_sequences, drafts_are_free=drafts_are_free, seed=seed
    )
    for i, server.predictability in enumerate(texts):
        server.cost = costs[i % len(costs)]
        server.run(600)
    # The budget and one step that overdraws it; with noise, estimates are a little wrong.
    allowed = 16 + 8 + 300 * noise
    assert server.worst_stretch() < allowed * server.usual


@pytest.mark.parametrize("cost", [1.2, 2.0, 8.0])
@pytest.mark.parametrize("drafts_are_free", [True, False])
def test_a_hopeless_text_costs_next_to_nothing(cost: float, drafts_are_free: bool) -> None:
    server = Server(predictability=0.1, cost=cost, drafts_are_free=drafts_are_free)
    server.run(20_000)
    assert sum(server.lost) < 0.005 * sum(server.seconds)
    assert sum(server.lost[10_000:]) < 0.002 * sum(server.seconds[10_000:])


def test_free_drafts_that_never_fit_are_never_run() -> None:
    server = Server(predictability=0.0)
    server.run(5000)
    assert not any(server.speculative)


def test_it_follows_the_text_both_ways() -> None:
    server = Server(predictability=0.05, cost=1.4)
    server.run(1000)
    for _ in range(3):
        server.predictability = 0.9
        server.run(200)
        assert server.share(120) > 0.9
        server.predictability = 0.05
        server.run(200)
        assert server.share(100) == 0


def test_without_free_drafts_it_finds_out_that_the_text_changed() -> None:
    server = Server(predictability=0.05, cost=1.4, drafts_are_free=False)
    server.run(500)
    server.predictability = 0.9
    server.run(4000)
    assert server.share(1000) > 0.9


def test_success_shortens_the_wait_for_the_next_attempt() -> None:
    server = Server(cost=1.4, drafts_are_free=False)
    for _ in range(4):
        server.predictability = 0.05
        server.run(500)
        server.predictability = 0.9
        server.run(1200)
        assert server.share(300) > 0.9


def test_it_notices_that_speculative_steps_became_slower() -> None:
    server = Server(predictability=0.6, cost=1.2)
    server.run(3000)
    assert server.share(1000) > 0.9
    server.cost = 3.0
    server.run(4000)
    assert sum(server.lost[-2000:]) < 0.01 * sum(server.seconds[-2000:])


def test_numbers_of_sequences_are_told_apart() -> None:
    server = Server(predictability=0.6, plain=lambda n: 0.01 + 0.001 * n)
    for _ in range(8):
        server.num_sequences, server.cost = 1, 1.2
        server.run(300)
        alone = server.share(200)
        server.num_sequences, server.cost = 16, 4.0
        server.run(300)
    assert alone > 0.9
    assert server.share(200) < 0.1


def test_a_step_that_was_held_up_does_not_end_speculation_for_good() -> None:
    server = Server(predictability=0.9)
    while not server.governor.wants_speculation(1):
        server.run(1)
    server._report(60.0, 1, True)  # a kernel was compiled
    server._report(60.0, 1, False)
    server.run(2000)
    assert server.share(500) > 0.9


def test_plain_steps_that_were_held_up_do_not_start_it() -> None:
    server = Server(predictability=0.5, cost=3.0)
    for _ in range(30):
        server._report(60.0, 1, False)
        server.run(40)
    assert server.share(1000) < 0.1


def test_what_it_takes_to_return_to_plain_steps_is_charged() -> None:
    server = Server(predictability=0.9)
    server.run(500)
    assert server.governor.wants_speculation(1)
    for _ in range(6):
        server._report(0.01, 1, True)
        server._report(0.1, 1, False)
    server._report(0.01, 1, True)
    assert not server.governor.wants_speculation(1)


def test_it_notices_that_plain_steps_became_faster() -> None:
    # Other work had slowed the machine down, and plain steps more than speculative ones.
    server = Server(predictability=0.6, cost=1.5, plain=lambda _: 0.03)
    server.run(1000)
    assert server.share(500) > 0.9
    server.plain, server.cost = lambda _: 0.01, 4.5
    server.run(1500)
    assert server.share(500) < 0.1


def test_a_number_of_sequences_not_seen_before_is_measured_first() -> None:
    server = Server(predictability=0.9, num_sequences=3)
    server.run(500)
    assert server.governor.wants_speculation(3)
    assert not server.governor.wants_speculation(4)
    assert server.governor.gain(4) is not None
    assert server.governor.gain(5) is None
    server.num_sequences = 4
    server.run(20)
    assert server.share(10) == 1
