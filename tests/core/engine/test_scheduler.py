"""What runs in the next step: one rule of the scheduler after another, by example."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from pippin.core.cache.kv_cache_manager import KVCacheManager
from pippin.core.cache.kv_layout import LayerGroup, blocks_for
from pippin.core.config import SchedulerConfig
from pippin.core.engine.schedule import Schedule, ScheduledSequence
from pippin.core.engine.scheduler import PROMPT_LOGPROBS_CHUNK, Scheduler
from pippin.core.engine.sequence import Sequence, SequenceStatus
from pippin.core.errors import OverloadedError
from pippin.core.request import FinishReason, Request
from pippin.core.sampling_params import SamplingParams

EOS = 2
STOP = 3
SIZE = 4

Draw = Callable[[Sequence, int], int]


def draw_letters(sequence: Sequence, position: int) -> int:
    """Never an end; depends on the position only."""
    return 100 + position


def make_request(
    request_id: str, prompt: int = 8, *, first: int | None = None, n: int = 1, **params: Any
) -> Request:
    """A prompt of its own, unless ``first`` says which tokens it begins with."""
    at = 1000 * ord(request_id[0]) if first is None else first
    salt = params.pop("cache_salt", "")
    return Request(
        request_id=request_id,
        prompt_token_ids=tuple(range(at, at + prompt)),
        params=SamplingParams(**params),
        num_sequences=n,
        cache_salt=salt,
    )


class Loop:
    """An engine's loop around a scheduler: the next step is chosen before the last one is read."""

    def __init__(
        self,
        *,
        windows: tuple[int | None, ...] = (None,),
        num_blocks: int | tuple[int, ...] = 100,
        max_model_len: int = 1000,
        draw: Draw = draw_letters,
        block_size: int = SIZE,
        **config: int,
    ) -> None:
        counts = (num_blocks,) * len(windows) if isinstance(num_blocks, int) else num_blocks
        groups = [
            LayerGroup(layers=(i,), window=window, bytes_per_token=1)
            for i, window in enumerate(windows)
        ]
        self.now = 0.0
        self.cache = KVCacheManager(groups, counts, block_size=block_size, namespace=("m",))
        self.scheduler = Scheduler(
            SchedulerConfig(**config),
            self.cache,
            max_model_len=max_model_len,
            eos_token_ids=(EOS,),
            clock=lambda: self.now,
        )
        self.draw = draw
        self.under_way: Schedule | None = None
        self.num_computed = 0

    def add(self, request: Request) -> list[Sequence]:
        return self.scheduler.add(request)

    def add_one(self, request_id: str, prompt: int = 8, **fields: Any) -> Sequence:
        (sequence,) = self.add(make_request(request_id, prompt, **fields))
        return sequence

    def step(self) -> Schedule:
        """Choose the next step, then read the last one."""
        self.now += 1.0
        schedule = self.scheduler.schedule()
        self.num_computed += sum(item.stop - item.start for item in schedule.scheduled)
        self.read()
        self.under_way = None if schedule.is_empty else schedule
        return schedule

    def read(self) -> list[Sequence]:
        """Read the step under way."""
        changed = []
        if self.under_way is not None:
            drawn = {
                item.sequence.key: [self.draw(item.sequence, item.stop)]
                for item in self.under_way.rows
            }
            changed = self.scheduler.update(self.under_way, drawn)
            self.under_way = None
        self.scheduler.check_integrity()
        return changed

    def run(self, most: int = 2000) -> None:
        """Until everything has ended."""
        while self.scheduler.has_work or self.under_way is not None:
            most -= 1
            assert most, "it does not end"
            self.step()
        assert self.cache.num_free + self.cache.num_evictable == self.cache.num_blocks


def shares(schedule: Schedule) -> dict[str, tuple[int, int, bool]]:
    """By request: start, tokens of the chunk, whether a token is drawn."""
    return {
        item.sequence.request.request_id: (item.start, item.num_prefill, item.samples)
        for item in schedule.scheduled
    }


# Steps and their budget


