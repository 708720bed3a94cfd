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
from .step_costs import StepCosts

logger = logging.getLogger(__name__)

_CHUNKS = (64, 256, 1024)


class WarmUp:
    """Steps of nobody's tokens on one model and store."""

    def __init__(self, model: PagedModel, store: KVStore) -> None:
        self._model = model
        self._store = store
        self._builder = BatchBuilder(store.layout.groups, model.attention)

    def rows(self, count: int) -> float:
        """Run rows alone; returns the seconds."""
        return self._run([self._tokens(1) for _ in range(count)])

    def chunk(self, length: int) -> float:
        """Run a chunk alone; returns the seconds."""
        return self._run([self._tokens(length)])

    def chunk_bytes(self, length: int) -> int:
        """Memory that a chunk needs while it runs."""
        mx.synchronize()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        self.chunk(length)
        return int(mx.get_peak_memory()) - before

    def _tokens(self, count: int) -> Run:
        size = self._store.block_size
        tables = []
        for group in range(len(self._store.layout.groups)):
            table = BlockTable(size)
            table.append([self._store.trash_block(group)] * -(-count // size))
            tables.append(table)
        return Run(token_ids=[0] * count, start=0, tables=tables, num_logits=1)

    def _run(self, runs: list[Run]) -> float:
        batch = self._builder.build(runs)
        started_at = time.perf_counter()
        logits, written = self._model.run(self._store, batch)
        mx.eval(logits, written)
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
        warm_up.rows(rows)
        costs.observe(count, 0, warm_up.rows(rows))
        count = rows + 1
    for length in (*(size for size in _CHUNKS if size < prefill_chunk), prefill_chunk):
        warm_up.chunk(length)
        costs.observe(0, length, warm_up.chunk(length))
    logger.debug("warm-up took %.1f s: %s", time.perf_counter() - started_at, costs)
