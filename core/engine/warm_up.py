"""Runs steps that nobody asked for, to compile, to measure memory and to time.

Their tokens go into the store's trash block, where nobody reads them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from ..backend import mx
from ..cache.block_table import BlockTable
from ..cache.kv_store import KVStore
from ..runner.batch_builder import BatchBuilder, Run
from ..runner.paged_model import PagedModel
from ..runner.state_store import StateStore
from .step_costs import StepCosts

logger = logging.getLogger(__name__)

_CHUNKS = (32, 64, 256, 1024)
# Tokens of a row that attention shares out among kernels of its own.
_LONG_PAST = 2048


class WarmUp:
    """Steps of nobody's tokens on one model and store."""

    def __init__(self, model: PagedModel, store: KVStore) -> None:
        store.hold(None)
        self._model = model
        self._store = store
        self._states = StateStore(store.layout) if store.layout.recurrent else None
        self._builder = BatchBuilder(store.layout.groups, model.attention, form=model.form)

    def rows(self, count: int, *, past: int = 1) -> float:
        """Run rows alone, each behind so many tokens; returns the seconds."""
        return self._run([self._tokens(1, row, past) for row in range(count)])

    def chunk(self, length: int) -> float:
        """Run a chunk alone; returns the seconds."""
        return self._run([self._tokens(length, 0)])

    def chunk_bytes(self, length: int) -> int:
        """Memory that a chunk needs while it runs."""
        mx.synchronize()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        self.chunk(length)
        return int(mx.get_peak_memory()) - before

    def _tokens(self, count: int, key: int, start: int = 0) -> Run:
        size = self._store.block_size
        tables = []
        for group in range(len(self._store.layout.groups)):
            table = BlockTable(size)
            table.append([self._store.trash_block(group)] * -(-(start + count) // size))
            tables.append(table)
        return Run(token_ids=[0] * count, start=start, tables=tables, num_logits=1, key=key)

    def _run(self, runs: list[Run]) -> float:
        passes = self._builder.build(runs)
        started_at = time.perf_counter()
        logits, written = self._model.run(self._store, passes, self._states)
        mx.eval(logits, written, [] if self._states is None else self._states.take_unsettled())
        return time.perf_counter() - started_at


def learn_costs(
    warm_up: WarmUp,
    costs: StepCosts,
    *,
    max_num_seqs: int,
    prefill_chunk: int,
    row_bucket: Callable[[int], int],
) -> None:
    """Compile the steps of all numbers of rows, and learn how long these and chunks take."""
    started_at = time.perf_counter()
    count = 1
    while count <= max_num_seqs:
        rows = row_bucket(count)
        warm_up.rows(rows, past=_LONG_PAST)
        warm_up.rows(rows)
        costs.observe(count, 0, warm_up.rows(rows))
        count = rows + 1
    for length in (*(size for size in _CHUNKS if size < prefill_chunk), prefill_chunk):
        warm_up.chunk(length)
        costs.observe(0, length, warm_up.chunk(length))
    logger.debug("warm-up took %.1f s: %s", time.perf_counter() - started_at, costs)