def test_a_prompt_runs_in_chunks_and_its_last_token_as_a_row() -> None:
    loop = Loop(prefill_chunk=8)
    sequence = loop.add_one("a", 20, max_tokens=2)
    assert shares(loop.step()) == {"a": (0, 8, False)}
    assert shares(loop.step()) == {"a": (8, 8, False)}
    assert shares(loop.step()) == {"a": (16, 3, True)}
    assert shares(loop.step()) == {"a": (20, 0, True)}
    assert sequence.output_token_ids == [120]
    assert loop.step().is_empty
    assert sequence.output_token_ids == [120, 121]
    assert sequence.is_finished


def test_a_step_is_chosen_before_the_last_one_is_read() -> None:
    loop = Loop()
    sequence = loop.add_one("a", 8, max_tokens=9)
    loop.step()
    assert (sequence.num_tokens, sequence.num_pending) == (8, 1)
    loop.step()
    assert (sequence.num_tokens, sequence.num_pending) == (9, 1)
    loop.read()
    assert (sequence.num_tokens, sequence.num_pending) == (10, 0)


def test_the_budget_is_shared_among_the_prompts_in_turn() -> None:
    loop = Loop(prefill_chunk=16)
    for name in "abc":
        loop.add_one(name, 11)
    schedule = loop.step()
    assert shares(schedule) == {"a": (0, 10, True), "b": (0, 6, False)}
    assert schedule.num_prefill_tokens == 16
    assert [item.sequence.key for item in schedule.rows] == [("a", 0)]


def test_prompts_get_the_smaller_budget_while_others_decode() -> None:
    loop = Loop(prefill_chunk=16, mixed_prefill_chunk=4)
    loop.add_one("a", 4)
    loop.step()
    loop.add_one("b", 40)
    assert shares(loop.step()) == {"a": (4, 0, True), "b": (0, 4, False)}
    assert shares(loop.step()) == {"a": (5, 0, True), "b": (4, 4, False)}


def test_a_mixed_budget_above_the_budget_does_not_count() -> None:
    loop = Loop(prefill_chunk=4, mixed_prefill_chunk=16)
    loop.add_one("a", 4)
    loop.step()
    loop.add_one("b", 40)
    assert loop.step().num_prefill_tokens == 4


def test_everyone_who_decodes_draws_in_every_step() -> None:
    loop = Loop(prefill_chunk=8, mixed_prefill_chunk=2, max_num_seqs=3)
    for name in "abc":
        loop.add_one(name, 8)
    loop.add_one("d", 200)
    loop.step()
    for _ in range(20):
        decoding = {s.key for s in loop.scheduler.running if s.num_uncomputed_tokens == 1}
        assert decoding <= {item.sequence.key for item in loop.step().rows}
    assert len(decoding) == 3


def test_no_more_run_than_may() -> None:
    loop = Loop(max_num_seqs=2)
    answers = [
        loop.add_one(name, max_tokens=count) for name, count in zip("abc", (1, 5, 1), strict=True)
    ]
    loop.step()
    assert (loop.scheduler.num_running, loop.scheduler.num_waiting) == (2, 1)
    loop.step()
    assert answers[0].is_finished
    loop.step()
    assert loop.scheduler.running == (answers[1], answers[2])


def test_nobody_overtakes_for_being_short() -> None:
    loop = Loop(num_blocks=10, max_model_len=40)
    loop.add_one("a", 20)
    loop.step()
    long, short = loop.add_one("b", 30, max_tokens=1), loop.add_one("c", 1, max_tokens=1)
    for _ in range(5):
        loop.step()
        assert loop.scheduler.num_waiting == 2
    loop.run()
    assert long.first_token_at is not None
    assert short.first_token_at is not None
    assert long.first_token_at <= short.first_token_at


def test_four_unequal_answers_take_the_blocks_that_their_tokens_need() -> None:
    loop = Loop(num_blocks=64, max_model_len=2048, block_size=32, prefill_chunk=2048)
    sizes = {"a": 1000, "b": 10, "c": 10, "d": 10}
    answers = [loop.add_one(name, size) for name, size in sizes.items()]
    needed = 0
    for _ in range(40):
        loop.step()
        needed = sum(blocks_for(answer.num_computed_tokens, 32) for answer in answers)
        used = loop.cache.num_blocks - loop.cache.num_free - loop.cache.num_evictable
        assert used <= 1.1 * needed
    assert needed >= 32 + 3


