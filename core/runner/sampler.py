"""Draws one token for each row of logits, every row by its own params.

A row's draw depends on its logits, its seed and its position only. Nothing here waits for the
device: what is kept of a batch on the host depends on its rows' params, which mostly are those of
the step before.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from ..backend import mx
from ..sampling_params import SamplingParams
from .draw import Method, SamplingArrays, draw, group_rows
from .host_array import HostArray
from .logits_processors import Bias, Penalties, RowKey, RowState, apply_masks
from .logprobs import LogprobArrays, gather_logprobs
from .noise import row_keys


@dataclass(frozen=True, slots=True)
class SampledRows:
    """Device arrays of one draw.

    Attributes:
        token_ids: ``[rows]``, int32, for the next step.
        read_ids: The same for the host, but negative where the model's logits were not numbers.
            Apart, since on CUDA an array that the host has read must be brought back to the GPU.
        logprobs: Of the rows that asked.
    """

    token_ids: mx.array
    read_ids: mx.array
    logprobs: LogprobArrays | None

    def arrays(self) -> list[mx.array]:
        """What must be evaluated."""
        more = self.logprobs.arrays() if self.logprobs else []
        return [self.token_ids, self.read_ids, *more]


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows that are drawn together; ``index`` is ``None`` if they are all there are."""

    index: mx.array | None
    arrays: SamplingArrays
    method: Method


class _Plan:
    """What follows from the params of a batch's rows."""

    def __init__(
        self, params: list[SamplingParams], vocab_size: int, eos_token_ids: Seq[int]
    ) -> None:
        self.params = params
        self.vocab_size = vocab_size
        self.bias = Bias(params, eos_token_ids)
        self.penalised = [i for i, p in enumerate(params) if p.has_penalties]
        self.asked = [i for i, p in enumerate(params) if p.num_logprobs is not None]
        self.wanted = [params[i].num_logprobs or 0 for i in self.asked]
        hot = [i for i, p in enumerate(params) if not p.is_greedy]
        self.groups = []
        for of_hot, method in group_rows([params[i] for i in hot], vocab_size):
            rows = [hot[i] for i in of_hot]
            index = mx.array(rows) if len(rows) < len(params) else None
            arrays = SamplingArrays.of([params[i] for i in rows], vocab_size)
            self.groups.append(_Group(index, arrays, method))


class Sampler:
    """Vectorised sampling over mixed rows.

    Args:
        eos_token_ids: Forbidden while a row has drawn fewer than its ``min_tokens``.
    """

    def __init__(self, eos_token_ids: Seq[int]) -> None:
        self._eos_token_ids = tuple(eos_token_ids)
        self._penalties = Penalties()
        self._plan = _Plan([], 0, ())

    def sample(
        self, logits: mx.array, rows: Seq[RowState], masks: HostArray | None = None
    ) -> tuple[SampledRows, list[mx.array]]:
        """Draw a token for each row.

        Args:
            logits: ``[rows, vocab]``, any float dtype.
            masks: Which tokens may be drawn, ``[rows, ceil(vocab / 32)]``, uint32: bit ``i % 32``
                of word ``i // 32`` is for token ``i``. ``None`` if all may.

        Returns:
            The draw, and further arrays that must be evaluated with it.
        """
        plan = self._plan_for([row.params for row in rows], logits.shape[-1])
        logits = logits.astype(mx.float32)
        # A number only if all logits are.
        total = logits.sum(axis=-1)
        if plan.penalised:
            logits = self._penalties.apply(logits, rows, plan.penalised)
        logits = plan.bias.apply(logits, rows)
        if masks is not None:
            logits = apply_masks(logits, masks)
        token_ids = _draw_groups(logits, rows, plan.groups)
        logprobs = None
        if plan.asked:
            index = mx.array(plan.asked)
            logprobs = gather_logprobs(
                logits[index], token_ids[index], rows=plan.asked, wanted=plan.wanted
            )
        counts = self._penalties.count(token_ids, rows, plan.penalised)
        read_ids = mx.where(total == total, token_ids, -1)  # NaN equals nothing
        return SampledRows(token_ids, read_ids, logprobs), counts

    def forget(self, key: RowKey) -> None:
        """Drop what is kept for a sequence."""
        self._penalties.forget(key)

    def _plan_for(self, params: list[SamplingParams], vocab_size: int) -> _Plan:
        # Lists of the same objects are equal without looking into them.
        if params != self._plan.params or vocab_size != self._plan.vocab_size:
            self._plan = _Plan(params, vocab_size, self._eos_token_ids)
        return self._plan


def _draw_groups(logits: mx.array, rows: Seq[RowState], groups: Seq[_Group]) -> mx.array:
    """``[rows]``, int32; rows that are in no group get their likeliest token."""
    if not groups:
        return mx.argmax(logits, axis=-1).astype(mx.int32)
    keys = row_keys([row.seed for row in rows], [row.position for row in rows])
    first, *_ = groups
    if first.index is None:
        return draw(logits, keys, first.arrays, first.method)
    token_ids = mx.argmax(logits, axis=-1).astype(mx.int32)
    for group in groups:
        index = group.index
        token_ids[index] = draw(logits[index], keys[index], group.arrays, group.method)
    return token_ids
