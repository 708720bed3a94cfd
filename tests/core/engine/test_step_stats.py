"""What steps tell of their time, by a clock that only the device, the host and drafts move."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from engine_driver import build, greedy, make_request
from tiny_models import make_tiny_model

from pippin.core.engine import engine as engine_module
from pippin.core.engine import step_under_way
from pippin.core.engine.engine import Engine
from pippin.core.engine.stats import SpeculationStatus, StepStats
from pippin.core.speculation.stats import DraftCounts

BUILD_S, DEVICE_S, BETWEEN_S, DRAFT_S = 1.0, 10.0, 2.0, 5.0


class Timed:
    """An engine whose every part takes as long as is said above."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        self.now = 1000.0
        clock = SimpleNamespace(monotonic=lambda: self.now)
        for module in (engine_module, step_under_way):
            monkeypatch.setattr(module, "time", clock)
        self.engine: Engine = build(make_tiny_model("llama-tied"), **settings).engine
        self._execute = self.engine._runner.execute
        monkeypatch.setattr(self.engine._runner, "execute", self._run)

    def add(self, request_id: str, *, num_tokens: int) -> None:
        self.engine.add(make_request(request_id, [1, 2, 3], greedy(num_tokens)))

    def finish(self) -> list[StepStats]:
        told = []
        while self.engine.has_work:
            stats = self.engine.step().stats
            told += [stats] if stats is not None else []
            self.now += BETWEEN_S
        return told

    def _run(self, schedule: Any, masks: Any) -> Any:
        in_flight = self._execute(schedule, masks)
        self.now += BUILD_S

        def read() -> Any:
            self.now += DEVICE_S
            return in_flight.read()

        return SimpleNamespace(read=read)


class SlowDrafts:
    """Always on, slow, and without an idea."""

    def __init__(self, timed: Timed) -> None:
        self._timed = timed
        self.told: list[float] = []

    def is_on(self, num_sequences: int) -> bool:
        return num_sequences > 0

    def propose(self, *_: object) -> dict[Any, Any]:
        self._timed.now += DRAFT_S
        return {}

    def status(self, _: int) -> SpeculationStatus:
        return SpeculationStatus(proposer="slow", counts=DraftCounts(), gain=None, is_on=True)

    def observe(self, _: object, num_tokens: int, seconds: float, **__: object) -> None:
        self.told.append(seconds)

    def forget(self, _: object) -> None: ...


def test_steps_that_overlap_leave_no_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = Timed(monkeypatch)
    timed.add("a", num_tokens=4)
    first, *rest = timed.finish()

    assert first.duration_s == BUILD_S + BETWEEN_S + BUILD_S + DEVICE_S
    for step in rest[:-1]:
        assert step.duration_s == BETWEEN_S + BUILD_S + DEVICE_S
    assert {step.gap_s for step in (first, *rest)} == {0.0}
    assert timed.engine.stats().speculation is None


def test_drafts_are_made_in_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = Timed(monkeypatch)
    timed.engine._speculator = drafts = SlowDrafts(timed)  # type: ignore[assignment]
    timed.add("a", num_tokens=6)
    steps = timed.finish()

    middle = steps[2:-1]
    assert len(middle) > 1
    assert {step.gap_s for step in middle} == {DRAFT_S}
    assert {step.duration_s for step in middle} == {BUILD_S + BETWEEN_S + DEVICE_S}
    # What drafts cost counts against them.
    assert set(drafts.told[2:-1]) == {DRAFT_S + BUILD_S + BETWEEN_S + DEVICE_S}
    status = timed.engine.stats().speculation
    assert status is not None
    assert status.proposer == "slow"


def test_durations_and_gaps_are_all_the_time_in_which_there_was_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timed = Timed(monkeypatch, max_num_seqs=1)
    for pause in (0.0, 500.0):
        timed.now += pause  # nobody asks for anything, and no step is blamed for it
        started_at = timed.now
        timed.add(f"a{pause}", num_tokens=3)
        timed.add(f"b{pause}", num_tokens=3)  # waits for its turn, which leaves a gap
        steps = timed.finish()
        total = sum(step.duration_s + step.gap_s for step in steps)
        assert sum(step.gap_s for step in steps) > 0
        assert total == timed.now - BETWEEN_S - started_at