def test_a_long_answer_holds_no_more_of_a_window_than_it_looks_at() -> None:
    loop = Loop(windows=(None, 6), prefill_chunk=8)
    answer = loop.add_one("a", 20, max_tokens=100)
    most = 0
    while not answer.is_finished:
        loop.step()
        if answer.num_output_tokens > 1:
            most = max(most, answer.cache.tables[1].num_held)
    assert most <= blocks_for(6, SIZE) + 1
    loop.run()


# Shared prefixes


@pytest.mark.parametrize("windows", [(None,), (None, 6), (6,)])
@pytest.mark.parametrize("length", [3, 4, 5, 16, 17, 19])
def test_a_repeated_prompt_computes_at_most_one_block(
    windows: tuple[int | None, ...], length: int
) -> None:
    loop = Loop(windows=windows)
    loop.add_one("a", length, first=50, max_tokens=3)
    loop.run()
    again = loop.add_one("b", length, first=50, max_tokens=3)
    (item,) = loop.step().scheduled
    assert item.stop - item.start <= SIZE
    assert again.num_cached_tokens == item.start == (length - 1) // SIZE * SIZE
    loop.run()


def test_the_next_turn_of_a_conversation_finds_the_answer_too() -> None:
    loop = Loop()
    answer = loop.add_one("a", 8, max_tokens=9)
    loop.run()
    request = dataclasses.replace(
        make_request("b"), prompt_token_ids=(*answer.token_ids, 7, 7, 7, 7)
    )
    (following,) = loop.add(request)
    loop.step()
    # The last token was drawn but never run.
    assert following.num_cached_tokens == 16
    loop.scheduler.finish(following, FinishReason.ABORT)
    loop.run()


def test_another_salt_finds_nothing() -> None:
    loop = Loop()
    loop.add_one("a", 20, first=50, max_tokens=1)
    loop.run()
    answer = loop.add_one("b", 20, first=50, max_tokens=1, cache_salt="mine")
    loop.run()
    assert answer.num_cached_tokens == 0
    answer = loop.add_one("c", 20, first=50, max_tokens=1, cache_salt="mine")
    loop.run()
    assert answer.num_cached_tokens == 16


def test_a_second_identical_prompt_waits_and_then_shares() -> None:
    loop = Loop(prefill_chunk=8)
    leader = loop.add_one("a", 22, first=50, max_tokens=2)
    follower = loop.add_one("b", 22, first=50, max_tokens=2)
    assert shares(loop.step()) == {"a": (0, 8, False)}
    assert shares(loop.step()) == {"a": (8, 8, False)}
    # Block 4 is under way, and the follower waits for that one too.
    assert shares(loop.step()) == {"a": (16, 5, True)}
    assert shares(loop.step()) == {"a": (22, 0, True), "b": (20, 1, True)}
    shared = [leader.cache.tables[0].block_at(i) for i in range(5)]
    assert shared == [follower.cache.tables[0].block_at(i) for i in range(5)]
    assert follower.num_cached_tokens == 20
    loop.run()
    assert leader.output_token_ids == follower.output_token_ids


def test_others_pass_by_one_that_waits_for_a_prefix() -> None:
    loop = Loop(prefill_chunk=8, mixed_prefill_chunk=8)
    loop.add_one("a", 9, first=50)
    loop.add_one("b", 9, first=50)
    loop.add_one("c", 5)
    loop.step()
    assert shares(loop.step()) == {"a": (9, 0, True), "b": (8, 0, True), "c": (0, 4, True)}


@pytest.mark.parametrize("reason", [FinishReason.ABORT, FinishReason.ERROR])
def test_a_follower_goes_on_where_its_leader_was_aborted(reason: FinishReason) -> None:
    loop = Loop(prefill_chunk=8)
    leader = loop.add_one("a", 40, first=50)
    follower = loop.add_one("b", 40, first=50, max_tokens=2)
    loop.step()
    loop.step()
    loop.scheduler.finish(leader, reason)
    assert shares(loop.step()) == {"b": (16, 8, False)}
    loop.run()
    assert follower.output_token_ids == [140, 141]


