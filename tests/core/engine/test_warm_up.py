"""Steps of nobody's tokens: they cost time, teach how long steps take, and leave no trace."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_models import make_tiny_model

from pippin.core.backend import mx
from pippin.core.cache.kv_store import KVStore
from pippin.core.engine.step_costs import StepCosts
from pippin.core.engine.warm_up import WarmUp, learn_costs
from pippin.core.runner.attention.row_attention import RowAttention
from pippin.core.runner.attention.table_attention import TableAttention
from pippin.core.runner.model_adapter import describe_layout, install_paged_attention
from pippin.core.runner.paged_model import PagedModel

BLOCK_SIZE = 8


def make(family: str, lead_blocks: int | None = None) -> tuple[WarmUp, KVStore]:
    model = make_tiny_model(family).model
    install_paged_attention(model)
    layout, dtype = describe_layout(model)
    counts = [5] * len(layout.groups)
    store = KVStore(layout, counts, block_size=BLOCK_SIZE, dtype=dtype, lead_blocks=lead_blocks)
    attention: RowAttention[object] = TableAttention()  # type: ignore[assignment]
    return WarmUp(PagedModel(model, attention), store), store


@pytest.mark.parametrize("lead_blocks", [None, 2])
@pytest.mark.parametrize("family", ["qwen3", "gemma3", "gpt-oss"])
def test_only_the_trash_block_is_written(family: str, lead_blocks: int | None) -> None:
    warm_up, store = make(family, lead_blocks)

    assert warm_up.rows(3) > 0
    assert warm_up.rows(2, past=300) > 0
    assert warm_up.chunk(50) > 0

    for layer in range(len(store.layout.layers)):
        trash = store.trash_block(store.group_of_layer[layer])
        for blocks in (np.array(store.keys(layer)), np.array(store.values(layer))):
            assert np.count_nonzero(blocks[trash])
            assert not np.count_nonzero(blocks[:trash])


def test_the_memory_of_a_chunk_grows_with_it() -> None:
    warm_up, _ = make("qwen3")
    mx.clear_cache()

    short, long = warm_up.chunk_bytes(64), warm_up.chunk_bytes(1024)

    assert 0 < 4 * short < long


def test_all_sizes_are_learned() -> None:
    warm_up, _ = make("qwen3")
    costs = StepCosts()
    buckets: list[int] = []

    def row_bucket(count: int) -> int:
        buckets.append(-(-count // 4) * 4)
        return buckets[-1]

    learn_costs(warm_up, costs, max_num_seqs=10, prefill_chunk=128, row_bucket=row_bucket)

    assert buckets == [4, 8, 12]
    assert costs.rows_seconds(10) is not None
    assert costs.chunk_seconds(128) is not None
    assert "128" in str(costs)
