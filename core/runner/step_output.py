"""What a step leaves behind: arrays still under way, and the numbers read back from them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from ..request import RawLogprobs
from .logits_processors import RowKey
from .logprobs import LogprobArrays
from .sampler import SampledRows

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