def test_a_follower_starts_afresh_when_its_leader_goes_before_the_first_step() -> None:
    loop = Loop(prefill_chunk=8)
    leader = loop.add_one("a", 40, first=50)
    loop.add_one("b", 40, first=50)
    loop.scheduler.finish(leader, FinishReason.ABORT)
    assert shares(loop.step()) == {"b": (0, 8, False)}


def test_answers_of_one_request_share_its_prompt() -> None:
    loop = Loop()
    answers = loop.add(make_request("a", 33, n=3, max_tokens=2))
    loop.run()
    assert [answer.num_cached_tokens for answer in answers] == [0, 32, 32]
    assert loop.num_computed == 33 + 3 * 1 + 2 * 1
    assert [answer.output_token_ids for answer in answers] == [[133, 134]] * 3


def test_prefix_hits_are_counted_once_for_each_answer() -> None:
    loop = Loop()
    loop.add(make_request("a", 33, n=2, max_tokens=2))
    loop.run()
    assert (loop.scheduler.num_prefix_queries, loop.scheduler.num_prefix_hits) == (66, 32)


def test_prompt_logprobs_compute_the_whole_prompt() -> None:
    loop = Loop(prefill_chunk=2048, num_blocks=400)
    loop.add_one("a", 600, first=50, max_tokens=1)
    loop.run()
    answer = loop.add_one("b", 600, first=50, max_tokens=1, num_prompt_logprobs=0)
    chunks = [shares(loop.step())["b"] for _ in range(3)]
    first = PROMPT_LOGPROBS_CHUNK
    assert chunks == [(0, first, False), (first, first, False), (2 * first, 599 - 512, True)]
    loop.run()
    assert answer.num_cached_tokens == 0


def test_prompts_under_way_share_the_budget_too() -> None:
    loop = Loop(prefill_chunk=300, num_blocks=1000)
    for name in "ab":
        loop.add_one(name, 600, num_prompt_logprobs=0)
    assert shares(loop.step()) == {"a": (0, 256, False), "b": (0, 44, False)}
    assert shares(loop.step()) == {"a": (256, 256, False), "b": (44, 44, False)}


def test_prompts_beyond_the_budget_wait_for_the_next_step() -> None:
    loop = Loop(prefill_chunk=600, mixed_prefill_chunk=200, num_blocks=1000)
    loop.add_one("d", 4)
    for name in "abc":
        loop.add_one(name, 600, num_prompt_logprobs=0)
    assert loop.step().num_prefill_tokens == 600
    assert loop.scheduler.num_running == 4
    assert shares(loop.step()) == {"d": (4, 0, True), "a": (256, 200, False)}


# Preemption


def make_tight_loop(**fields: Any) -> tuple[Loop, Sequence, Sequence]:
    """Two answers that do not fit beside each other for long."""
    loop = Loop(num_blocks=8, max_model_len=32, **fields)
    older = loop.add_one("a", 11, max_tokens=12, seed=5)
    younger = loop.add_one("b", 11, max_tokens=12, seed=6)
    return loop, older, younger


def step_until_preempted(loop: Loop) -> Schedule:
    for _ in range(50):
        schedule = loop.step()
        if schedule.preempted:
            return schedule
    raise AssertionError("nobody was preempted")


def test_the_youngest_is_preempted_and_the_older_ones_go_on() -> None:
    loop, older, younger = make_tight_loop()
    schedule = step_until_preempted(loop)
    assert schedule.preempted == (younger,)
    assert [item.sequence for item in schedule.scheduled] == [older]
    assert younger.status is SequenceStatus.WAITING
    assert all(table.num_held == 0 for table in younger.cache.tables)
    loop.run()


