"""Thousands of random schedules against an oracle that knows what every slot really holds.

`Simulation` is `Engine` without a device: it schedules one step ahead, and "dispatching" a step
writes into a plain dictionary, for each slot, the name of the token prefix that the slot's keys and
values stand for. A sequence that would attend to anything but its own prefix is caught at once.
States of recurrent layers, of running sequences and saved ones, stand for prefixes likewise.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pippin.core.cache import checkpoints
from pippin.core.cache.block_hash import BlockHash
from pippin.core.cache.block_pool import BlockPool
from pippin.core.cache.block_table import BlockTable
from pippin.core.cache.checkpoints import Checkpoints
from pippin.core.cache.kv_cache_manager import KVCacheManager, PrefixMatch, SequenceCache
from pippin.core.cache.kv_layout import LayerGroup, blocks_for
from pippin.core.config import SchedulerConfig
from pippin.core.engine import sequence as sequences
from pippin.core.engine.schedule import Schedule, ScheduledSequence
from pippin.core.engine.scheduler import Scheduler
from pippin.core.errors import OverloadedError
from pippin.core.request import FinishReason, Request
from pippin.core.sampling_params import SamplingParams

NUM_SCHEDULES = 10_000
EOS = 5
STOP = 4
MARKER = 2
VOCAB = 6
MOST_DRAFTS = 4
WRONG = -1  # the name of what follows a wrong guess
T = TypeVar("T")


class Choices:
    """A byte string read as a run of decisions; zeros, the dullest ones, after its end."""

    def __init__(self, raw: bytes) -> None:
        self._raw: Iterator[int] = iter(raw)
        self._left = len(raw)

    @property
    def is_used_up(self) -> bool:
        return self._left <= 0

    def below(self, bound: int) -> int:
        self._left -= 1
        return next(self._raw, 0) % bound

    def pick(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def one_in(self, count: int) -> bool:
        return self.below(count) == count - 1


class PrefixNames:
    """Gives every (salt, token prefix) a number of its own; exact, so there are no collisions."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int | str, int], int] = {}
        self.parents: list[int] = [0]  # number 0 is an empty slot
        self.depths: list[int] = [0]

    def root(self, salt: str) -> int:
        return self._number((salt, 0), parent=0, depth=0)

    def extend(self, parent: int, token_id: int) -> int:
        return self._number((parent, token_id), parent=parent, depth=self.depths[parent] + 1)

    def _number(self, key: tuple[int | str, int], *, parent: int, depth: int) -> int:
        number = self._numbers.setdefault(key, len(self.parents))
        if number == len(self.parents):
            self.parents.append(parent)
            self.depths.append(depth)
        return number


@dataclasses.dataclass
class Truth:
    """What really happens to one sequence, whatever the scheduler believes.

    Attributes:
        token_ids: Prompt and everything drawn, read back or not.
        names: Name of the prefix that ends at each position.
        prompt_logprobs: Positions whose prompt logprobs have been read back, as the engine keeps
            them.
        ended_by_us: It was aborted, failed or stopped from outside.
        num_promised: Blocks that it is to compute for others too, counted from the start.
    """

    token_ids: list[int]
    names: list[int]
    prompt_logprobs: list[int] = dataclasses.field(default_factory=list)
    seed: int = 0
    ended_by_us: bool = False
    is_admitted: bool = False
    num_promised: int = 0


