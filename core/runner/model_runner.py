"""Executes schedules: builds a step's graph, dispatches it, and hands out what to read later.

The step that `execute` returns is still under way on the device. The next one can be built before
it is read: rows whose newest token the host does not know yet take it from the device.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..backend import mx
from ..cache.kv_layout import LayerGroup
from ..cache.kv_store import KVStore
from ..request import RawLogprobs
from .batch_builder import build_chunk, build_rows
from .forward_batch import ForwardBatch
from .layer_cache import make_layer_caches
from .logits_processors import RowKey, RowState
from .logprobs import LogprobArrays, gather_logprobs
from .model_adapter import Model, new_prompt_cache
from .sampler import SampledRows, Sampler

if TYPE_CHECKING:  # engine stands above runner; a schedule only passes through here
    from ..engine.schedule import Schedule, ScheduledSequence


# A sequence, the first position that is predicted, and one row of log probabilities a position.
PromptLogprobs: TypeAlias = tuple[RowKey, int, LogprobArrays]


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step drew, read back.

    Attributes:
        token_ids: By sequence.
        failed: Sequences whose logits were not numbers.
        logprobs: Of the rows that asked.
        prompt_logprobs: By sequence: position of the first prediction, and one entry a position.
    """

    token_ids: dict[RowKey, int]
    failed: frozenset[RowKey] = frozenset()
    logprobs: dict[RowKey, RawLogprobs] = field(default_factory=dict)
    prompt_logprobs: dict[RowKey, tuple[int, list[RawLogprobs]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StepInFlight:
    """A dispatched step."""

    keys: tuple[RowKey, ...]
    sampled: SampledRows | None
    prompt: tuple[PromptLogprobs, ...]

    def read(self) -> StepOutput:
        """Wait for the device and read the step back."""
        ids: dict[RowKey, int] = {}
        failed: frozenset[RowKey] = frozenset()
        logprobs: dict[RowKey, RawLogprobs] = {}
        if self.sampled is not None:
            drawn = np.asarray(self.sampled.token_ids).tolist()
            ids = dict(zip(self.keys, drawn, strict=True))
            valid = np.asarray(self.sampled.is_valid).tolist()
            failed = frozenset(
                key for key, is_valid in zip(self.keys, valid, strict=True) if not is_valid
            )
            if self.sampled.logprobs is not None:
                logprobs = {self.keys[i]: raw for i, raw in self.sampled.logprobs.read().items()}
        prompt = {key: (first, list(a.read().values())) for key, first, a in self.prompt}
        failed |= {
            key
            for key, (_, entries) in prompt.items()
            if any(math.isnan(entry.logprob) for entry in entries)
        }
        return StepOutput(ids, failed, logprobs, prompt)


class ModelRunner(ABC):
    """Owns the model; subclasses own its cache."""

    def __init__(self, model: Model, sampler: Sampler) -> None:
        self._model = model
        self._sampler = sampler
        # The newest step's tokens, still on the device, and which row is whose.
        self._last_tokens: mx.array | None = None
        self._last_rows: dict[RowKey, int] = {}

    @property
    @abstractmethod
    def cache_bytes(self) -> int:
        """Memory that keys and values take."""

    def execute(self, schedule: Schedule) -> StepInFlight:
        """Build a step, start it on the device and return without waiting."""
        prompt = [
            logprobs
            for item in schedule.scheduled
            if item.num_prefill and (logprobs := self._start_chunk(item)) is not None
        ]
        sampled, extra = None, list[mx.array]()
        rows = schedule.rows
        if rows:
            logits = self._run_rows(rows, self._row_tokens(rows))
            sampled, extra = self._sampler.sample(logits, [_row_state(item) for item in rows])
            self._last_tokens = sampled.token_ids
            _dispatch(sampled.arrays(), extra, self._cache_arrays())
            self._last_rows = {item.sequence.key: i for i, item in enumerate(rows)}
        keys = tuple(item.sequence.key for item in rows)
        return StepInFlight(keys, sampled, tuple(prompt))

    def _start_chunk(self, item: ScheduledSequence) -> PromptLogprobs | None:
        """Start a chunk on the device.

        It must be under way before anything else writes to the cache: what still waits to read an
        array keeps the next write from happening in place, and the whole cache is copied instead.
        """
        logits = self._run_chunk(item)
        logprobs = _prompt_logprobs(item, logits) if _predicts_prompt(item) else None
        del logits  # unused, it would hold on to the last layer's keys and values
        _dispatch([] if logprobs is None else logprobs[2].arrays(), self._cache_arrays())
        return logprobs

    def forget(self, key: RowKey) -> None:
        """Drop what is kept for a finished sequence."""
        self._sampler.forget(key)

    @abstractmethod
    def scrub(self) -> None:
        """Clear away what sequences that failed have left behind."""

    def reset(self) -> None:
        """Start from a clean device state after a failed step."""
        self._last_tokens, self._last_rows = None, {}

    @abstractmethod
    def _run_chunk(self, item: ScheduledSequence) -> mx.array:
        """Run a prefill chunk; logits ``[length, vocab]``, worked out only if they are used."""

    @abstractmethod
    def _run_rows(self, rows: Seq[ScheduledSequence], token_ids: mx.array) -> mx.array:
        """Run one token of each row; logits ``[rows, vocab]``."""

    @abstractmethod
    def _cache_arrays(self) -> list[Any]:
        """The cache's arrays, evaluated with every step."""

    def _row_tokens(self, rows: Seq[ScheduledSequence]) -> mx.array:
        """Each row's newest token, ``[rows]``, from the host or from the step under way."""
        known = np.zeros(len(rows), dtype=np.int32)
        source = np.full(len(rows), -1, dtype=np.int32)
        for i, item in enumerate(rows):
            position = item.start + item.num_prefill
            if position < item.sequence.num_tokens:
                known[i] = item.sequence.token_ids[position]
            else:
                source[i] = self._last_rows[item.sequence.key]
        if self._last_tokens is None or not (source >= 0).any():
            return mx.array(known)
        pending = self._last_tokens[mx.array(np.maximum(source, 0))]
        return mx.where(mx.array(source >= 0), pending, mx.array(known))


class PagedRunner(ModelRunner):
    """Runs all sequences together on the paged KV store."""

    def __init__(self, model: Model, sampler: Sampler, store: KVStore) -> None:
        super().__init__(model, sampler)
        self._store = store

    @property
    def cache_bytes(self) -> int:
        """Memory of the KV store."""
        return self._store.nbytes

    def scrub(self) -> None:
        """Clear all blocks of what are no numbers."""
        self._store.scrub()

    def reset(self) -> None:
        """Empty the KV store."""
        super().reset()
        self._store.reset()

    @property
    def _groups(self) -> Seq[LayerGroup]:
        return self._store.layout.groups

    def _run_chunk(self, item: ScheduledSequence) -> mx.array:
        tokens = item.sequence.token_ids[item.start : item.start + item.num_prefill]
        batch = build_chunk(tokens, item.start, item.sequence.cache.tables, self._groups)
        return self._forward(batch)[0]

    def _run_rows(self, rows: Seq[ScheduledSequence], token_ids: mx.array) -> mx.array:
        batch = build_rows(
            token_ids,
            [item.start + item.num_prefill for item in rows],
            [item.sequence.cache.tables for item in rows],
            self._groups,
        )
        return self._forward(batch)[:, -1]

    def _forward(self, batch: ForwardBatch) -> mx.array:
        logits: mx.array = self._model(batch.token_ids, cache=make_layer_caches(self._store, batch))
        return logits

    def _cache_arrays(self) -> list[Any]:
        # Their evaluation brings all earlier layers' along. Naming those too would make mlx hold
        # on to them until the pass is done, and the next pass could not write to them in place.
        return self._store.last_layer()


class SequentialRunner(ModelRunner):
    """Runs a model that does not fit the paged store on mlx-lm's own cache, one answer at a time.

    The scheduler must be set to one running sequence and no layer groups.
    """

    def __init__(self, model: Model, sampler: Sampler) -> None:
        super().__init__(model, sampler)
        self._caches: list[Any] = []
        self._owner: RowKey | None = None

    @property
    def cache_bytes(self) -> int:
        """Memory of the running sequence's cache."""
        return sum(int(cache.nbytes) for cache in self._caches if hasattr(cache, "nbytes"))

    def forget(self, key: RowKey) -> None:
        """Drop the sequence's cache."""
        super().forget(key)
        if key == self._owner:
            self._caches, self._owner = [], None

    def scrub(self) -> None:
        """Nothing to do: `forget` has dropped the failed sequence's cache."""

    def reset(self) -> None:
        """Drop the running cache."""
        super().reset()
        self._caches, self._owner = [], None

    def _run_chunk(self, item: ScheduledSequence) -> mx.array:
        self._take(item)
        tokens = item.sequence.token_ids[item.start : item.start + item.num_prefill]
        logits = self._model(mx.array([tokens]), cache=self._caches)[0]
        out: mx.array = logits
        return out

    def _run_rows(self, rows: Seq[ScheduledSequence], token_ids: mx.array) -> mx.array:
        (item,) = rows
        self._take(item)
        logits: mx.array = self._model(token_ids[None], cache=self._caches)[:, -1]
        return logits

    def _cache_arrays(self) -> list[Any]:
        return [cache.state for cache in self._caches]

    def _take(self, item: ScheduledSequence) -> None:
        if self._owner != item.sequence.key:
            assert item.start == 0, "a sequence's own cache is gone before it ended"
            self._caches, self._owner = new_prompt_cache(self._model), item.sequence.key


def _dispatch(*arrays: list[Any]) -> None:
    mx.async_eval(*arrays)  # type: ignore[no-untyped-call]


def _row_state(item: ScheduledSequence) -> RowState:
    sequence = item.sequence
    drawn = item.stop
    return RowState(
        key=sequence.key,
        params=sequence.params,
        seed=sequence.seed,
        position=drawn,
        num_prompt_tokens=sequence.num_prompt_tokens,
        num_output_tokens=drawn - sequence.num_prompt_tokens,
        token_ids=sequence.token_ids,
    )


def _predicts_prompt(item: ScheduledSequence) -> bool:
    """Whether a chunk's logits are about prompt tokens whose logprobs are wanted."""
    # A resumed sequence also runs chunks that lie in its answer.
    sequence = item.sequence
    return sequence.wants_prompt_logprobs and item.start + 1 < sequence.num_prompt_tokens


def _prompt_logprobs(item: ScheduledSequence, logits: mx.array) -> PromptLogprobs:
    """Log probabilities of the tokens that a chunk's logits predict."""
    sequence = item.sequence
    first = item.start + 1
    # A resumed chunk may reach into the answer, whose logprobs were told when it was drawn.
    count = min(item.num_prefill, sequence.num_prompt_tokens - first)
    predicted = sequence.token_ids[first : first + count]
    wanted = sequence.params.num_prompt_logprobs or 0
    arrays = gather_logprobs(
        logits[:count].astype(mx.float32),
        mx.array(np.asarray(predicted, dtype=np.int32)),
        rows=range(count),
        wanted=[wanted] * count,
    )
    return sequence.key, first, arrays