def test_a_preempted_sequence_keeps_its_output_tokens_and_its_seed() -> None:
    loop, older, younger = make_tight_loop()
    step_until_preempted(loop)
    before = younger.output_token_ids
    assert before
    assert younger.num_pending == 0
    loop.run()
    assert younger.output_token_ids[: len(before)] == before
    for answer, seed in ((older, 5), (younger, 6)):
        assert answer.output_token_ids == [100 + position for position in range(11, 23)]
        assert (answer.seed, answer.finish_reason) == (seed, FinishReason.LENGTH)


def test_a_resumed_sequence_finds_its_blocks_again() -> None:
    loop, older, younger = make_tight_loop()
    step_until_preempted(loop)
    loop.scheduler.finish(older, FinishReason.ABORT)
    (item,) = loop.step().scheduled
    assert item.sequence is younger
    assert item.start >= 12
    assert younger.num_cached_tokens == 0  # what it finds again is its own work
    loop.run()


def schedule_until_preempted(loop: Loop) -> Schedule:
    """The schedule that preempts, chosen while the step before is still under way."""
    while not (schedule := loop.scheduler.schedule()).preempted:
        loop.read()
        loop.under_way = schedule
    return schedule


def test_a_sequence_preempted_in_mid_step_still_gets_that_steps_token() -> None:
    loop, _, younger = make_tight_loop()
    schedule = schedule_until_preempted(loop)
    assert (younger.num_pending, younger.num_computed_tokens) == (1, 0)
    assert younger in loop.scheduler.touched
    known = younger.num_output_tokens
    assert younger in loop.read()
    assert younger.num_output_tokens == known + 1
    assert younger not in loop.scheduler.touched
    loop.under_way = schedule
    loop.run()
    assert younger.output_token_ids == [100 + position for position in range(11, 23)]


def test_a_sequence_whose_token_is_under_way_is_not_resumed() -> None:
    loop, older, _ = make_tight_loop()
    schedule_until_preempted(loop)
    loop.scheduler.finish(older, FinishReason.ABORT)
    assert loop.scheduler.schedule().is_empty
    loop.read()
    assert shares(loop.step())["b"][2]
    loop.run()


def test_an_answer_may_end_with_the_token_it_was_preempted_for() -> None:
    loop, _, younger = make_tight_loop()
    schedule = schedule_until_preempted(loop)
    loop.draw = lambda sequence, position: EOS
    loop.read()
    assert (younger.is_finished, younger.finish_reason) == (True, FinishReason.STOP)
    assert loop.scheduler.num_waiting == 0
    loop.under_way = schedule
    loop.run()


def test_nobody_is_admitted_in_a_turn_that_preempts() -> None:
    loop, _, younger = make_tight_loop(max_num_seqs=2)
    newcomer = loop.add_one("c", 1, max_tokens=1)
    assert step_until_preempted(loop).preempted == (younger,)
    # There is a place and a block for it now, but whoever lost them comes first.
    assert newcomer.status is SequenceStatus.WAITING
    loop.run()
    assert newcomer.output_token_ids == [101]


def test_preempted_sequences_go_before_newcomers_and_keep_their_order() -> None:
    loop = Loop(num_blocks=9, max_model_len=36)
    answers = [loop.add_one(name, 11, max_tokens=20) for name in "abc"]
    newcomer = loop.add_one("d", 1, max_tokens=1)
    gone: list[Sequence] = []
    while len(gone) < 2:
        gone += loop.step().preempted
    assert gone == [answers[2], answers[1]]
    order: list[str] = []
    while not newcomer.is_finished:
        order += [name for name in shares(loop.step()) if name not in order]
    assert order.index("b") < order.index("d")
    assert order.index("c") < order.index("d")
    loop.run()
    assert {len(answer.output_token_ids) for answer in answers} == {20}


def test_an_older_prompt_takes_the_blocks_of_a_younger_one_that_was_to_draw() -> None:
    loop = Loop(num_blocks=152, max_model_len=604, prefill_chunk=512)
    older = loop.add_one("a", 600, max_tokens=2, num_prompt_logprobs=0)
    younger = loop.add_one("b", 80, max_tokens=20)
    assert shares(loop.step()) == {"a": (0, 256, False), "b": (0, 79, True)}
    assert shares(loop.step()) == {"b": (80, 0, True), "a": (256, 256, False)}
    schedule = loop.step()
    assert shares(schedule) == {"a": (512, 87, True)}
    assert schedule.preempted == (younger,)
    loop.run()
    assert older.output_token_ids == [700, 701]
    assert younger.output_token_ids == [100 + position for position in range(80, 100)]


