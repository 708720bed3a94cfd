"""Chooses what runs in the next step: token budget, admission, preemption.

There are no phases. Every sequence has tokens, of which some are computed; a turn hands out what
it takes for computed to catch up. A sequence with one token left decodes, a sequence with more
prefills, a resumed one does both. Plain Python; never touches the device.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from ..cache.kv_cache_manager import KVCacheManager, PrefixMatch
from ..config import SchedulerConfig
from ..errors import OverloadedError
from ..request import FinishReason, Request
from .schedule import Schedule, ScheduledSequence
from .sequence import Sequence, SequenceStatus

if TYPE_CHECKING:  # it reads and writes the device
    from .disk_cache import DiskCache

logger = logging.getLogger(__name__)

# Logits of a whole chunk are kept for prompt logprobs; this bounds their memory.
PROMPT_LOGPROBS_CHUNK = 256
# Guesses of the next tokens, by `Sequence.key`.
Drafts: TypeAlias = Mapping[tuple[str, int], Seq[int]]


class Scheduler:
    """Owns the waiting and the running sequences.

    Args:
        max_model_len: Most tokens of prompt and answer together.
        eos_token_ids: Tokens that end an answer unless a request ignores them.
        chunk_limit: From the number of sequences that decode and of those that do not yet, most
            prompt tokens that may run beside the former; by default, as many as the settings say.
        message_markers: Tokens that stand between messages, where later prompts may differ.
        disk: Where blocks come back from.
        clock: Monotonic seconds; tests pass their own.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        cache: KVCacheManager,
        *,
        max_model_len: int,
        eos_token_ids: Iterable[int] = (),
        chunk_limit: Callable[[int, int], int] | None = None,
        message_markers: Collection[int] = (),
        disk: DiskCache | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.cache = cache
        self.max_model_len = max_model_len
        self.eos_token_ids = frozenset(eos_token_ids)
        self._chunk_limit = chunk_limit
        self._message_markers = frozenset(message_markers)
        self.disk = disk
        self._clock = clock
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []  # in order of admission; the last one is the youngest
        self.num_prefix_queries = 0
        self.num_prefix_hits = 0
        self.num_disk_hits = 0

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for admission."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._running)

    @property
    def has_work(self) -> bool:
        """Whether any sequence is unfinished."""
        return bool(self._waiting or self._running)

    @property
    def running(self) -> tuple[Sequence, ...]:
        """Running sequences, oldest first."""
        return tuple(self._running)

    @property
    def touched(self) -> tuple[Sequence, ...]:
        """Sequences that a failed step may have left in an unknown state."""
        return (*self._running, *(s for s in self._waiting if s.num_pending))

    def add(self, request: Request) -> list[Sequence]:
        """Queue a request's sequences.

        Raises:
            OverloadedError: The waiting queue is full.
        """
        if len(self._waiting) + request.num_sequences > self.config.max_queue:
            raise OverloadedError(
                f"The waiting queue is full ({self.config.max_queue} sequences); try again later.",
                retry_after_s=1,
            )
        base = request.params.seed if request.params.seed is not None else secrets.randbits(63)
        sequences = [
            Sequence(
                request, index, seed=base + index, cache=self.cache.open(salt=request.cache_salt)
            )
            for index in range(request.num_sequences)
        ]
        room, asked = self.max_model_len - request.num_prompt_tokens, request.params.max_tokens
        for sequence in sequences:
            sequence.max_output_tokens = room if asked is None else min(room, asked)
        self._waiting.extend(sequences)
        return sequences

    def schedule(self, drafts: Drafts | None = None) -> Schedule:
        """Choose the next step's work and give it its blocks.

        Args:
            drafts: At most `num_draftable` each; all earlier steps must have been told to `update`.
        """
        # Everything scheduled in earlier turns is queued on the device by now, so whoever reads
        # these blocks from here on reads them after they are written.
        size = self.cache.block_size
        preempted, decoding, filling = list[Sequence](), list[Sequence](), list[Sequence]()
        for sequence in self._running:
            if sequence.num_computed_tokens // size > sequence.cache.num_published:
                self._publish(sequence)
            (decoding if sequence.is_decoding else filling).append(sequence)
        chosen = self._schedule_decoding(decoding, drafts or {}, preempted)
        budget = self._prefill_budget(len(chosen))
        chunks = self._continue_prefills(filling, budget, preempted)
        chosen += chunks
        # A preemption means that there is too little memory already; admitting would thrash.
        if not preempted:
            chosen += self._admit(budget - sum(item.num_prefill for item in chunks))
        else:  # an older sequence may have preempted a younger one that was chosen before it
            chosen = [i for i in chosen if i.sequence.status is SequenceStatus.RUNNING]
        if self.cache.checkpoints is not None:
            chosen = [self._with_state(item) for item in chosen]
        now = self._clock()
        for item in chosen:
            sequence = item.sequence
            sequence.num_computed_tokens = item.stop
            sequence.num_replayed = 0
            sequence.num_pending += item.samples
            if sequence.first_scheduled_at is None:
                sequence.first_scheduled_at = now
        return Schedule(tuple(chosen), tuple(preempted))

    def update(
        self, schedule: Schedule, token_ids: Mapping[tuple[str, int], Seq[int]]
    ) -> list[Sequence]:
        """Take in a step's drawn tokens, keyed by `Sequence.key`: more than one with right drafts.

        Returns:
            The sequences that have something new to tell: a token, or their end.
        """
        changed = []
        for item in schedule.scheduled:
            sequence = item.sequence
            sequence.num_pending -= item.samples
            if sequence.is_finished:
                continue  # it ended while this step ran; its row is waste
            if item.samples:
                drawn = token_ids[sequence.key]
                if item.drafts:
                    self._keep_right(item, item.start + item.num_prefill + len(drawn))
                for token_id in drawn:
                    if not sequence.is_finished:
                        self._append(sequence, token_id)
                changed.append(sequence)
            elif sequence.max_output_tokens <= 0 and item.stop >= sequence.num_tokens - 1:
                # Only the prompt was asked about, and all of it but the last token has run, in
                # this very step: what is computed by now may be in the step after it.
                self.finish(sequence, FinishReason.LENGTH)
                changed.append(sequence)
        return changed

    def num_draftable(self, sequence: Sequence) -> int:
        """How many tokens may be guessed for a sequence beside the one that it draws anyway."""
        if sequence.status is not SequenceStatus.RUNNING or not sequence.is_decoding:
            return 0
        room = sequence.max_output_tokens - sequence.num_output_tokens - 1
        # A sliding window has blocks for a chunk and no more.
        room = min(room, self.config.prefill_chunk - 1 - sequence.num_replayed)
        if self.cache.checkpoints is not None:
            # States are saved at the ends of blocks, and there is none but at the end of a run.
            room = min(room, -sequence.num_tokens % self.cache.block_size)
        return max(0, room)

    def reserve(self, sequence: Sequence, num_drafts: int) -> bool:
        """Hold slots for a sequence's next token and for guesses, if nobody has to give way."""
        start, stop = sequence.num_computed_tokens, sequence.num_tokens + num_drafts
        return self.cache.try_grow(sequence.cache, start=start, stop=stop)

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence and free what it holds. Harmless when it has ended already."""
        if sequence.is_finished:
            return
        if sequence.status is SequenceStatus.WAITING:
            self._waiting.remove(sequence)
        else:
            self._running.remove(sequence)
            self._publish(sequence)
            if self.disk is not None and reason is not FinishReason.ERROR:
                self.disk.keep(sequence)
        if self.disk is not None:
            self.disk.forget(sequence)
        self.cache.release(sequence.cache)
        sequence.status = SequenceStatus.FINISHED
        sequence.finish_reason = reason

    def check_integrity(self) -> None:
        """Raise `AssertionError` if a block was lost or is held by nobody known."""
        self.cache.check_integrity(sequence.cache for sequence in self._running)

    def _schedule_decoding(
        self, decoding: Iterable[Sequence], drafts: Drafts, preempted: list[Sequence]
    ) -> list[ScheduledSequence]:
        chosen = []
        for sequence in decoding:
            if sequence.status is not SequenceStatus.RUNNING:
                continue  # preempted for an older one in this very turn
            if self._may_sample(sequence):
                start, count = sequence.num_computed_tokens, sequence.num_replayed
                item = ScheduledSequence(sequence, start, count, samples=True, replays=count > 0)
                draft = drafts.get(sequence.key)
                # Nobody is preempted for a guess.
                if draft and self.cache.try_grow(
                    sequence.cache, start=item.start, stop=item.stop + len(draft)
                ):
                    item = replace(item, drafts=tuple(draft))
                if self._grow(item, preempted):
                    chosen.append(item)
        return chosen

    def _prefill_budget(self, num_decoding: int) -> int:
        if not num_decoding:
            return self.config.prefill_chunk
        most = min(self.config.prefill_chunk, self.config.mixed_prefill_chunk)
        if self._chunk_limit is None:
            return most
        num_hungry = len(self._waiting) + len(self._running) - num_decoding
        return min(most, self._chunk_limit(num_decoding, num_hungry))

    def _continue_prefills(
        self, filling: Iterable[Sequence], budget: int, preempted: list[Sequence]
    ) -> list[ScheduledSequence]:
        chosen = []
        for sequence in filling:
            if budget <= 0:
                break
            if sequence.status is SequenceStatus.RUNNING:
                item = self._chunk(sequence, budget)
                if self._grow(item, preempted):
                    chosen.append(item)
                    budget -= item.num_prefill
        return chosen

    def _admit(self, budget: int) -> list[ScheduledSequence]:
        chosen: list[ScheduledSequence] = []
        for sequence in list(self._waiting):
            if budget <= 0 or len(self._running) >= self.config.max_num_seqs:
                break
            if sequence.num_pending:
                continue  # preempted in mid-step: its token is not back yet
            match = self.cache.match(sequence.cache, sequence.token_ids)
            if sequence.wants_prompt_logprobs:
                match = PrefixMatch(0, False)  # what is found would have no logits
            if match.is_pending:
                continue  # somebody computes this very prefix: wait, then share it
            disk = None if sequence.wants_prompt_logprobs else self.disk
            if disk is not None and disk.is_reading(sequence, match):
                continue
            if not self.cache.can_hold(
                sequence.cache,
                match,
                num_tokens=min(sequence.num_tokens + 1, self.max_model_len),
                max_chunk=self.config.prefill_chunk,
            ):
                break  # first come, first served: nobody overtakes for being short
            self._start(sequence, match)
            item = self._chunk(sequence, budget)
            if not self.cache.try_grow(sequence.cache, start=item.start, stop=item.stop):
                self._preempt(sequence)
                break
            item = replace(item, resumes_from=self.cache.use_state(sequence.cache, item.start))
            chosen.append(item)
            budget -= item.num_prefill
        return chosen

    def _start(self, sequence: Sequence, match: PrefixMatch) -> None:
        disk = self.disk
        num_restored = 0 if disk is None else disk.num_restored(sequence, match.num_blocks)
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug(
                "prefix_match request_id=%s blocks=%d from_disk=%d of=%d reason=%r",
                sequence.key[0],
                match.num_blocks,
                num_restored,
                sequence.cache.num_matchable,
                self.cache.explain(sequence.cache, match),
            )
        num_cached = self.cache.adopt(sequence.cache, match)
        markers = self._message_markers
        self.cache.announce(
            sequence.cache, [i for i, token in enumerate(sequence.token_ids) if token in markers]
        )
        sequence.num_computed_tokens = num_cached
        if sequence.num_cached_tokens is None:
            # Counted once: what a resumed sequence finds again is its own work.
            sequence.num_cached_tokens = num_cached
            self.num_prefix_queries += sequence.num_tokens
            self.num_prefix_hits += num_cached
            self.num_disk_hits += num_restored * self.cache.block_size
        self._waiting.remove(sequence)
        self._running.append(sequence)
        sequence.status = SequenceStatus.RUNNING

    def _chunk(self, sequence: Sequence, budget: int) -> ScheduledSequence:
        remaining = sequence.num_uncomputed_tokens - 1
        if sequence.wants_prompt_logprobs:
            budget = min(budget, PROMPT_LOGPROBS_CHUNK)
        start = sequence.num_computed_tokens
        stop = self.cache.next_stop(sequence.cache, start)
        num_prefill = min(remaining, budget)
        if stop is not None and start + num_prefill >= stop:
            return ScheduledSequence(sequence, start, stop - start, samples=False)
        samples = num_prefill == remaining and self._may_sample(sequence)
        return ScheduledSequence(sequence, start, num_prefill, samples)

    def _with_state(self, item: ScheduledSequence) -> ScheduledSequence:
        """Have the step save the state of recurrent layers, if others may want it."""
        saves_as = self.cache.reserve_state(item.sequence.cache, item.stop, rolls=item.samples)
        return item if saves_as is None else replace(item, saves_as=saves_as)

    def _keep_right(self, item: ScheduledSequence, stop: int) -> None:
        """What follows the first wrong guess, at `stop`, was computed in vain."""
        sequence = item.sequence
        sequence.num_computed_tokens = stop
        if stop < item.stop and self.cache.checkpoints is not None:
            # A state is that behind all of them, so what is right runs again with what comes next.
            self.cache.withdraw_states(sequence.cache, item.start)
            sequence.num_replayed = stop - item.start
            sequence.num_computed_tokens = item.start

    def _grow(self, item: ScheduledSequence, preempted: list[Sequence]) -> bool:
        """Give an item its blocks, at the cost of the youngest others; whether it has them."""
        while not self.cache.try_grow(item.sequence.cache, start=item.start, stop=item.stop):
            victim = self._running[-1]
            self._preempt(victim)
            preempted.append(victim)
            if victim is item.sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._publish(sequence)
        self.cache.release(sequence.cache)
        self._running.remove(sequence)
        self._waiting.insert(0, sequence)
        sequence.status = SequenceStatus.WAITING
        sequence.num_computed_tokens = 0
        sequence.num_replayed = 0

    def _publish(self, sequence: Sequence) -> None:
        known = min(sequence.num_computed_tokens, sequence.num_tokens)
        self.cache.publish(sequence.cache, sequence.token_ids, num_computed=known)

    def _may_sample(self, sequence: Sequence) -> bool:
        return sequence.num_output_tokens + sequence.num_pending < sequence.max_output_tokens

    def _append(self, sequence: Sequence, token_id: int) -> None:
        sequence.token_ids.append(token_id)
        params, num_output = sequence.params, sequence.num_output_tokens
        if sequence.first_token_at is None:
            sequence.first_token_at = self._clock()
        is_enough = num_output > params.min_tokens
        ends = is_enough and token_id in params.stop_token_ids
        if token_id in self.eos_token_ids:
            # Where a grammar lets it be drawn, it is the end.
            bound = sequence.constraint is not None and sequence.constraint.rules_end
            ends = ends or bound or (is_enough and not params.ignore_eos)
        if ends:
            sequence.stop_token_id = token_id
            self.finish(sequence, FinishReason.STOP)
            return
        if num_output >= sequence.max_output_tokens:
            self.finish(sequence, FinishReason.LENGTH)
