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
from .host_array import HostArray

RowKey = tuple[str, int]

# As good as minus infinity against any logit, but what a mask forbids is still less: where a
# grammar lets nothing else through, it wins.
_BANNED = -1e9


# Not frozen, as one is made for every row of every step, but nobody changes it.
@dataclass(slots=True, kw_only=True)
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

    def apply(self, logits: mx.array, rows: Seq[RowState], chosen: list[int]) -> mx.array:
        """Penalise the chosen rows of ``logits``, ``[rows, vocab]``, float32."""
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

    def count(self, token_ids: mx.array, rows: Seq[RowState], chosen: list[int]) -> list[mx.array]:
        """Add the chosen rows' drawn ids to their counts; returns what must be evaluated.

        Args:
            token_ids: ``[rows]``.
        """
        changed = []
        for i in chosen:
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


class Bias:
    """``logit_bias`` of some rows, and ends that are forbidden before ``min_tokens``.

    What is added changes only when a row has drawn its least number of tokens.
    """

    def __init__(self, params: Seq[SamplingParams], eos_token_ids: Seq[int]) -> None:
        self._params = params
        self._eos_token_ids = eos_token_ids
        self._with_least = [i for i, p in enumerate(params) if p.min_tokens]
        self._waiting: list[int] | None = None
        # Row and token id of each amount, and the amounts.
        self._entries: tuple[mx.array, mx.array, mx.array] | None = None

    def apply(self, logits: mx.array, rows: Seq[RowState]) -> mx.array:
        """Add to ``logits``, ``[rows, vocab]``, float32."""
        waiting = [
            i for i in self._with_least if rows[i].num_output_tokens < self._params[i].min_tokens
        ]
        if waiting != self._waiting:
            self._waiting = waiting
            self._entries = self._build(waiting)
        if self._entries is None:
            return logits
        at_row, at_token, amounts = self._entries
        return logits.at[at_row, at_token].add(amounts)

    def _build(self, waiting: Seq[int]) -> tuple[mx.array, mx.array, mx.array] | None:
        entries = [
            (i, token_id, bias)
            for i, params in enumerate(self._params)
            for token_id, bias in params.logit_bias.items()
        ]
        for i in waiting:
            ends = {*self._eos_token_ids, *self._params[i].stop_token_ids}
            entries += [(i, token_id, _BANNED) for token_id in ends]
        if not entries:
            return None
        at_row, at_token, amounts = zip(*entries, strict=True)
        return mx.array(at_row), mx.array(at_token), mx.array(amounts, dtype=mx.float32)


def apply_masks(logits: mx.array, masks: HostArray) -> mx.array:
    """Keep tokens whose bit is set; see `Sampler.sample`."""
    bits = mx.array(masks)[:, :, None] >> mx.arange(32, dtype=mx.uint32)
    allowed = (bits & 1).reshape(len(masks), -1)[:, : logits.shape[-1]]
    return mx.where(allowed.astype(mx.bool_), logits, -mx.inf)


def _column(values: Seq[float]) -> mx.array:
    return mx.array(list(values), dtype=mx.float32)[:, None]