# Ends


@pytest.mark.parametrize("max_tokens", [1, 2, 7])
def test_exactly_max_tokens_are_drawn(max_tokens: int) -> None:
    loop = Loop()
    answer = loop.add_one("a", 8, max_tokens=max_tokens)
    rows = 0
    while loop.scheduler.has_work:
        rows += len(loop.step().rows)
    assert rows == answer.num_output_tokens == max_tokens
    assert answer.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("max_tokens", [None, 12, 500])
def test_an_answer_ends_where_the_models_context_ends(max_tokens: int | None) -> None:
    loop = Loop(num_blocks=5, max_model_len=20)
    answer = loop.add_one("a", 8, max_tokens=max_tokens)
    loop.run()
    assert answer.num_tokens == 20
    assert answer.finish_reason is FinishReason.LENGTH
    assert loop.num_computed == 19


@pytest.mark.parametrize("prompt", [1, 4, 5, 20])
def test_an_answer_of_no_tokens_ends_after_its_prompt(prompt: int) -> None:
    loop = Loop(num_blocks=5, max_model_len=20, prefill_chunk=3)
    for name in "ab":  # the second time all of it is found
        answer = loop.add_one(name, prompt, first=50, max_tokens=0)
        loop.run()
        assert (answer.num_output_tokens, answer.finish_reason) == (0, FinishReason.LENGTH)
    assert loop.num_computed <= prompt - 1 + SIZE


def test_a_prompt_that_fills_the_context_and_asks_for_nothing_is_admitted() -> None:
    # Room for a first token that is never drawn was asked for: it waited for ever.
    loop = Loop(num_blocks=4, max_model_len=16)
    answer = loop.add_one("a", 16, max_tokens=0, num_prompt_logprobs=0)
    loop.run()
    assert answer.is_finished


def test_an_answer_of_no_tokens_ends_with_its_last_chunk_and_not_before() -> None:
    # It used to end when the last chunk was scheduled, and its logprobs were not read any more.
    loop = Loop(prefill_chunk=8)
    answer = loop.add_one("a", 20, max_tokens=0, num_prompt_logprobs=0)
    for _ in range(3):
        assert not loop.step().is_empty
    assert answer.num_computed_tokens == 19
    assert not answer.is_finished
    assert loop.read() == [answer]
    assert answer.is_finished


def test_a_reused_window_does_not_keep_a_prompt_from_being_admitted() -> None:
    # Reused blocks were counted on top of what a window and a chunk need: it waited for ever.
    loop = Loop(windows=(None, 6), num_blocks=(20, 5), max_model_len=80, prefill_chunk=8)
    loop.add_one("a", 21, first=50, max_tokens=1)
    loop.run()
    answer = loop.add_one("b", 60, first=50, max_tokens=1)
    loop.run()
    assert answer.num_cached_tokens == 20


