"""Runs a model that does not fit the paged store on mlx-lm's own cache, one answer at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..backend import mx
from .logits_processors import RowKey
from .model_adapter import Model, new_prompt_cache
from .model_runner import (
    MaskBuilder,
    ModelRunner,
    dispatch,
    predicts_prompt,
    prompt_logprobs,
    sampled_runs,
)
from .sampler import Sampler
from .step_output import PromptLogprobs, StepInFlight

if TYPE_CHECKING:
    from ..engine.schedule import Schedule, ScheduledSequence


class SequentialRunner(ModelRunner):
    """The scheduler must be set to one running sequence and no layer groups."""

    def __init__(self, model: Model, sampler: Sampler) -> None:
        super().__init__(sampler)
        self._model = model
        self._caches: list[Any] = []
        self._owner: RowKey | None = None

    @property
    def cache_bytes(self) -> int:
        """Memory of the running sequence's cache."""
        return sum(int(cache.nbytes) for cache in self._caches if hasattr(cache, "nbytes"))

    def execute(self, schedule: Schedule, masks: MaskBuilder | None = None) -> StepInFlight:
        """See `ModelRunner.execute`."""
        (item,) = schedule.scheduled
        self._take(item)
        prompt = list[PromptLogprobs]()
        if item.num_prefill:
            logits = self._run(item.sequence.token_ids[item.start : item.start + item.num_prefill])
            if predicts_prompt(item):
                prompt.append(prompt_logprobs(item, logits))
            del logits
            dispatch([array for _, _, p in prompt for array in p.arrays()], self._states())
        if not item.samples:
            return StepInFlight((), None, tuple(prompt))
        source = self._source(item)
        if source is None:
            token = mx.array(item.sequence.token_ids[item.stop - 1 : item.stop])
        else:
            assert self._last_tokens is not None
            token = self._last_tokens[source : source + 1]
        sampled, arrays = self._sample(self._run(token)[-1:], [item], masks)
        dispatch(arrays, self._states())
        return StepInFlight(sampled_runs([item]), sampled, tuple(prompt))

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

    def _run(self, token_ids: mx.array | list[int]) -> mx.array:
        """Run tokens, ``[length]``; logits ``[length, vocab]``, worked out if used."""
        logits: mx.array = self._model(mx.array(token_ids)[None], cache=self._caches)[0]
        return logits

    def _states(self) -> list[Any]:
        return [cache.state for cache in self._caches]

    def _take(self, item: ScheduledSequence) -> None:
        if self._owner != item.sequence.key:
            assert item.start == 0, "a sequence's own cache is gone before it ended"
            self._caches, self._owner = new_prompt_cache(self._model), item.sequence.key
