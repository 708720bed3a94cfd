"""Executes schedules: builds a step's graph, dispatches it, and hands out what to read later.

The step that `execute` returns is still under way on the device. The next one can be built before
it is read: rows whose newest token the host does not know yet take it from the device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..backend import mx
from .host_array import HostArray
from .logits_processors import RowKey, RowState
from .logprobs import gather_logprobs
from .sampler import SampledRows, Sampler
from .step_output import PromptLogprobs, SampledRun, StepInFlight

if TYPE_CHECKING:  # engine stands above runner; a schedule only passes through here
    from ..engine.schedule import Schedule, ScheduledSequence
    from ..engine.sequence import Sequence


# From the sequences that draw, in the order of their rows, and the vocabulary's size to masks, see
# `Sampler.sample`. It waits for the step before.
MaskBuilder: TypeAlias = "Callable[[Seq[ScheduledSequence], int], HostArray]"


class ModelRunner(ABC):
    """Runs a model with the cache that the subclass brings."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        # The newest step's tokens, still on the device, and which row is whose.
        self._last_tokens: mx.array | None = None
        self._last_rows: dict[RowKey, int] = {}

    @property
    @abstractmethod
    def cache_bytes(self) -> int:
        """Memory that keys and values take."""

    @property
    def num_traces(self) -> int:
        """Graphs of steps compiled so far."""
        return 0

    @abstractmethod
    def execute(self, schedule: Schedule, masks: MaskBuilder | None = None) -> StepInFlight:
        """Build a step, start it on the device and return without waiting.

        Args:
            masks: Called, if any of the sequences is constrained, while the device runs the model.
        """

    def use_idle_time(self) -> bool:
        """Do a little of what nobody waits for; returns whether there is more."""
        return False

    @abstractmethod
    def scrub(self) -> None:
        """Clear away what sequences that failed have left behind."""

    def forget(self, key: RowKey) -> None:
        """Drop what is kept for a finished sequence."""
        self._sampler.forget(key)

    def reset(self) -> None:
        """Start from a clean device state after a failed step."""
        self._last_tokens, self._last_rows = None, {}

    def _sample(
        self, logits: mx.array, items: Seq[ScheduledSequence], masks: MaskBuilder | None
    ) -> tuple[SampledRows, list[mx.array]]:
        """Draw a token for each row of ``items``, whose logits are ``[rows, vocab]``."""
        bits = None
        if masks is not None:
            dispatch([logits])
            bits = masks(items, logits.shape[-1])
        states = [
            row_state(item.sequence, item.start + item.num_prefill + 1 + row)
            for item in items
            for row in range(item.num_rows)
        ]
        sampled, extra = self._sampler.sample(logits, states, bits)
        self._last_tokens = sampled.token_ids
        self._last_rows, first = {}, 0
        for item in items:
            self._last_rows[item.sequence.key] = first
            first += item.num_rows
        return sampled, [*sampled.arrays(), *extra]

    def _source(self, item: ScheduledSequence) -> int | None:
        """Where a row's token is found in the tokens of the step before, if it is not known."""
        position = item.start + item.num_prefill
        if position < len(item.sequence.token_ids):
            return None
        return self._last_rows[item.sequence.key]


def dispatch(*arrays: list[Any]) -> None:
    """Start work on the device."""
    mx.async_eval(*arrays)  # type: ignore[no-untyped-call]


def predicts_prompt(item: ScheduledSequence) -> bool:
    """Whether a chunk's logits are about prompt tokens whose logprobs are wanted."""
    # A resumed sequence also runs chunks that lie in its answer.
    sequence = item.sequence
    return sequence.wants_prompt_logprobs and item.start + 1 < sequence.num_prompt_tokens


def prompt_logprobs(item: ScheduledSequence, logits: mx.array) -> PromptLogprobs:
    """Log probabilities of the tokens that a chunk's logits, ``[n, vocab]``, predict."""
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


def sampled_runs(items: Seq[ScheduledSequence]) -> tuple[SampledRun, ...]:
    """Where the rows of sequences that draw are, one sequence after another."""
    runs, first = [], 0
    for item in items:
        runs.append(SampledRun(item.sequence.key, first, item.drafts))
        first += item.num_rows
    return tuple(runs)


def row_state(sequence: Sequence, position: int) -> RowState:
    """What the sampler must know to draw a sequence's token at ``position``."""
    return RowState(
        key=sequence.key,
        params=sequence.params,
        seed=sequence.seed,
        position=position,
        num_prompt_tokens=sequence.num_prompt_tokens,
        num_output_tokens=position - sequence.num_prompt_tokens,
        token_ids=sequence.token_ids,
    )