@pytest.mark.parametrize(
    ("params", "drawn", "length", "reason", "stop_token_id"),
    [
        ({}, {2: EOS}, 3, FinishReason.STOP, EOS),
        ({}, {0: EOS}, 1, FinishReason.STOP, EOS),
        ({}, {1: STOP}, 6, FinishReason.LENGTH, None),
        ({"stop_token_ids": (STOP,)}, {1: STOP}, 2, FinishReason.STOP, STOP),
        ({"ignore_eos": True}, {2: EOS}, 6, FinishReason.LENGTH, None),
        ({"ignore_eos": True, "stop_token_ids": (EOS,)}, {2: EOS}, 3, FinishReason.STOP, EOS),
        ({"ignore_eos": True, "stop_token_ids": (STOP,)}, {3: STOP}, 4, FinishReason.STOP, STOP),
        ({"min_tokens": 2}, {0: EOS, 1: EOS, 2: EOS}, 3, FinishReason.STOP, EOS),
        ({"min_tokens": 2, "stop_token_ids": (STOP,)}, {1: STOP, 4: STOP}, 5, FinishReason.STOP, 3),
        ({"min_tokens": 6}, dict.fromkeys(range(6), EOS), 6, FinishReason.LENGTH, None),
        ({}, {5: EOS}, 6, FinishReason.STOP, EOS),
    ],
)
def test_what_ends_an_answer(
    params: dict[str, Any],
    drawn: Mapping[int, int],
    length: int,
    reason: FinishReason,
    stop_token_id: int | None,
) -> None:
    loop = Loop(draw=lambda sequence, position: drawn.get(position - 8, 100))
    answer = loop.add_one("a", 8, max_tokens=6, **params)
    loop.run()
    assert answer.num_output_tokens == length
    assert (answer.finish_reason, answer.stop_token_id) == (reason, stop_token_id)


def test_the_row_of_an_answer_that_just_ended_is_waste() -> None:
    loop = Loop(draw=lambda sequence, position: EOS)
    answer = loop.add_one("a", 8)
    loop.step()
    schedule = loop.step()
    assert answer.is_finished
    assert [item.sequence for item in schedule.scheduled] == [answer]
    assert loop.read() == []
    assert answer.output_token_ids == [EOS]
    assert answer.num_pending == 0


def test_an_update_that_lacks_an_ended_answers_token_is_fine() -> None:
    loop = Loop()
    answers = [loop.add_one(name) for name in "ab"]
    schedule = loop.scheduler.schedule()
    loop.scheduler.finish(answers[0], FinishReason.ABORT)
    assert loop.scheduler.update(schedule, {("b", 0): [9]}) == [answers[1]]
    assert [answer.output_token_ids for answer in answers] == [[], [9]]
    assert answers[0].num_pending == 0
    loop.scheduler.check_integrity()


def test_finishing_twice_is_harmless_and_the_first_reason_stays() -> None:
    loop = Loop()
    answer = loop.add_one("a", 20)
    loop.step()
    loop.scheduler.finish(answer, FinishReason.STOP)
    free = loop.cache.num_free, loop.cache.num_evictable
    loop.scheduler.finish(answer, FinishReason.ABORT)
    assert answer.finish_reason is FinishReason.STOP
    assert (loop.cache.num_free, loop.cache.num_evictable) == free
    loop.run()


@pytest.mark.parametrize("steps", [0, 1, 2, 4])
def test_an_aborted_sequence_frees_its_blocks_at_once(steps: int) -> None:
    loop = Loop(prefill_chunk=8)
    answer = loop.add_one("a", 20)
    for _ in range(steps):
        loop.step()
    loop.scheduler.finish(answer, FinishReason.ABORT)
    assert loop.cache.num_free + loop.cache.num_evictable == loop.cache.num_blocks
    assert not loop.scheduler.has_work
    loop.run()


def test_what_an_aborted_sequence_computed_is_found_again() -> None:
    loop = Loop(prefill_chunk=8)
    answer = loop.add_one("a", 20, first=50)
    loop.step()
    loop.scheduler.finish(answer, FinishReason.ABORT)
    again = loop.add_one("b", 20, first=50)
    loop.step()
    assert again.num_cached_tokens == 8


# The queue


def test_a_full_queue_refuses_and_stays_as_it_was() -> None:
    loop = Loop(max_queue=2, max_num_seqs=1)
    loop.add_one("a")
    loop.add_one("b")
    with pytest.raises(OverloadedError, match="2 sequences") as refusal:
        loop.add_one("c")
    assert refusal.value.retry_after_s >= 1
    assert loop.scheduler.num_waiting == 2
    loop.step()
    loop.add_one("c")  # one was admitted: there is room again
    assert loop.scheduler.num_waiting == 2


def test_every_answer_of_a_request_takes_a_place_in_the_queue() -> None:
    loop = Loop(max_queue=3)
    loop.add(make_request("a", n=2))
    with pytest.raises(OverloadedError):
        loop.add(make_request("b", n=2))
    assert loop.scheduler.num_waiting == 2
    loop.add(make_request("c", n=1))


