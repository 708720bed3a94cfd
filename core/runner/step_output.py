"""What a step leaves behind: arrays still under way, and the numbers read back from them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np

from ..request import RawLogprobs
from ..speculation.sequence_drafts import count_accepted
from .logits_processors import RowKey
from .logprobs import LogprobArrays
from .sampler import SampledRows

# A sequence, the first position that is predicted, and one row of log probabilities a position.
PromptLogprobs: TypeAlias = tuple[RowKey, int, LogprobArrays]


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step drew, read back.

    Attributes:
        token_ids: By sequence; more than one if drafts were right.
        failed: Sequences whose logits were not numbers.
        logprobs: Of the sequences that asked, one entry a token.
        prompt_logprobs: By sequence: position of the first prediction, and one entry a position.
    """

    token_ids: dict[RowKey, list[int]]
    failed: frozenset[RowKey] = frozenset()
    logprobs: dict[RowKey, list[RawLogprobs]] = field(default_factory=dict)
    prompt_logprobs: dict[RowKey, tuple[int, list[RawLogprobs]]] = field(default_factory=dict)


# Not frozen, as one is made for every row of every step, but nobody changes it.
@dataclass(slots=True)
class SampledRun:
    """Rows of one sequence.

    Attributes:
        first: Its first row.
        drafts: Guesses, each the input of one more row.
    """

    key: RowKey
    first: int
    drafts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class StepInFlight:
    """A dispatched step."""

    runs: tuple[SampledRun, ...]
    sampled: SampledRows | None
    prompt: tuple[PromptLogprobs, ...]

    def read(self) -> StepOutput:
        """Wait for the device and read the step back."""
        output = StepOutput({})
        failed: set[RowKey] = set()
        if self.sampled is not None:
            drawn = np.asarray(self.sampled.read_ids).tolist()
            logprobs = self.sampled.logprobs.read() if self.sampled.logprobs else {}
            for run in self.runs:
                if not run.drafts and not logprobs:
                    token_id = drawn[run.first]
                    output.token_ids[run.key] = [token_id]
                    if token_id < 0:
                        failed.add(run.key)
                    continue
                rows = range(run.first, run.first + 1 + _count_right(run, drawn))
                output.token_ids[run.key] = [drawn[row] for row in rows]
                if rows[0] in logprobs:
                    output.logprobs[run.key] = [logprobs[row] for row in rows]
                if any(drawn[row] < 0 for row in rows):
                    failed.add(run.key)
        for key, first, arrays in self.prompt:
            entries = list(arrays.read().values())
            output.prompt_logprobs[key] = (first, entries)
            if any(math.isnan(entry.logprob) for entry in entries):
                failed.add(key)
        return replace(output, failed=frozenset(failed))


def _count_right(run: SampledRun, drawn: list[int]) -> int:
    """Drafts up to the first that is not what was drawn in its place."""
    return count_accepted(run.drafts, drawn[run.first : run.first + len(run.drafts)])
