"""A model on the paged KV store: one call runs a batch.

Batches of rows alone come in few shapes and are compiled, one graph a shape. Building the graph
of a step then costs a third of the time, and mlx fuses small operations.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as Seq
from typing import Any

from ..backend import mx
from ..cache.kv_store import KVStore
from .attention.row_attention import RowAttention
from .forward_batch import ForwardBatch
from .head import Head
from .layer_cache import ForwardPass
from .model_adapter import Model

logger = logging.getLogger(__name__)


class PagedModel:
    """Runs batches.

    Args:
        head: Works out chosen rows' logits only; without it, all logits of a batch are.
        is_compiled: Whether batches of rows alone are compiled.

    Attributes:
        num_traces: Graphs compiled so far; steady once all shapes have been met.
    """

    def __init__(
        self,
        model: Model,
        attention: RowAttention[Any],
        *,
        head: Head | None = None,
        is_compiled: bool = False,
    ) -> None:
        self._model = model
        self.attention = attention
        self._head = head
        self.is_compiled = is_compiled
        self._compiled = mx.compile(self._trace)
        self._store: KVStore | None = None
        self._template: ForwardBatch | None = None
        self.num_traces = 0

    def run(self, store: KVStore, batch: ForwardBatch) -> tuple[mx.array, list[mx.array]]:
        """Run a batch.

        Returns:
            Logits of the tokens that want them, ``[n, vocab]``, and what must be evaluated for the
            store to hold the batch's tokens.
        """
        is_rows = not any(group.chunks for group in batch.groups)
        if not (self.is_compiled and is_rows and batch.logit_index is None):
            return self._run(store, batch)
        self._store, self._template = store, batch
        try:
            if store.is_written_in_place:
                logits, *written = self._compiled(batch.arrays, store.arrays())
                return logits, written
            logits, *arrays = self._compiled(batch.arrays, store.arrays())
        # Model code may look at numbers, which a trace does not have; it runs all the same.
        except Exception as error:
            if self.num_traces > 1:  # it worked before, so this is no matter of compiling
                raise
            logger.warning("steps are not compiled: %s", error)
            self.is_compiled = False
            return self._run(store, batch)
        store.put(arrays)
        return logits, store.last_layer()

    def _trace(self, batch_arrays: Seq[mx.array], store_arrays: Seq[mx.array]) -> list[mx.array]:
        """The same as a function of arrays."""
        assert self._store is not None
        assert self._template is not None
        self.num_traces += 1
        batch = self._template.with_arrays(batch_arrays)
        logger.debug("compile a step of rows=%d", batch.num_rows)
        store = self._store.over(store_arrays)
        logits, written = self._run(store, batch)
        return [logits, *(written if store.is_written_in_place else store.arrays())]

    def _run(self, store: KVStore, batch: ForwardBatch) -> tuple[mx.array, list[mx.array]]:
        forward = ForwardPass(store, self.attention, batch)
        caches = forward.layer_caches()
        tokens, index = batch.token_ids[:, None], batch.logit_index
        logits: mx.array
        if index is not None and index.size and self._head is not None:
            with self._head.select(index):
                logits = self._model(tokens, cache=caches)[:, -1]
        else:
            logits = self._model(tokens, cache=caches)[:, -1]
            logits = logits if index is None else logits[index]
        # Evaluating the last layer's keys and values brings all earlier layers' along. Naming
        # those too would make mlx hold on to them until the pass is done, and the next pass could
        # not write to them in place.
        return logits, forward.written if store.is_written_in_place else store.last_layer()