def test_seeds_of_one_request_follow_its_own() -> None:
    loop = Loop()
    assert [s.seed for s in loop.add(make_request("a", n=3, seed=40))] == [40, 41, 42]
    assert [s.seed for s in loop.add(make_request("b", n=2, seed=0))] == [0, 1]


def test_requests_without_a_seed_draw_unlike_ones() -> None:
    loop = Loop()
    seeds = [s.seed for name in "abcd" for s in loop.add(make_request(name, n=2))]
    assert len(set(seeds)) == 8


def test_times_are_taken_from_the_clock() -> None:
    loop = Loop(prefill_chunk=8)
    answer = loop.add_one("a", 20, max_tokens=3)
    loop.run()
    # Scheduled in the first step; the third one draws, and the fourth reads it.
    assert (answer.first_scheduled_at, answer.first_token_at) == (1.0, 4.0)


# Faults


def test_after_a_failed_step_nothing_is_found_and_everything_is_free() -> None:
    loop = Loop(num_blocks=8, max_model_len=32)
    for name in "ab":
        loop.add_one(name, 11, first=50)
    waiting = loop.add_one("c", 11, first=50, max_tokens=1)
    loop.step()
    loop.step()
    touched = loop.scheduler.touched
    assert waiting in touched or waiting.status is SequenceStatus.WAITING
    for sequence in touched:
        loop.scheduler.finish(sequence, FinishReason.ERROR)
    loop.under_way = None
    loop.cache.clear_index()
    assert loop.cache.num_free == loop.cache.num_blocks
    loop.scheduler.check_integrity()
    later = loop.add_one("d", 11, first=50, max_tokens=1)
    loop.run()
    assert later.num_output_tokens == 1


def test_a_model_without_blocks_runs_one_after_another() -> None:
    loop = Loop(windows=(), num_blocks=(), max_num_seqs=1, prefill_chunk=8)
    answers = [loop.add_one(name, 20, first=50, max_tokens=3) for name in "ab"]
    loop.run()
    assert [answer.num_cached_tokens for answer in answers] == [0, 0]
    assert [answer.output_token_ids for answer in answers] == [[120, 121, 122]] * 2
    assert loop.num_computed == 2 * 22


def _hold_too_much(loop: Loop, sequence: Sequence) -> None:
    loop.cache.pools[0].retain([sequence.cache.tables[0].block_at(0)])


def _release_twice(loop: Loop, sequence: Sequence) -> None:
    loop.cache.pools[0].release([sequence.cache.tables[0].block_at(0)])


def _forget_a_running_sequence(loop: Loop, sequence: Sequence) -> None:
    loop.scheduler._running.remove(sequence)


def _clear_without_releasing(loop: Loop, sequence: Sequence) -> None:
    sequence.cache.tables[0].clear()


@pytest.mark.parametrize(
    "corrupt",
    [_hold_too_much, _release_twice, _forget_a_running_sequence, _clear_without_releasing],
)
def test_the_integrity_check_sees(corrupt: Callable[[Loop, Sequence], None]) -> None:
    loop = Loop()
    sequence = loop.add_one("a", 8)
    loop.step()
    loop.scheduler.check_integrity()
    corrupt(loop, sequence)
    with pytest.raises(AssertionError):
        loop.scheduler.check_integrity()


def test_a_schedule_counts_what_it_holds() -> None:
    (answer,) = Loop().add(make_request("a"))
    chunk = ScheduledSequence(answer, start=4, num_prefill=3, samples=True)
    row = ScheduledSequence(answer, start=9, num_prefill=0, samples=True)
    part = ScheduledSequence(answer, start=0, num_prefill=5, samples=False)
    assert [item.stop for item in (chunk, row, part)] == [8, 10, 5]
    schedule = Schedule((chunk, row, part))
    assert schedule.num_prefill_tokens == 8
    assert schedule.rows == (chunk, row)
    assert not schedule.is_empty
    assert Schedule().is_empty
