"""Composition of scheduler, runner and text: the step. Lives on one thread, the engine thread.

A step is always one ahead: while the device works on it, the one before is read back and told.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace

from ..backend import mx
from ..request import FinishReason, PositionLogprobs, RawLogprobs, Request, RequestOutput
from ..runner.model_runner import ModelRunner
from ..runner.step_output import StepOutput
from ..text.tokenizer import Tokenizer
from .disk_cache import DiskCache
from .masking import mask_builder
from .output_processor import OutputProcessor, prompt_logprobs
from .schedule import Schedule
from .scheduler import Scheduler
from .sequence import Sequence
from .speculator import Speculator
from .stats import EngineStats, FinishedStats, StepStats
from .step_costs import StepCosts
from .step_under_way import StepUnderWay

logger = logging.getLogger(__name__)

# For what waits to be written when the server ends.
_DISK_CLOSE_S = 5.0


@dataclass(slots=True)
class StepResult:
    """What one call of `Engine.step` has to tell.

    Attributes:
        prompt_logprobs: By request id; complete before the request's first output.
    """

    outputs: list[RequestOutput] = field(default_factory=list)
    prompt_logprobs: dict[str, Seq[PositionLogprobs | None]] = field(default_factory=dict)
    stats: StepStats | None = None


class Engine:
    """Runs requests, many at a time."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: ModelRunner,
        tokenizer: Tokenizer,
        *,
        costs: StepCosts | None = None,
        speculator: Speculator | None = None,
        disk: DiskCache | None = None,
    ) -> None:
        self.scheduler = scheduler
        self._disk = disk
        self._costs = costs or StepCosts()
        self._speculator = speculator
        self._runner = runner
        self._tokenizer = tokenizer
        self._sequences: dict[str, list[Sequence]] = {}
        self._processors: dict[tuple[str, int], OutputProcessor] = {}
        self._prompt_logprobs: dict[str, list[RawLogprobs]] = {}
        self._under_way: StepUnderWay | None = None
        self._completed_at = 0.0
        # Since when there has been work and no step under way.
        self._gap_since: float | None = None
        self._num_steps = 0
        self._prefix_counts = (0, 0, 0)

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return self._has_requests or (self._disk is not None and self._disk.is_busy)

    @property
    def _has_requests(self) -> bool:
        return self.scheduler.has_work or self._under_way is not None

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            OverloadedError: The waiting queue is full.
        """
        if not self._has_requests:
            self._gap_since = None  # nobody asked for anything until now
        sequences = self.scheduler.add(request)
        self._sequences[request.request_id] = sequences
        for sequence in sequences:
            self._processors[sequence.key] = OutputProcessor(
                self._tokenizer,
                request.params,
                request_id=request.request_id,
                index=sequence.index,
                shown_ids=request.shown_ids,
                make_parser=request.make_parser,
            )

    def abort(self, request_id: str) -> list[FinishedStats]:
        """End a request whose caller went away; its blocks are free at once."""
        ended = []
        for sequence in list(self._sequences.get(request_id, ())):
            if not sequence.is_finished:
                self.scheduler.finish(sequence, FinishReason.ABORT)
                ended.append(FinishedStats.of(sequence))
                self._forget(sequence)
        return ended

    def step(self) -> StepResult:
        """Start the next step, then tell what the one before it drew.

        With speculation on it is the other way round: guesses follow the newest tokens. Where an
        answer is constrained, the step before is read while the device runs the model, for masks
        to follow the newest tokens, too. A fault that cannot be blamed on one request fails those
        that run and leaves a clean engine.
        """
        result = StepResult()
        self._advance_disk()
        try:
            ready, self._under_way = self._under_way, None
            speculates = self._speculates()
            if ready is not None and (speculates or ready.schedule.has_drafts):
                result = self._complete(ready)
                ready = None
            self._start(ready, speculates=speculates)
            if ready is not None:
                result = self._complete(ready)
        # Whatever breaks here, the thread must go on serving.
        except Exception as error:
            logger.exception("engine step failed running=%d", self.scheduler.num_running)
            self._fail_running(error, result)
        self._num_steps += 1
        if self._under_way is None and self._disk is not None and self._disk.is_busy:
            self._disk.wait()
        return result

    def use_idle_time(self) -> bool:
        """Do a little of what may wait while there is no work; returns whether there is more."""
        return self._runner.use_idle_time()

    def close(self) -> None:
        """Let the device finish before the thread, and with it the thread's streams, ends.

        mlx ends the process when a stream is destroyed with work in it.
        """
        self._under_way = None
        if self._disk is not None:
            self._disk.close(_DISK_CLOSE_S)
        mx.synchronize()
        mx.clear_streams()

    def stats(self) -> EngineStats:
        """Numbers as of now."""
        cache, speculator = self.scheduler.cache, self._speculator
        states = None if cache.checkpoints is None else cache.checkpoints.pool
        num_running = self.scheduler.num_running
        return EngineStats(
            num_running=num_running,
            num_waiting=self.scheduler.num_waiting,
            num_blocks=cache.num_blocks,
            num_free_blocks=cache.num_free,
            num_evictable_blocks=cache.num_evictable,
            block_size=cache.block_size,
            kv_cache_bytes=self._runner.cache_bytes,
            active_memory_bytes=mx.get_active_memory(),
            num_steps=self._num_steps,
            num_traces=self._runner.num_traces,
            speculation=None if speculator is None else speculator.status(num_running),
            disk=None if self._disk is None else self._disk.stats(),
            num_states=0 if states is None else states.num_blocks - states.num_free,
            max_states=0 if states is None else states.num_blocks,
        )

    def _advance_disk(self) -> None:
        if self._disk is None:
            return
        try:
            self._disk.advance()
        # Without it everything goes on, only slower.
        except Exception:
            logger.exception("the disk cache is switched off")
            self._disk = self.scheduler.disk = None

    def _speculates(self) -> bool:
        if self._speculator is None:
            return False
        return self._speculator.is_on(self.scheduler.num_running)

    def _start(self, before: StepUnderWay | None, *, speculates: bool) -> None:
        """Start the next step; the one before, if it is given, is not told yet."""
        drafts: dict[tuple[str, int], Seq[int]] = {}
        num_traces = self._runner.num_traces
        if speculates and self._speculator is not None:
            drafts = self._speculator.propose(self.scheduler)
        schedule = self.scheduler.schedule(drafts)
        if self._speculator is not None:
            for sequence in schedule.preempted:
                self._speculator.forget(sequence.key)  # a draft model's blocks are gone, too
        if not schedule.is_empty:
            started_at = time.monotonic()
            gap_s = 0.0 if self._gap_since is None else started_at - self._gap_since
            self._gap_since = None
            step = self._runner.execute(
                schedule, mask_builder(schedule, None if before is None else before.read)
            )
            is_new = self._runner.num_traces > num_traces
            self._under_way = StepUnderWay(schedule, step, started_at, gap_s, speculates, is_new)

    def _complete(self, step: StepUnderWay) -> StepResult:
        schedule, drawn = step.schedule, step.read()
        now = step.read_at
        if self._under_way is None:
            self._gap_since = now
        # What it took the device, as the one before it was told when this one was waiting there.
        seconds = now - max(self._completed_at, step.started_at)
        self._completed_at = now
        self._keep_prompt_logprobs(drawn)
        ran = [item.sequence for item in schedule.scheduled]
        faults = dict.fromkeys(drawn.failed, "the model's logits were not numbers")
        faults |= {s.key: s.constraint_fault for s in ran if s.constraint_fault is not None}
        failed = [s for s in ran if s.key in faults and not s.is_finished] if faults else []
        for sequence in failed:
            self.scheduler.finish(sequence, FinishReason.ERROR)
        if drawn.failed:
            # Its blocks are up for grabs, by hash and as free ones, and no longer hold numbers.
            self.scheduler.cache.clear_index()
            self._runner.scrub()
        changed = self.scheduler.update(schedule, drawn.token_ids)
        num_tokens = sum(sequence.num_untold_tokens for sequence in changed)
        self._learn(step, num_tokens, seconds)
        result = StepResult()
        for sequence in changed:
            if sequence.num_output_tokens <= 1:
                self._tell_prompt_logprobs(sequence, result)
            result.outputs.append(self._process(sequence, drawn.logprobs.get(sequence.key)))
        for sequence in failed:
            output = _error_output(sequence, faults[sequence.key])
            is_rule = sequence.key not in drawn.failed
            result.outputs.append(replace(output, is_callers_fault=is_rule))
        told = [*changed, *failed]
        result.stats = self._step_stats(step, told, num_tokens, seconds)
        for sequence in told:
            if sequence.is_finished:
                self._forget(sequence)
        return result

    def _learn(self, step: StepUnderWay, num_tokens: int, seconds: float) -> None:
        schedule = step.schedule
        num_rows = sum([item.stop - item.start for item in schedule.scheduled if item.decodes])
        self._costs.observe(num_rows, schedule.num_prefill_tokens, seconds)
        if self._speculator is not None:
            self._speculator.observe(
                schedule,
                num_tokens,
                None if step.is_new else step.gap_s + seconds,
                is_speculative=step.is_speculative,
            )

    def _process(self, sequence: Sequence, raw: list[RawLogprobs] | None) -> RequestOutput:
        tokens = sequence.untold_token_ids
        output = self._processors[sequence.key].process(
            tokens,
            logprobs=raw,
            finish_reason=sequence.finish_reason,
            num_cached_tokens=sequence.num_cached_tokens or 0,
        )
        num_unused = len(tokens) - len(output.token_ids)
        if num_unused:  # a stop string ended it before the last of the new tokens
            del sequence.token_ids[-num_unused:]
        sequence.num_told_tokens = sequence.num_output_tokens
        if output.finish_reason is not None and not sequence.is_finished:
            self.scheduler.finish(sequence, output.finish_reason)  # a stop string ended it
        return output

    def _keep_prompt_logprobs(self, drawn: StepOutput) -> None:
        for (request_id, _), (first, entries) in drawn.prompt_logprobs.items():
            # A chunk that ran twice, around a preemption, counts once.
            kept = self._prompt_logprobs.setdefault(request_id, [])
            del kept[first - 1 :]
            kept.extend(entries)

    def _tell_prompt_logprobs(self, sequence: Sequence, result: StepResult) -> None:
        if not sequence.wants_prompt_logprobs:
            return
        raw = self._prompt_logprobs.pop(sequence.request.request_id, [])
        result.prompt_logprobs[sequence.request.request_id] = prompt_logprobs(
            self._tokenizer, sequence.request.prompt_token_ids, [None, *raw]
        )

    def _forget(self, sequence: Sequence) -> None:
        self._processors.pop(sequence.key, None)
        if self._speculator is not None:
            self._speculator.forget(sequence.key)
        self._runner.forget(sequence.key)
        siblings = self._sequences.get(sequence.request.request_id, [])
        if all(sibling.is_finished for sibling in siblings):
            self._sequences.pop(sequence.request.request_id, None)
            self._prompt_logprobs.pop(sequence.request.request_id, None)

    def _fail_running(self, error: Exception, result: StepResult) -> None:
        """End all that run, after what there was to tell already."""
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        sequences = self.scheduler.touched
        for sequence in sequences:
            self.scheduler.finish(sequence, FinishReason.ERROR)
            result.outputs.append(_error_output(sequence, reason))
            self._forget(sequence)
        self._under_way = None
        self.scheduler.cache.clear_index()
        self._runner.reset()
        if self._speculator is not None:
            self._speculator.reset()
        finished = tuple(FinishedStats.of(sequence) for sequence in sequences)
        told = result.stats or StepStats()
        result.stats = replace(told, finished=(*told.finished, *finished))

    def _step_stats(
        self, step: StepUnderWay, changed: Seq[Sequence], num_tokens: int, seconds: float
    ) -> StepStats:
        schedule, now = step.schedule, time.monotonic()
        ttft, gaps = [], []
        for sequence in changed:
            if not sequence.num_output_tokens:
                continue
            if sequence.last_token_at is None:
                ttft.append(now - sequence.request.arrival_at)
            else:
                gaps.append(now - sequence.last_token_at)
            sequence.last_token_at = now
        scheduler, old = self.scheduler, self._prefix_counts
        counts = scheduler.num_prefix_queries, scheduler.num_prefix_hits, scheduler.num_disk_hits
        self._prefix_counts = counts
        return StepStats(
            duration_s=seconds,
            gap_s=step.gap_s,
            num_prefill_tokens=schedule.num_prefill_tokens,
            num_decode_tokens=num_tokens,
            num_preempted=len(schedule.preempted),
            num_prefix_queries=counts[0] - old[0],
            num_prefix_hits=counts[1] - old[1],
            num_disk_hits=counts[2] - old[2],
            ttft_s=tuple(ttft),
            inter_token_s=tuple(gaps),
            queue_s=self._queue_times(schedule),
            finished=tuple([FinishedStats.of(s) for s in changed if s.is_finished]),
        )

    def _queue_times(self, schedule: Schedule) -> tuple[float, ...]:
        times = []
        for item in schedule.scheduled:
            sequence = item.sequence
            if not sequence.queue_time_told and sequence.first_scheduled_at is not None:
                sequence.queue_time_told = True
                times.append(sequence.first_scheduled_at - sequence.request.arrival_at)
        return tuple(times)


def _error_output(sequence: Sequence, reason: str) -> RequestOutput:
    return RequestOutput(
        request_id=sequence.request.request_id,
        index=sequence.index,
        text="",
        token_ids=(),
        num_output_tokens=sequence.num_output_tokens,
        num_cached_tokens=sequence.num_cached_tokens or 0,
        finish_reason=FinishReason.ERROR,
        error=reason,
    )
