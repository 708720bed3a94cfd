"""Compiled steps: the same numbers, few graphs, and no copy of the store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tiny_models import VOCAB_SIZE, make_tiny_model

from pippin.core.backend import mx
from pippin.core.cache.block_table import BlockTable
from pippin.core.cache.kv_store import KVStore
from pippin.core.runner.attention.table_attention import TableAttention
from pippin.core.runner.batch_builder import BatchBuilder, Run
from pippin.core.runner.model_adapter import describe_layout, install_paged_attention
from pippin.core.runner.paged_model import PagedModel


@pytest.fixture(autouse=True)
def compiling() -> Iterator[None]:
    """The backend switches it off on the CPU."""
    mx.enable_compile()
    yield
    mx.disable_compile()


class Case:
    """Some sequences of one tiny model, all decoding."""

    def __init__(self, *, is_compiled: bool, num_blocks: int = 40, model: Any = None) -> None:
        model = make_tiny_model("qwen3").model if model is None else model
        install_paged_attention(model)
        layout, dtype = describe_layout(model)
        self.model = PagedModel(model, TableAttention(), is_compiled=is_compiled)
        self.store = KVStore(layout, [num_blocks] * len(layout.groups), block_size=4, dtype=dtype)
        trash = BlockTable(4)
        trash.append([self.store.trash_block(0)])
        self.builder = BatchBuilder(
            layout.groups,
            self.model.attention,
            trash=[trash] * len(layout.groups),
            row_bucket=lambda count: -(-count // 4) * 4,
        )
        self.tables = [[BlockTable(4) for _ in layout.groups] for _ in range(4)]
        for number, tables in enumerate(self.tables):
            for table in tables:
                table.append([number + 4 * i for i in range(10)])

    def step(self, position: int, count: int) -> np.ndarray[Any, Any]:
        """Logits of the first ``count`` sequences."""
        runs = [
            Run(
                token_ids=[(7 * number + position) % VOCAB_SIZE],
                start=position,
                tables=self.tables[number],
                num_logits=1,
            )
            for number in range(count)
        ]
        logits, written = self.model.run(self.store, self.builder.build(runs))
        mx.eval(logits, written)
        return np.array(logits[:count])


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "gpt-oss"])
def test_compiled_steps_have_the_same_logits_and_few_graphs(family: str) -> None:
    model = make_tiny_model(family).model
    plain, compiled = (Case(is_compiled=it, model=model) for it in (False, True))

    for position in range(24):
        count = (1, 4, 3, 2)[position % 4] if position > 12 else 4
        want = plain.step(position, count)
        got = compiled.step(position, count)
        assert np.allclose(got, want, atol=1e-5 * max(1.0, np.abs(want).max()))

    assert compiled.model.is_compiled
    assert compiled.model.num_traces == 1
    assert plain.model.num_traces == 0


def test_a_wider_table_is_one_graph_more() -> None:
    case = Case(is_compiled=True, num_blocks=200)
    for tables in case.tables:
        for table in tables:
            table.clear()
            table.append(list(range(48)))

    for position in (3, 10, 63, 64, 100, 127):  # tables of 16 blocks, then of 32
        case.step(position, 2)

    assert case.model.num_traces == 2


def test_a_compiled_step_does_not_copy_the_store() -> None:
    case = Case(is_compiled=True, num_blocks=4000)
    for position in range(3):
        case.step(position, 4)
    largest = max(array.nbytes for array in case.store.arrays())
    mx.reset_peak_memory()
    before = mx.get_active_memory()

    for position in range(3, 9):
        case.step(position, 4)

    assert largest > 2_000_000
    assert mx.get_peak_memory() - before < largest / 2
    assert mx.get_active_memory() - before < largest / 10


def test_a_model_that_looks_at_its_numbers_runs_uncompiled() -> None:
    case = Case(is_compiled=True)
    inner = case.model._model

    def peeking(tokens: mx.array, cache: Any) -> mx.array:
        int(tokens.max())
        logits: mx.array = inner(tokens, cache=cache)
        return logits

    case.model._model = peeking

    got = case.step(0, 3)

    assert not case.model.is_compiled
    assert np.allclose(got, Case(is_compiled=False).step(0, 3), atol=1e-4)
