"""Log probabilities of drawn tokens and of the likeliest ones."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np

from ..backend import mx
from ..request import RawLogprobs
from .top_k import top_k


@dataclass(frozen=True, slots=True)
class LogprobArrays:
    """Device arrays of some rows' log probabilities; read them after the step is done.

    Attributes:
        rows: Which rows of the batch these are.
        wanted: How many of the likeliest tokens each row asked for.
        chosen_ids: ``[n]``, int32.
        chosen: ``[n]``, float32.
        top_ids: ``[n, k]``, uint32, best first; ``k`` is the most that any row asked for.
        top: ``[n, k]``, float32.
    """

    rows: tuple[int, ...]
    wanted: tuple[int, ...]
    chosen_ids: mx.array
    chosen: mx.array
    top_ids: mx.array | None
    top: mx.array | None

    def arrays(self) -> list[mx.array]:
        """What must be evaluated."""
        return [a for a in (self.chosen_ids, self.chosen, self.top_ids, self.top) if a is not None]

    def read(self) -> dict[int, RawLogprobs]:
        """Numbers by row; waits for the device."""
        ids, values = np.asarray(self.chosen_ids), np.asarray(self.chosen)
        out = {}
        for i, (row, count) in enumerate(zip(self.rows, self.wanted, strict=True)):
            top: tuple[tuple[int, float], ...] = ()
            if count and self.top_ids is not None and self.top is not None:
                best = np.asarray(self.top_ids)[i, :count].tolist()
                top = tuple(zip(best, np.asarray(self.top)[i, :count].tolist(), strict=True))
            out[row] = RawLogprobs(int(ids[i]), float(values[i]), top)
        return out


def gather_logprobs(
    logits: mx.array, token_ids: mx.array, *, rows: Seq[int], wanted: Seq[int]
) -> LogprobArrays:
    """Log probabilities of ``token_ids`` and the likeliest tokens.

    Args:
        logits: ``[n, vocab]``, float32, one per entry of ``rows``.
        token_ids: ``[n]``.
    """
    total = mx.logsumexp(logits, axis=-1, keepdims=True)
    at = token_ids[:, None].astype(mx.int32)
    chosen = (mx.take_along_axis(logits, at, axis=-1) - total)[:, 0]
    most = max(wanted, default=0)
    top_ids = top = None
    if most:
        values, top_ids = top_k(logits, most)
        top = values - total
    return LogprobArrays(tuple(rows), tuple(wanted), token_ids, chosen, top_ids, top)
