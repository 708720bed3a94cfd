"""When the disk is asked, when it is not, and what of its answer counts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from engine_driver import Answer, EngineDriver, bytes_per_token, greedy, make_request
from tiny_models import make_tiny_model

from pippin.core.cache.disk.reader import Fetch
from pippin.core.cache.disk.record import RecordKey
from pippin.core.cache.disk.tier import DiskTier
from pippin.core.config import CacheConfig, EngineConfig, SchedulerConfig
from pippin.core.engine.disk_cache import DiskCache
from pippin.core.engine.factory import build_engine
from pippin.core.engine.read_costs import ReadCosts
from pippin.core.sampling_params import SamplingParams

BLOCK = 16
MB = 1024**2


class SlowTier:
    """Passes everything on, but answers no fetch until it is told to."""

    def __init__(self, tier: DiskTier) -> None:
        self.tier = tier
        self.fetches: list[tuple[Sequence[RecordKey], Fetch]] = []
        self.held: list[Fetch] = []
        self.is_slow = False

    def __getattr__(self, name: str) -> object:
        return getattr(self.tier, name)

    def fetch(self, keys: Sequence[RecordKey], on_done: object) -> Fetch:
        fetch = Fetch(keys, on_done)  # type: ignore[arg-type]
        self.fetches.append((keys, fetch))
        if not self.is_slow:
            fetch.work(self.tier._read)
        return fetch


class Now:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


class Disk:
    """An engine with a disk cache that the test can look into and hold up."""

    def __init__(self, folder: Path, family: str, *, num_tokens: int = 4096) -> None:
        loaded = make_tiny_model(family)
        config = EngineConfig(
            max_model_len=min(1024, num_tokens),
            cache=CacheConfig(
                block_size=BLOCK,
                max_bytes=num_tokens * bytes_per_token(loaded),
                disk_folder=folder,
                disk_bytes=64 * MB,
            ),
            scheduler=SchedulerConfig(max_num_seqs=4),
        )
        engine = build_engine(loaded, config).engine
        assert engine._disk is not None
        self.cache: DiskCache = engine._disk
        self.driver = EngineDriver(engine)
        self.now = Now()
        self.cache._clock = self.now
        self.tier = SlowTier(self.cache._tier)
        self.cache._tier = self.tier  # type: ignore[assignment]
        self.num_asked = 0

    def ask(
        self, *prompts: Sequence[int], params: SamplingParams | None = None, n: int = 1
    ) -> list[Answer]:
        names = []
        for prompt in prompts:
            names.append(f"r{self.num_asked}")
            self.num_asked += 1
            self.driver.add(make_request(names[-1], prompt, params or greedy(8), n=n))
        self.driver.finish()
        return [self.driver.answers[name, 0] for name in names]

    def forget(self) -> None:
        """As after a restart: nothing in the memory."""
        self.driver.engine.scheduler.cache.clear_index()

    @property
    def num_disk_hits(self) -> int:
        return self.driver.engine.scheduler.num_disk_hits


PROMPT = [(11 * i) % 200 for i in range(20 * BLOCK + 3)]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path, "llama-tied")
    yield made
    made.cache._tier.close()


def test_blocks_come_back_and_are_counted_once(disk: Disk) -> None:
    (cold,) = disk.ask(PROMPT)
    assert disk.num_disk_hits == 0
    disk.forget()
    (warm,) = disk.ask(PROMPT)
    assert warm.token_ids == cold.token_ids
    assert warm.num_cached_tokens == disk.num_disk_hits == 20 * BLOCK
    (again,) = disk.ask(PROMPT)
    assert again.num_cached_tokens == disk.num_disk_hits
    stats = disk.driver.engine.stats().disk
    assert stats is not None
    assert (stats.restored, stats.queued_bytes) == (20, 0)
    assert stats.spilled == stats.num_records >= 20


def test_all_that_waits_to_be_written_is_queued(disk: Disk) -> None:
    disk.driver.add(make_request("r", PROMPT, greedy(8)))
    while disk.driver.engine.scheduler.has_work:
        disk.driver.step()
    block = bytes_per_token(make_tiny_model("llama-tied")) * BLOCK
    assert disk.cache.stats().queued_bytes == 20 * block
    disk.forget()  # so that nothing of it is left to be copied
    disk.driver.finish()
    assert disk.cache.stats().queued_bytes == 0
    disk.ask(PROMPT)
    assert disk.cache.stats().queued_bytes == 0


def test_blocks_and_states_leave_together(tmp_path: Path) -> None:
    """One kind a step would fall behind, and the memory would lose them before they are copied."""
    disk = Disk(tmp_path, "lfm2", num_tokens=4 * MB // 64)
    for number in range(3):
        disk.driver.add(make_request(f"r{number}", PROMPT[number:], greedy(8)))
    while disk.driver.engine.scheduler.has_work:
        disk.driver.step()
    disk.cache.advance()
    assert not disk.cache._outbox._waiting
    disk.driver.finish()
    stats = disk.cache.stats()
    assert stats.dropped == 0
    assert stats.num_records == 3 * (20 + 1)  # each prompt's blocks and the state behind them
    disk.cache._tier.close()


@pytest.mark.parametrize("measure", ["queued_bytes", "queued_records"])
def test_a_long_queue_is_not_made_longer(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, measure: str
) -> None:
    monkeypatch.setattr(DiskTier, measure, property(lambda _: 1 << 40))
    disk.driver.add(make_request("r", PROMPT, greedy(8)))
    while disk.driver.engine.scheduler.has_work:
        disk.driver.step()
    disk.cache.advance()
    assert len(disk.cache._outbox._waiting) == 20
    assert not disk.cache._outbox.is_copying
    monkeypatch.undo()
    disk.driver.finish()
    assert disk.cache.stats().num_records == 20


def test_what_the_memory_has_is_not_read(disk: Disk) -> None:
    disk.ask(PROMPT)
    disk.forget()
    disk.ask(PROMPT[: 10 * BLOCK + 1])
    assert disk.num_disk_hits == 10 * BLOCK
    disk.ask(PROMPT)
    assert disk.num_disk_hits == 20 * BLOCK
    assert [len(keys) for keys, _ in disk.tier.fetches] == [10, 10]


def test_prompts_that_arrive_together_are_read_once(disk: Disk) -> None:
    (cold,) = disk.ask(PROMPT)
    disk.forget()
    warm = disk.ask(PROMPT, PROMPT[:-1], PROMPT, n=2)
    assert len(disk.tier.fetches) == 1
    assert [answer.num_cached_tokens for answer in warm] == [20 * BLOCK] * 3
    assert disk.num_disk_hits == 20 * BLOCK
    assert warm[0].token_ids == warm[2].token_ids == cold.token_ids


def test_prompt_logprobs_are_computed_without_asking_the_disk(disk: Disk) -> None:
    disk.ask(PROMPT)
    disk.forget()
    disk.ask(PROMPT, params=greedy(1, num_prompt_logprobs=0))
    assert disk.tier.fetches == []


def test_others_run_while_one_waits_for_the_disk(disk: Disk) -> None:
    (cold,) = disk.ask(PROMPT)
    disk.forget()
    disk.tier.is_slow = True
    disk.driver.add(make_request("waits", PROMPT, greedy(8)))
    disk.driver.add(make_request("runs", PROMPT[5:80], greedy(8)))
    for _ in range(20):
        disk.driver.step()
    assert disk.driver.answers["runs", 0].finish_reason is not None
    assert disk.driver.answers["waits", 0].token_ids == []
    ((_, fetch),) = disk.tier.fetches
    fetch.work(disk.tier.tier._read)
    disk.driver.finish()
    assert disk.driver.answers["waits", 0].token_ids == cold.token_ids
    assert disk.num_disk_hits == 20 * BLOCK


def test_a_disk_that_does_not_answer_is_not_waited_for(
    disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    (cold,) = disk.ask(PROMPT)
    disk.forget()
    disk.tier.is_slow = True
    disk.driver.add(make_request("waits", PROMPT, greedy(8)))
    for _ in range(3):
        disk.driver.step()
    assert disk.driver.answers["waits", 0].token_ids == []
    disk.now.seconds += 10.1
    disk.driver.finish()
    assert disk.driver.answers["waits", 0].token_ids == cold.token_ids
    assert disk.driver.answers["waits", 0].num_cached_tokens == 0
    ((_, fetch),) = disk.tier.fetches
    fetch.work(disk.tier.tier._read)  # too late, and nobody listens
    assert "disk_cache_slow" in caplog.text
    # It is known to be slower than computing now.
    disk.forget()
    disk.ask(PROMPT)
    assert len(disk.tier.fetches) == 1


def test_who_goes_away_while_it_waits_leaves_nothing(disk: Disk) -> None:
    disk.ask(PROMPT)
    disk.forget()
    disk.tier.is_slow = True
    disk.driver.engine.add(make_request("gone", PROMPT, greedy(8)))
    disk.driver.engine.step()
    assert disk.cache.is_busy
    disk.driver.engine.abort("gone")
    disk.driver.engine.step()
    assert not disk.cache.is_busy
    disk.driver.check_idle()


def test_what_would_push_itself_out_is_not_read(tmp_path: Path) -> None:
    small = Disk(tmp_path, "llama-tied", num_tokens=24 * BLOCK)
    small.ask(PROMPT)
    small.forget()
    small.ask(PROMPT)
    assert small.num_disk_hits == 20 * BLOCK
    # With a running answer in the way, the rest of the pool would not hold it.
    small.forget()
    small.driver.add(make_request("long", PROMPT[7:110], greedy(40)))
    small.driver.step()
    small.ask(PROMPT)
    assert small.num_disk_hits == 20 * BLOCK
    small.cache._tier.close()


def test_a_fault_of_the_disk_cache_switches_it_off(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (cold,) = disk.ask(PROMPT)
    monkeypatch.setattr(disk.cache._outbox, "_copy_out", lambda: 1 / 0)
    disk.ask(PROMPT[1:])
    assert "the disk cache is switched off" in caplog.text
    disk.forget()
    assert disk.ask(PROMPT)[0].token_ids == cold.token_ids
    assert disk.driver.engine.stats().disk is None


def test_numbers_that_are_none_are_not_kept(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    keep = disk.cache.keep
    poisoned = threading.Event()

    def poison(sequence: object) -> None:
        store = disk.cache._copies._store
        array = store.arrays()[0]
        array[:] = float("nan")
        poisoned.set()
        keep(sequence)  # type: ignore[arg-type]

    disk.cache.keep = poison  # type: ignore[method-assign]
    disk.ask(PROMPT)
    assert poisoned.is_set()
    assert disk.tier.tier.stats().spilled == 0
    assert "hold no numbers" in caplog.text


@pytest.mark.parametrize("family", ["llama-tied", "lfm2"])
def test_saved_states_are_counted(family: str, tmp_path: Path) -> None:
    disk = Disk(tmp_path, family, num_tokens=4 * MB // 64)
    before = disk.driver.engine.stats()
    disk.ask(PROMPT)
    after = disk.driver.engine.stats()
    assert before.num_states == 0
    if family == "lfm2":
        assert 0 < after.num_states <= after.max_states
    else:
        assert (after.num_states, after.max_states) == (0, 0)
    disk.cache._tier.close()


def test_the_debug_line_says_what_was_skipped(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    disk.ask(PROMPT)
    disk.forget()
    disk.cache._costs = ReadCosts(lambda tokens: tokens * 1e-6)
    disk.cache._costs.observe(1, 1000.0)
    caplog.set_level(logging.DEBUG, logger="pippin.core.engine")
    disk.ask(PROMPT)
    assert "disk_skipped request_id=r1 tokens=320" in caplog.text
    assert "prefix_match request_id=r1 blocks=0 from_disk=0 of=20" in caplog.text


def test_reading_is_chosen_by_what_both_have_taken() -> None:
    costs = ReadCosts(lambda tokens: tokens / 1000)  # 1000 tokens a second
    assert costs.is_worth_it(10**12, 1)  # nothing was measured yet
    costs.observe(100 * MB, 1.0)
    assert costs.is_worth_it(149 * MB, 1000)
    assert not costs.is_worth_it(200 * MB, 1000)
    assert costs.is_worth_it(0, 1)
    unknown = ReadCosts(lambda tokens: None)
    unknown.observe(1, 1000.0)
    assert unknown.is_worth_it(10**12, 1)


def test_a_disk_that_was_slow_once_is_tried_again() -> None:
    costs = ReadCosts(lambda tokens: tokens / 1000)
    costs.observe(100 * MB, 1.0)
    costs.observe(10 * MB, 10.0)  # somebody else was busy with it
    tries = [costs.is_worth_it(100 * MB, 1000) for _ in range(40)]
    assert not tries[0]
    assert tries[-1]
    assert np.diff(np.array(tries, int)).min() == 0  # once worth it, it stays so
