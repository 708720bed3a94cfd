"""What changes the logits of some rows before a token is drawn.

Penalties live on the device: with a step always under way, the host does not know the newest
token when the next step is built. Counts are kept per sequence and updated with the drawn ids.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np

from ..backend import mx
from ..sampling_params import SamplingParams

RowKey = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowState:
    """What the sampler must know of one row.

    Attributes:
        key: Identifies the sequence over steps.
        position: Of the token that is about to be drawn; keys the row's random numbers.
        num_output_tokens: Tokens drawn before, read back or not.
        token_ids: Prompt and answer as far as known; complete when the row's sequence is new here.
    """

    key: RowKey
    params: SamplingParams
    seed: int
    position: int
    num_prompt_tokens: int
    num_output_tokens: int
    token_ids: Seq[int]


class Penalties:
    """Repetition, presence and frequency penalties over mixed rows.

    Sources: Keskar et al. 2019, "CTRL" (repetition); OpenAI API reference (presence, frequency).
    """

    def __init__(self) -> None:
        # Per sequence: tokens of the prompt, ``[vocab]`` bool; counts in the answer, ``[vocab]``.
        self._prompt: dict[RowKey, mx.array] = {}
        self._counts: dict[RowKey, mx.array] = {}

    def apply(self, logits: mx.array, rows: Seq[RowState]) -> mx.array:
        """Penalise the rows that ask for it; ``logits`` is ``[rows, vocab]``, float32."""
        chosen = _penalised(rows)
        if not chosen:
            return logits
        for i in chosen:
            self._ensure(rows[i], logits.shape[-1])
        index = mx.array(chosen)
        part = logits[index]
        counts = mx.stack([self._counts[rows[i].key] for i in chosen])
        seen = mx.stack([self._prompt[rows[i].key] for i in chosen]) | (counts > 0)
        repetition = _column([rows[i].params.repetition_penalty for i in chosen])
        frequency = _column([rows[i].params.frequency_penalty for i in chosen])
        presence = _column([rows[i].params.presence_penalty for i in chosen])
        scaled = mx.where(part > 0, part / repetition, part * repetition)
        part = mx.where(seen, scaled, part) - frequency * counts - presence * (counts > 0)
        logits[index] = part
        return logits

    def count(self, token_ids: mx.array, rows: Seq[RowState]) -> list[mx.array]:
        """Add the drawn ids, ``[rows]``, to the counts; returns what must be evaluated."""
        changed = []
        for i in _penalised(rows):
            key = rows[i].key
            self._counts[key] = self._counts[key].at[token_ids[i]].add(1)
            changed.append(self._counts[key])
        return changed

    def forget(self, key: RowKey) -> None:
        """Drop a finished sequence's counts."""
        self._prompt.pop(key, None)
        self._counts.pop(key, None)

    def _ensure(self, row: RowState, vocab_size: int) -> None:
        if row.key in self._counts:
            return
        tokens = np.asarray(row.token_ids)
        prompt = np.zeros(vocab_size, dtype=bool)
        prompt[tokens[: row.num_prompt_tokens]] = True
        counts = np.bincount(tokens[row.num_prompt_tokens :], minlength=vocab_size)
        self._prompt[row.key] = mx.array(prompt)
        self._counts[row.key] = mx.array(counts.astype(np.int32))


def apply_bias(logits: mx.array, rows: Seq[RowState], eos_token_ids: Seq[int]) -> mx.array:
    """Add ``logit_bias``, and forbid ends before ``min_tokens``; ``[rows, vocab]``, float32."""
    at: list[tuple[int, int]] = []
    amounts: list[float] = []
    for i, row in enumerate(rows):
        for token_id, bias in row.params.logit_bias.items():
            at.append((i, token_id))
            amounts.append(bias)
        if row.num_output_tokens < row.params.min_tokens:
            for token_id in {*eos_token_ids, *row.params.stop_token_ids}:
                at.append((i, token_id))
                amounts.append(-np.inf)
    if not at:
        return logits
    index = mx.array(at)
    return logits.at[index[:, 0], index[:, 1]].add(mx.array(amounts, dtype=mx.float32))


def _penalised(rows: Seq[RowState]) -> list[int]:
    return [i for i, row in enumerate(rows) if row.params.has_penalties]


def _column(values: Seq[float]) -> mx.array:
    return mx.array(list(values), dtype=mx.float32)[:, None]
