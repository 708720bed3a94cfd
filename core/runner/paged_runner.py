"""Runs all sequences of a step together on the paged KV store."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

from ..backend import mx
from ..cache.block_table import BlockTable
from ..cache.kv_store import KVStore
from .batch_builder import BatchBuilder, RaggedBucket, Run
from .block_copies import BlockCopies
from .forward_batch import ForwardBatch, PassForm
from .logits_processors import RowKey
from .model_runner import (
    MaskBuilder,
    ModelRunner,
    dispatch,
    predicts_prompt,
    prompt_logprobs,
    sampled_runs,
)
from .mtp_runner import MtpRunner
from .paged_model import PagedModel
from .sampler import Sampler
from .state_store import StateStore
from .step_output import PromptLogprobs, StepInFlight

if TYPE_CHECKING:
    from ..engine.schedule import Schedule, ScheduledSequence


# Longer runs attend as chunks: rows read what they attend to once each.
_LONGEST_ROW_RUN = 16


class PagedRunner(ModelRunner):
    """Runs all sequences together.

    Args:
        row_bucket: How many rows a step of rows alone is filled up to.
        ragged_bucket: The same of ragged passes, see `BatchBuilder`.
        mtp: What guesses from the model's hidden states, if anything does.
    """

    def __init__(
        self,
        model: PagedModel,
        sampler: Sampler,
        store: KVStore,
        *,
        row_bucket: Callable[[int], int] = lambda count: count,
        ragged_bucket: RaggedBucket = lambda num_runs, length: (num_runs, length),
        mtp: MtpRunner | None = None,
    ) -> None:
        super().__init__(sampler)
        self._model = model
        self._store = store
        self._mtp = mtp
        self._states = StateStore(store.layout) if store.layout.recurrent else None
        # Rows of one sequence would each go on from the same state.
        may_share = self._states is None and model.form is not PassForm.ALONE
        trash = []
        for group in range(len(store.layout.groups)):
            table = BlockTable(store.block_size)
            table.append([store.trash_block(group)])
            trash.append(table)
        self._builder = BatchBuilder(
            store.layout.groups,
            model.attention,
            trash=trash,
            row_bucket=row_bucket,
            longest_row_run=_LONGEST_ROW_RUN if may_share else 1,
            form=model.form,
            ragged_bucket=ragged_bucket if model.takes_ragged else None,
        )

    @property
    def cache_bytes(self) -> int:
        """Memory of the KV store and of states."""
        return self._store.nbytes + (0 if self._states is None else self._states.nbytes)

    def block_copies(self) -> BlockCopies:
        """What moves blocks and states in and out."""
        return BlockCopies(self._store, self._states)

    @property
    def num_traces(self) -> int:
        """See `ModelRunner.num_traces`."""
        return self._model.num_traces + (0 if self._mtp is None else self._mtp.num_traces)

    def execute(self, schedule: Schedule, masks: MaskBuilder | None = None) -> StepInFlight:
        """See `ModelRunner.execute`."""
        # A prompt of one token that is only asked about has nothing to run.
        items = [item for item in schedule.scheduled if item.stop > item.start]
        if not items:
            return StepInFlight((), None, ())
        self._resume_states(items)
        runs = [self._run(item) for item in items]
        order = self._builder.order(runs)
        items, runs = [items[i] for i in order], [runs[i] for i in order]
        passes = self._builder.build(runs, self._last_tokens)
        if self._store.is_partial:
            self._store.hold(_highest_block(runs, passes))
        hidden: list[mx.array] | None = None if self._mtp is None else []
        logits, written = self._model.run(self._store, passes, self._states, hidden=hidden)
        written += self._save_states(items)
        prompt = _prompt_logprobs(items, runs, logits)
        rows = [item for item in items if item.samples]
        sampled, arrays = None, list[mx.array]()
        if rows:
            sampled, arrays = self._sample(_last_logits(items, runs, logits), rows, masks)
        if self._mtp is not None and hidden:
            drawn = None if sampled is None else sampled.token_ids
            written += self._mtp.follow(items, mx.concatenate(hidden), drawn)
            del hidden
        for _, _, logprobs in prompt:
            arrays += logprobs.arrays()
        del logits  # unused, it would hold on to the last layer's keys and values
        dispatch(arrays, written)
        return StepInFlight(sampled_runs(rows), sampled, tuple(prompt))

    def use_idle_time(self) -> bool:
        """See `ModelRunner.use_idle_time`."""
        self._store.fill_more()
        return self._store.is_partial

    def scrub(self) -> None:
        """Clear all blocks of what are no numbers."""
        self._store.scrub()
        if self._mtp is not None:
            self._mtp.scrub()

    def forget(self, key: RowKey) -> None:
        """See `ModelRunner.forget`."""
        super().forget(key)
        if self._states is not None:
            self._states.forget(key)

    def reset(self) -> None:
        """Empty the KV store."""
        super().reset()
        self._store.reset()
        if self._mtp is not None:
            self._mtp.reset()
        if self._states is not None:
            self._states.reset()

    def _resume_states(self, items: Seq[ScheduledSequence]) -> None:
        """All before anything runs: an id may be given to another state in this very step."""
        if self._states is None:
            return
        wrong = []
        for item in items:
            if item.resumes_from is not None:
                self._states.resume(item.sequence.key, item.resumes_from)
            elif item.start == 0:
                self._states.forget(item.sequence.key)  # it was preempted
            elif item.replays:
                wrong.append(item.sequence.key)
        self._states.take_back(wrong)

    def _save_states(self, items: Seq[ScheduledSequence]) -> list[mx.array]:
        """Save what is to be saved; returns what must be evaluated for that."""
        if self._states is None:
            return []
        for item in items:
            if item.saves_as is not None:
                self._states.save(item.saves_as, item.sequence.key)
        return self._states.take_unsettled()

    def _run(self, item: ScheduledSequence) -> Run:
        sequence = item.sequence
        source = self._source(item) if item.samples else None
        stop = item.stop - len(item.drafts)
        token_ids = sequence.token_ids[item.start : stop] if source is None else [0]
        num_logits = item.num_rows
        if item.drafts:
            token_ids += item.drafts
        if sequence.wants_prompt_logprobs and predicts_prompt(item):
            num_logits = len(token_ids)
        return Run(
            token_ids=token_ids,
            start=item.start,
            tables=sequence.cache.tables,
            num_logits=num_logits,
            source=source,
            key=sequence.key,
            is_speculative=bool(item.drafts) or item.replays,
        )


def _highest_block(runs: Seq[Run], passes: Seq[ForwardBatch]) -> int | None:
    """Of all that a step touches; ``None`` if that includes the trash block."""
    if any(batch.num_padding or batch.run_lengths is not None for batch in passes):
        return None
    return max(max(table.block_ids, default=0) for run in runs for table in run.tables)


def _last_logits(items: Seq[ScheduledSequence], runs: Seq[Run], logits: mx.array) -> mx.array:
    """Logits of the tokens that draw: ``[rows, vocab]``."""
    num_drawn = sum([item.num_rows for item in items])
    if num_drawn == sum([run.num_logits for run in runs]):
        return logits if logits.shape[0] == num_drawn else logits[:num_drawn]
    last, stop = list[int](), 0
    for item, run in zip(items, runs, strict=True):
        stop += run.num_logits
        if item.samples:
            last += range(stop - item.num_rows, stop)
    return logits[mx.array(last)]


def _prompt_logprobs(
    items: Seq[ScheduledSequence], runs: Seq[Run], logits: mx.array
) -> list[PromptLogprobs]:
    if not any(item.sequence.wants_prompt_logprobs for item in items):
        return []
    out, start = [], 0
    for item, run in zip(items, runs, strict=True):
        if predicts_prompt(item):
            out.append(prompt_logprobs(item, logits[start : start + run.num_logits]))
        start += run.num_logits
    return out