class Simulation:
    """One random life of a scheduler; every step is checked."""

    def __init__(self, program: bytes) -> None:
        self.choices = choices = Choices(program)
        self.counts: Counter[str] = Counter()
        self.names = PrefixNames()
        self.block_size = choices.pick((2, 1, 4))
        windows = choices.pick(
            ((None,), (None, 5), (3,), (None, 2, 7), (None, 1), (4, 9), (None, 40), ())
        )
        self.groups = tuple(
            LayerGroup(layers=(i,), window=window, bytes_per_token=1)
            for i, window in enumerate(windows)
        )
        self.config = SchedulerConfig(
            max_num_seqs=1 + choices.below(5),
            prefill_chunk=1 + choices.below(13),
            mixed_prefill_chunk=1 + choices.below(9),
            max_queue=choices.pick((12, 3)),
        )
        self.max_model_len = 4 + choices.below(24)
        self.num_states = choices.pick((None, 8, None, 1, None, 3, None, 0))
        self.manager = KVCacheManager(
            self.groups,
            [self._pool_size(group) for group in self.groups],
            block_size=self.block_size,
            namespace=("model",),
            num_states=self.num_states,
        )
        self.now = 0.0
        self.scheduler = Scheduler(
            self.config,
            self.manager,
            max_model_len=self.max_model_len,
            eos_token_ids=(EOS,),
            message_markers=(MARKER,),
            clock=lambda: self.now,
        )
        self.states: dict[sequences.Sequence, int] = {}
        self.saved: dict[int, int] = {}
        self.states_before: dict[sequences.Sequence, int] = {}
        self.store = [[0] * (pool.num_blocks * self.block_size) for pool in self.manager.pools]
        self.truths: dict[sequences.Sequence, Truth] = {}
        self.name_of_hash: dict[BlockHash, int] = {}
        self.under_way: Schedule | None = None
        self.started: list[sequences.Sequence] = []
        self.num_added = 0
        # Since a sequence was admitted: drafts that were wrong have had blocks, too.
        self.most_computed: Counter[sequences.Sequence] = Counter()

    def run(self) -> Counter[str]:
        """Live through the program, then let everything end."""
        while not self.choices.is_used_up:
            self._event()
        steps_left = 40 * (len(self.truths) + 1) * (self.max_model_len + 2)
        while self.scheduler.has_work or self.under_way is not None:
            self.step()
            steps_left -= 1
            assert steps_left, "the scheduler does not come to an end"
        self._check_end()
        return self.counts

    def _pool_size(self, group: LayerGroup) -> int:
        """As few blocks as `factory` accepts, and some luck."""
        longest = blocks_for(self.max_model_len, self.block_size)
        extra = self.choices.pick((0, 1, 2, longest // 2, 2 * longest))
        if group.window is None:
            return max(2, longest) + extra
        span = min(group.window, self.max_model_len) + min(
            self.config.prefill_chunk, self.max_model_len
        )
        return blocks_for(span, self.block_size, slack=1) + extra

    # Events

    def _event(self) -> None:
        event = self.choices.below(20)
        if event < 10:
            self.step()
        elif event < 16:
            self._add()
        elif event == 16:
            self._abort()
        elif event == 17:
            self.step(spoils=True)
        elif event == 18:
            self.step(fails=self.choices.one_in(3))
        else:
            self._finish_again()

    def _add(self) -> None:
        choices = self.choices
        params = SamplingParams(
            max_tokens=choices.pick((3, None, 0, 1, 7)),
            ignore_eos=choices.one_in(3),
            stop_token_ids=(STOP,) if choices.one_in(3) else (),
            num_prompt_logprobs=0 if choices.one_in(6) else None,
            seed=choices.below(2),
        )
        if params.max_tokens != 0 and choices.one_in(4):
            params = dataclasses.replace(params, min_tokens=min(params.max_tokens or 2, 2))
        room = self.max_model_len - (1 if params.max_tokens is None else params.max_tokens)
        if room < 1:
            return
        request = Request(
            request_id=f"r{self.num_added}",
            prompt_token_ids=tuple(self._prompt()[:room]),
            params=params,
            num_sequences=choices.pick((1, 1, 2, 3)),
            cache_salt=choices.pick(("", "", "", "salt")),
        )
        self.num_added += 1
        self.add(request)

    def _prompt(self) -> list[int]:
        choices = self.choices
        kind = choices.below(4)
        if kind == 3 and self.truths:  # the next turn of a conversation
            turn = list(choices.pick(tuple(self.truths.values())).token_ids)
            return [*turn, choices.below(VOCAB), 0, 1]
        # A few long texts that many prompts share the beginning of.
        text = [(kind + i * i + i // 7) % 4 for i in range(1 + choices.below(self.max_model_len))]
        if choices.one_in(3):
            text[choices.below(len(text))] = choices.below(VOCAB)
        return text

    def _abort(self) -> None:
        living = [sequence for sequence in self.truths if not sequence.is_finished]
        if living:
            victim = self.choices.pick(living)
            self.counts["aborted"] += 1
            for sequence in living:
                if sequence.request is victim.request:
                    self.finish(sequence, FinishReason.ABORT)
            self.check()

    def _finish_again(self) -> None:
        ended = [sequence for sequence in self.truths if sequence.is_finished]
        if ended:
            sequence = self.choices.pick(ended)
            reason = sequence.finish_reason
            self.scheduler.finish(sequence, FinishReason.ABORT)
            assert sequence.finish_reason is reason
            self.check()

    def add(self, request: Request) -> list[sequences.Sequence]:
        waiting = self.scheduler.num_waiting
        try:
            added = self.scheduler.add(request)
        except OverloadedError:
            assert waiting + request.num_sequences > self.config.max_queue
            assert self.scheduler.num_waiting == waiting
            self.counts["overloaded"] += 1
            return []
        assert self.scheduler.num_waiting <= self.config.max_queue
        for sequence in added:
            names, name = [], self.names.root(request.cache_salt)
            for token_id in request.prompt_token_ids:
                name = self.names.extend(name, token_id)
                names.append(name)
            self.truths[sequence] = Truth(list(request.prompt_token_ids), names, seed=sequence.seed)
        return added

    def finish(self, sequence: sequences.Sequence, reason: FinishReason) -> None:
        self.truths[sequence].ended_by_us = True
        self.scheduler.finish(sequence, reason)

    # A step, as `Engine.step` takes it

    def step(self, *, fails: bool = False, spoils: bool = False) -> Schedule:
        self.now += 1.0
        self.counts["schedules"] += 1
        ready, self.under_way = self.under_way, None
        speculates = self.choices.one_in(4 if self.num_states is None else 2)
        if ready is not None and (speculates or ready.has_drafts):
            self._complete(ready, spoils=spoils)
            ready = None
        before = _Before(self.scheduler)
        schedule = self.scheduler.schedule(self._guess() if speculates else {})
        self._check_schedule(schedule, before)
        if fails:
            self._dispatch(schedule)
            self._fail()
        else:
            if not schedule.is_empty:
                self._dispatch(schedule)
                self.under_way = schedule
            if ready is not None:
                self._complete(ready, spoils=spoils)
            waited = ready is not None or speculates
            assert waited or not schedule.is_empty or not self.scheduler.has_work, (
                "there is work, but nothing is done"
            )
        self.check()
        return schedule

    def _complete(self, schedule: Schedule, *, spoils: bool) -> None:
        """`Engine._complete`: one row may be spoilt, one answer may be ended by a stop string."""
        for item in schedule.scheduled:
            if item.num_prefill and item.sequence.wants_prompt_logprobs:
                kept = self.truths[item.sequence].prompt_logprobs
                first, last = item.start + 1, item.sequence.num_prompt_tokens
                del kept[first - 1 :]
                kept.extend(range(first, min(first + item.num_prefill, last)))
        rows = schedule.rows
        if rows and spoils and self.choices.one_in(2):
            self.finish(self.choices.pick(rows).sequence, FinishReason.ERROR)
            self.counts["spoilt"] += 1
        lengths = {item.sequence: item.sequence.num_output_tokens for item in rows}
        living = [item.sequence for item in rows if not item.sequence.is_finished]
        counts = {item.sequence: 1 + self._num_right(item) for item in rows}
        drawn = {
            s.key: self.truths[s].token_ids[s.num_tokens : s.num_tokens + counts[s]] for s in living
        }
        changed = self.scheduler.update(schedule, drawn)
        assert len(set(changed)) == len(changed)
        assert set(living) <= set(changed)
        for sequence in changed:
            truth = self.truths[sequence]
            num_new = sequence.num_output_tokens - lengths.get(sequence, 0)
            most = counts.get(sequence, 0)
            assert num_new == most or (sequence.is_finished and 0 < num_new <= most)
            if sequence.wants_prompt_logprobs and sequence.num_output_tokens <= 1:
                expected = list(range(1, sequence.num_prompt_tokens))
                assert truth.prompt_logprobs == expected, "told before all logprobs were there"
                self.counts["prompt logprobs"] += 1
            if spoils and not sequence.is_finished and self.choices.one_in(4):
                self.finish(sequence, FinishReason.STOP)

    def _fail(self) -> None:
        """`Engine._fail_running`: the device's state is lost."""
        self.counts["failed"] += 1
        for sequence in self.scheduler.touched:
            self.finish(sequence, FinishReason.ERROR)
        self.manager.clear_index()
        assert self.manager.num_evictable == 0
        assert self.manager.num_free == self.manager.num_blocks
        self.store = [[0] * len(slots) for slots in self.store]
        self.states, self.saved = {}, {}
        self.name_of_hash.clear()

    def _dispatch(self, schedule: Schedule) -> None:
        """`ModelRunner.execute`: the chunks one after another, then all rows together."""
        self._resume_states(schedule)
        for item in schedule.scheduled:
            sequence, stop = item.sequence, item.start + item.num_prefill
            if item.num_prefill:
                assert stop <= sequence.num_tokens, "a chunk holds tokens that nobody knows yet"
                for group in self.groups:
                    first = group.first_needed(item.start)
                    self._check_content(sequence, group, first, item.start)
                for position in range(item.start, stop):
                    self._write(sequence, position)
        for item in schedule.rows:
            self._write(item.sequence, item.start + item.num_prefill)
        for item in schedule.rows:
            position = item.start + item.num_prefill
            self._draw(item.sequence, position)
            self._write_drafts(item)
            for row in range(position, position + 1 + self._num_right(item)):
                for group in self.groups:
                    first = group.first_needed(row)
                    self._check_content(item.sequence, group, first, row + 1)
        self._save_states(schedule)

    def _resume_states(self, schedule: Schedule) -> None:
        """All before anything runs, then every sequence must go on from its own prefix."""
        if self.num_states is None:
            return
        for item in schedule.scheduled:
            names, start = self.truths[item.sequence].names, item.start
            if item.resumes_from is not None:
                assert start, "a state of nothing"
                self.states[item.sequence] = self.saved[item.resumes_from]
                self.counts["resumed"] += 1
            if start and item.replays:
                self.states[item.sequence] = self.states_before[item.sequence]
                self.counts["replayed"] += 1
            if start:
                assert self.states[item.sequence] == names[start - 1], "another text's state"

    def _save_states(self, schedule: Schedule) -> None:
        if self.num_states is None:
            return
        used = [item.saves_as for item in schedule.scheduled if item.saves_as is not None]
        assert len(set(used)) == len(used), "two states of one id"
        for item in schedule.scheduled:
            self.states_before[item.sequence] = self.states.get(item.sequence, 0)
            if item.stop:
                is_right = self._num_right(item) == len(item.drafts)
                name = self.truths[item.sequence].names[item.stop - 1] if is_right else WRONG
                self.states[item.sequence] = name
            if item.saves_as is not None:
                assert item.stop % self.block_size == 0
                self.saved[item.saves_as] = self.states[item.sequence]
                self.counts["saved"] += 1

    def _draw(self, sequence: sequences.Sequence, position: int) -> None:
        truth = self.truths[sequence]
        assert len(truth.token_ids) == position + 1, "a token is drawn twice, or one is left out"
        if position < sequence.num_tokens:
            assert truth.token_ids == sequence.token_ids
        token_id = self._next_token(truth.names[-1], sequence.seed)
        truth.token_ids.append(token_id)
        truth.names.append(self.names.extend(truth.names[-1], token_id))

    def _next_token(self, name: int, seed: int) -> int:
        return ((name * 2654435761 + seed * 40503) >> 7) % VOCAB

    def _guess(self) -> dict[tuple[str, int], list[int]]:
        """Drafts for some sequences, right up to a point."""
        drafts: dict[tuple[str, int], list[int]] = {}
        for sequence in self.scheduler.running:
            room = self.scheduler.num_draftable(sequence)
            room = max(0, min(room, MOST_DRAFTS - sequence.num_replayed))
            draft, truth = [], self.truths[sequence]
            name, num_right = truth.names[-1], self.choices.below(4)
            for i in range(self.choices.below(room + 1)):
                token_id = self._next_token(name, sequence.seed)
                name = self.names.extend(name, token_id)
                draft.append(token_id if i < num_right else (token_id + 1) % VOCAB)
            if draft:
                drafts[sequence.key] = draft
                self.counts["drafts"] += 1
        return drafts

    def _num_right(self, item: ScheduledSequence) -> int:
        """Drafts that are what is drawn."""
        first = item.start + item.num_prefill + 1
        truth = self.truths[item.sequence].token_ids
        for i, token_id in enumerate(item.drafts):
            if truth[first + i] != token_id:
                return i
        return len(item.drafts)

    def _write_drafts(self, item: ScheduledSequence) -> None:
        position = item.start + item.num_prefill
        truth = self.truths[item.sequence]
        name, is_right = truth.names[position], True
        for i, token_id in enumerate(item.drafts, start=1):
            name = self.names.extend(name, token_id)
            self._write(item.sequence, position + i, name)
            is_right = is_right and truth.token_ids[position + i] == token_id
            if is_right:
                self._draw(item.sequence, position + i)

    def _write(self, sequence: sequences.Sequence, position: int, name: int | None = None) -> None:
        name = self.truths[sequence].names[position] if name is None else name
        tables = sequence.cache.tables
        for pool, table, slots in zip(self.manager.pools, tables, self.store, strict=True):
            slot = table.slot(position)
            block_id = slot // self.block_size
            assert pool.reference_count(block_id) == 1, "a shared block is written to"
            assert pool.index.hash_of(block_id) is None, "a published block is written to"
            slots[slot] = name

    def _check_content(
        self, sequence: sequences.Sequence, group: LayerGroup, start: int, stop: int
    ) -> None:
        index = group.layers[0]
        table, slots = sequence.cache.tables[index], self.store[index]
        names = self.truths[sequence].names
        for position in range(start, stop):
            assert slots[table.slot(position)] == names[position], (
                f"{sequence!r}, group {group.window}: foreign content at position {position}"
            )

    # What must hold all the time

    def _check_schedule(self, schedule: Schedule, before: _Before) -> None:
        config, scheduler = self.config, self.scheduler
        chosen = [item.sequence for item in schedule.scheduled]
        assert len(set(chosen)) == len(chosen), "a sequence runs twice in one step"
        assert set(chosen) <= set(scheduler.running)
        assert not set(schedule.preempted) & set(scheduler.running)
        assert len(set(schedule.preempted)) == len(schedule.preempted)
        assert scheduler.num_running <= config.max_num_seqs
        sampling = {item.sequence for item in schedule.rows if item.decodes}
        assert before.decoding <= sampling | set(schedule.preempted), "a decode row is left out"
        budget = config.prefill_chunk
        if before.decoding & sampling:
            budget = min(budget, config.mixed_prefill_chunk)
        assert schedule.num_prefill_tokens <= budget
        if before.prefilling and not schedule.preempted:
            assert before.prefilling[0] in chosen, "the oldest prompt makes no progress"
        for item in schedule.scheduled:
            earlier = 0 if item.sequence in before.waiting else self.most_computed[item.sequence]
            self.most_computed[item.sequence] = max(item.stop, earlier)
            nothing_asked = most_output(item.sequence, self.max_model_len) == 0
            assert item.stop > item.start or (item.num_prefill == 0 and nothing_asked)
            assert item.stop == item.sequence.num_computed_tokens
            assert item.samples or item.stop < item.sequence.num_total_tokens
            assert not item.drafts or item.sequence.num_pending == 1
        self.counts["preempted"] += len(schedule.preempted)
        self._check_preemption(schedule, before)
        self._check_admission(schedule, before)

    def _check_preemption(self, schedule: Schedule, before: _Before) -> None:
        """The youngest go, and nobody new comes in their place."""
        gone = list(schedule.preempted)
        assert gone == before.running[len(before.running) - len(gone) :][::-1]
        for sequence in gone:
            assert sequence.num_computed_tokens == 0
            assert all(table.num_held == 0 for table in sequence.cache.tables)
            assert sequence.seed == self.truths[sequence].seed

    def _check_admission(self, schedule: Schedule, before: _Before) -> None:
        admitted = [s for s in self.scheduler.running if s not in set(before.running)]
        assert not (admitted and schedule.preempted)
        places = [before.waiting.index(sequence) for sequence in admitted]
        assert places == sorted(places), "admission out of turn"
        for sequence in before.waiting[: max(places, default=0)]:
            if sequence not in admitted:
                assert sequence.num_pending or self._shares_prefix(sequence), (
                    "overtaken for nothing"
                )
                self.counts["waited for a prefix"] += 1
        starts = {item.sequence: item.start for item in schedule.scheduled}
        computing = {s: before.num_computed[s] for s in before.running}
        for sequence in admitted:
            truth, start = self.truths[sequence], starts[sequence]
            assert start % self.block_size == 0
            self.counts["hit tokens"] += start
            if sequence.wants_prompt_logprobs:
                assert start == 0
            else:
                self._check_nothing_is_computed_twice(sequence, start, computing)
            if not truth.is_admitted:
                assert sequence.num_cached_tokens == start < sequence.num_prompt_tokens
            truth.is_admitted = True
            truth.num_promised = (sequence.num_tokens - 1) // self.block_size
            computing[sequence] = start
        waiting = [s for s in self.scheduler._waiting if not self.truths[s].is_admitted]
        assert all(s.num_cached_tokens is None for s in waiting), "admitted without room"
        assert waiting == self.scheduler._waiting[self.scheduler.num_waiting - len(waiting) :]
        assert waiting == [s for s in self.truths if s in set(waiting)]

    def _check_nothing_is_computed_twice(
        self,
        sequence: sequences.Sequence,
        start: int,
        computing: dict[sequences.Sequence, int],
    ) -> None:
        """No running sequence has promised the first block that this one begins to compute.

        With recurrent layers, it promises states, and blocks are of no use without.
        """
        stop = start + self.block_size
        if self.num_states is not None:
            self._check_no_promised_state_is_computed_twice(sequence, start, computing)
            return
        for other, computed in computing.items():
            if (
                stop < sequence.num_tokens
                and stop <= self.truths[other].num_promised * self.block_size
                and other.request.cache_salt == sequence.request.cache_salt
                and other.token_ids[:stop] == sequence.token_ids[:stop]
                and self.groups
            ):
                assert computed >= stop, "a prefix that is under way is computed once more"

    def _check_no_promised_state_is_computed_twice(
        self,
        sequence: sequences.Sequence,
        start: int,
        others: Iterable[sequences.Sequence],
    ) -> None:
        for other in others:
            for count in other.cache.checkpoints.planned:
                stop = count * self.block_size
                assert not (
                    start < stop < sequence.num_tokens
                    and other.request.cache_salt == sequence.request.cache_salt
                    and other.token_ids[:stop] == sequence.token_ids[:stop]
                ), "a state that is under way is computed once more"

    def _shares_prefix(self, sequence: sequences.Sequence) -> bool:
        """Whether a running sequence has a first block in common."""
        size, request = self.block_size, sequence.request
        return any(
            other.request.cache_salt == request.cache_salt
            and other.token_ids[:size] == sequence.token_ids[:size]
            for other in self.scheduler.running
        )

    def check(self) -> None:
        """What holds after each event."""
        self.scheduler.check_integrity()
        for sequence in self.scheduler.running:
            self._check_tables(sequence)
        self._check_index()

    def _check_tables(self, sequence: sequences.Sequence) -> None:
        """Exactly the blocks that the tokens need, with the right content."""
        size, computed = self.block_size, sequence.num_computed_tokens
        names = self.truths[sequence].names
        drafted = [item for item in self._drafted() if item.sequence is sequence]
        right = [item.start + item.num_prefill + 1 + self._num_right(item) for item in drafted]
        for group, table, slots in zip(self.groups, sequence.cache.tables, self.store, strict=True):
            # Blocks that were had for wrong drafts are kept.
            most = max(computed, self.most_computed[sequence])
            assert blocks_for(computed, size) <= table.num_blocks <= blocks_for(most, size)
            assert table.first_block * size <= group.first_needed(computed)
            if group.window is None:
                assert table.first_block == 0
            else:
                most = blocks_for(group.window + self.config.prefill_chunk, size, slack=1)
                assert table.num_held <= most
            for position in range(table.first_block * size, *right or [computed]):
                assert slots[table.slot(position)] == names[position]

    def _drafted(self) -> list[ScheduledSequence]:
        """What runs with drafts at the moment."""
        scheduled = self.under_way.scheduled if self.under_way is not None else ()
        return [item for item in scheduled if item.drafts]

    def _check_index(self) -> None:
        """Every findable block holds one whole block of one prefix, and its hash means that."""
        size, parents, depths = self.block_size, self.names.parents, self.names.depths
        for number, (pool, slots) in enumerate(zip(self.manager.pools, self.store, strict=True)):
            for block_id in range(pool.num_blocks):
                block_hash = pool.index.hash_of(block_id)
                if block_hash is None:
                    continue
                content = slots[block_id * size : (block_id + 1) * size]
                last = content[-1]
                assert last, "an empty block can be found"
                assert depths[last] % size == 0
                for earlier, later in pairwise(content):
                    assert parents[later] == earlier
                known = self.name_of_hash.setdefault(block_hash, last)
                assert known == last, f"group {number}: one hash, two contents"
        if (saved := self.manager.checkpoints) is None:
            return
        for state_id in range(saved.pool.num_blocks):
            block_hash = saved.pool.index.hash_of(state_id)
            if block_hash is not None:
                name = self.saved[state_id]
                assert name != WRONG, "a state that follows a wrong guess can be found"
                assert depths[name] % size == 0
                known = self.name_of_hash.setdefault(block_hash, name)
                assert known == name, "a state can be found by another text's hash"

    def _check_end(self) -> None:
        manager = self.manager
        assert manager.num_free + manager.num_evictable == manager.num_blocks
        if manager.checkpoints is not None:
            assert manager.checkpoints.pool.num_available == self.num_states
        assert self.scheduler.num_running == self.scheduler.num_waiting == 0
        for sequence, truth in self.truths.items():
            assert sequence.is_finished
            output = truth.token_ids[sequence.num_prompt_tokens :]
            assert sequence.output_token_ids == output[: sequence.num_output_tokens]
            assert sequence.seed == truth.seed
            if truth.ended_by_us:
                continue
            self.counts["ended"] += 1
            room = self.max_model_len - sequence.num_prompt_tokens
            end = expected_end(output, sequence.params, room)
            assert (sequence.num_output_tokens, sequence.finish_reason) == end
            # The rows of the step under way are waste, unless the end could be foreseen.
            waste = (1 + MOST_DRAFTS) * (sequence.finish_reason is FinishReason.STOP)
            assert len(output) <= sequence.num_output_tokens + waste, "a token too many is drawn"


class _Before:
    """The scheduler's state before a turn."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.running = list(scheduler.running)
        self.waiting = list(scheduler._waiting)
        self.decoding = {
            s
            for s in self.running
            if s.num_uncomputed_tokens == 1 + s.num_replayed
            and s.num_output_tokens + s.num_pending < most_output(s, scheduler.max_model_len)
        }
        self.prefilling = [s for s in self.running if s.num_uncomputed_tokens > 1 + s.num_replayed]
        self.num_computed = {s: s.num_computed_tokens for s in self.running}


def most_output(sequence: sequences.Sequence, max_model_len: int) -> int:
    room = max_model_len - sequence.num_prompt_tokens
    asked = sequence.params.max_tokens
    return room if asked is None else min(asked, room)


def expected_end(
    output: Sequence[int], params: SamplingParams, room: int
) -> tuple[int, FinishReason] | None:
    """Where an answer must end: how many tokens of ``output`` it has, and why."""
    limit = room if params.max_tokens is None else params.max_tokens
    ends = set(params.stop_token_ids) | (set() if params.ignore_eos else {EOS})
    for count in range(limit + 1):
        if count > params.min_tokens and output[count - 1] in ends:
            return count, FinishReason.STOP
        if count == limit:
            return count, FinishReason.LENGTH
    return None


def test_ten_thousand_random_schedules_lose_no_block() -> None:
    total: Counter[str] = Counter()

    @settings(
        max_examples=NUM_SCHEDULES,
        deadline=None,
        phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.binary(min_size=40, max_size=240))
    def live(program: bytes) -> None:
        total.update(Simulation(program).run())
        total["lives"] += 1

    live()
    print(f"\n{dict(total)}")
    assert total["lives"] >= NUM_SCHEDULES
    # Nothing is shown by lives in which nothing happens.
    for event, least in {
        "schedules": 10 * NUM_SCHEDULES,
        "drafts": 1_000,
        "hit tokens": NUM_SCHEDULES,
        "ended": NUM_SCHEDULES,
        "preempted": 500,
        "waited for a prefix": 500,
        "aborted": 500,
        "failed": 500,
        "spoilt": 100,
        "overloaded": 100,
        "prompt logprobs": 100,
        "saved": NUM_SCHEDULES,
        "resumed": 1_000,
        "replayed": 50,
    }.items():
        assert total[event] >= least, f"{event}: {total[event]}"


def _lose_a_block(patch: pytest.MonkeyPatch) -> None:
    release = BlockPool.release
    patch.setattr(BlockPool, "release", lambda pool, ids: release(pool, list(ids)[1:]))


def _hold_nothing_when_sharing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(BlockPool, "retain", lambda pool, ids: None)


def _drop_the_window_too_early(patch: pytest.MonkeyPatch) -> None:
    grow = KVCacheManager.try_grow

    def try_grow(manager: KVCacheManager, cache: SequenceCache, *, start: int, stop: int) -> bool:
        return grow(manager, cache, start=stop, stop=stop)

    patch.setattr(KVCacheManager, "try_grow", try_grow)


def _forget_the_parent(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        "pippin.core.cache.kv_cache_manager.hash_block",
        lambda parent, token_ids: BlockHash(bytes(token_ids)),
    )


def _forget_the_salt(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        "pippin.core.cache.kv_cache_manager.root_hash", lambda *keys: BlockHash(b"the same")
    )


def _publish_what_is_not_computed(patch: pytest.MonkeyPatch) -> None:
    publish = KVCacheManager.publish

    def publish_all(
        manager: KVCacheManager,
        cache: SequenceCache,
        token_ids: Sequence[int],
        *,
        num_computed: int,
    ) -> None:
        held = min((table.num_blocks for table in cache.tables), default=0)
        known = min(len(token_ids), held * manager.block_size)
        publish(manager, cache, token_ids, num_computed=max(num_computed, known))

    patch.setattr(KVCacheManager, "publish", publish_all)


def _keep_lost_content(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(KVCacheManager, "clear_index", lambda manager: None)


def _promise_for_ever(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(KVCacheManager, "_retract", lambda manager, block_hash: None)


def _never_wait_for_a_prefix(patch: pytest.MonkeyPatch) -> None:
    match = KVCacheManager.match

    def impatient(
        manager: KVCacheManager, cache: SequenceCache, token_ids: Sequence[int]
    ) -> PrefixMatch:
        return PrefixMatch(match(manager, cache, token_ids).num_blocks, False)

    patch.setattr(KVCacheManager, "match", impatient)


def _draw_past_the_limit(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        Scheduler,
        "_may_sample",
        lambda scheduler, s: s.num_output_tokens < most_output(s, scheduler.max_model_len),
    )


def _preempt_the_oldest(patch: pytest.MonkeyPatch) -> None:
    preempt = Scheduler._preempt
    patch.setattr(
        Scheduler, "_preempt", lambda scheduler, _: preempt(scheduler, scheduler.running[0])
    )


def _guess_past_the_limit(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        Scheduler,
        "num_draftable",
        lambda scheduler, s: max(0, most_output(s, scheduler.max_model_len) - s.num_output_tokens),
    )


def _overwrite_cached_blocks(patch: pytest.MonkeyPatch) -> None:
    table_slot = BlockTable.slot
    patch.setattr(BlockTable, "slot", lambda table, position: table_slot(table, position // 2))


def _publish_states_under_the_block_before(patch: pytest.MonkeyPatch) -> None:
    publish = Checkpoints.publish
    patch.setattr(
        Checkpoints,
        "publish",
        lambda self, mine, hashes, count: publish(self, mine, [*hashes[:1], *hashes], count),
    )


def _save_anywhere(patch: pytest.MonkeyPatch) -> None:
    reserve = KVCacheManager.reserve_state
    patch.setattr(
        KVCacheManager,
        "reserve_state",
        lambda self, cache, num_tokens, *, rolls: reserve(
            self, cache, num_tokens // self.block_size * self.block_size, rolls=rolls
        ),
    )


def _find_states_of_others(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Checkpoints, "use", lambda self, block_hash: 0)


def _promise_states_for_ever(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Checkpoints, "_retract", lambda self, block_hash: None)


def _publish_states_of_wrong_guesses(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(checkpoints, "_GRID", 2)  # texts are short, and what rolls is dropped anyway
    patch.setattr(Checkpoints, "withdraw", lambda self, mine, num_blocks: None)


def _match_without_states(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Checkpoints, "id_of", lambda self, block_hash: 0)


@pytest.mark.parametrize(
    "sabotage",
    [
        _publish_states_under_the_block_before,
        _save_anywhere,
        _find_states_of_others,
        _promise_states_for_ever,
        _publish_states_of_wrong_guesses,
        _match_without_states,
        _lose_a_block,
        _hold_nothing_when_sharing,
        _drop_the_window_too_early,
        _forget_the_parent,
        _forget_the_salt,
        _publish_what_is_not_computed,
        _keep_lost_content,
        _promise_for_ever,
        _never_wait_for_a_prefix,
        _draw_past_the_limit,
        _preempt_the_oldest,
        _overwrite_cached_blocks,
        _guess_past_the_limit,
    ],
)
def test_the_oracle_notices(
    sabotage: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(monkeypatch)
    with pytest.raises((AssertionError, LookupError)):
        _live_often(200)


def test_the_oracle_is_content_without_sabotage() -> None:
    _live_often(200)


def _live_often(times: int) -> None:
    for seed in range(times):
        Simulation(random.Random(seed).randbytes(150)).run()
