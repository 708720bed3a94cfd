"""Blocks and states as bytes, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pippin.core.backend import mx
from pippin.core.cache.kv_layout import KVLayout, LayerKind, LayerSpec, StateSpec
from pippin.core.cache.kv_store import KVStore
from pippin.core.runner.block_copies import BlockCopies
from pippin.core.runner.state_store import StateStore

BLOCK = 4
NUM_BLOCKS = 6
LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {"key_dim": 8, "value_dim": 4},
    "quantised": {
        "key_dim": 64,
        "value_dim": 64,
        "key_bits": 8,
        "value_bits": 4,
        "group_size": 32,
    },
}


def make(name: str, dtype: mx.Dtype) -> tuple[KVStore, StateStore, BlockCopies]:
    """A store full of random numbers: two layers that page, and one that keeps a state."""
    size = int(dtype.size)
    full = LayerSpec(kind=LayerKind.FULL, num_kv_heads=2, item_bytes=size, **LAYOUTS[name])
    states = (StateSpec((1, 3, 2), "float32", 4), StateSpec((1, 5), "bfloat16", 2))
    layout = KVLayout([full, LayerSpec(kind=LayerKind.RECURRENT, states=states), full])
    store = KVStore(layout, [NUM_BLOCKS], block_size=BLOCK, dtype=dtype)
    rng = np.random.default_rng(0)
    store.put(
        [
            mx.array(rng.integers(1, 200, array.shape).astype(np.float32)).astype(array.dtype)
            for array in store.arrays()
        ]
    )
    kept = StateStore(layout)
    return store, kept, BlockCopies(store, kept)


def content(store: KVStore, block_id: int) -> list[bytes]:
    index = mx.array([block_id])
    return [
        np.array(array.view(mx.uint8)).tobytes()
        for layer in (0, 2)
        for array in store.block_arrays(layer, index)
    ]


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_blocks_move_and_others_stay(name: str, dtype: mx.Dtype) -> None:
    store, _, copies = make(name, dtype)
    before = [content(store, block_id) for block_id in range(NUM_BLOCKS)]
    payloads = copies.read_blocks(0, [4, 1]).read()
    assert payloads is not None
    assert [[bytes(part) for part in payload] for payload in payloads] == [before[4], before[1]]
    assert copies.block_bytes(0) == sum(map(len, before[0]))
    assert copies.write_blocks(0, [0, 5], payloads)
    after = [content(store, block_id) for block_id in range(NUM_BLOCKS)]
    assert after == [before[4], *before[1:5], before[1]]


@pytest.mark.parametrize("name", LAYOUTS)
def test_bytes_that_do_not_fit_are_refused(name: str) -> None:
    store, _, copies = make(name, mx.float32)
    before = content(store, 2)
    (payload,) = copies.read_blocks(0, [1]).read() or [[]]
    assert not copies.write_blocks(0, [2], [payload[:-1]])
    assert not copies.write_blocks(0, [2], [[*payload[:-1], bytes(payload[-1])[:-4]]])
    assert content(store, 2) == before


def test_states_move() -> None:
    _, kept, copies = make("plain", mx.float32)
    assert copies.read_state(3) is None
    kept.put_saved(
        3, [mx.array([[[1.5, 2], [3, 4], [5, 6]]]), mx.arange(5, dtype=mx.bfloat16)[None]]
    )
    copy = copies.read_state(3)
    assert copy is not None
    (payload,) = copy.read() or [[]]
    assert sum(map(len, payload)) == copies.state_bytes == 6 * 4 + 5 * 2
    assert copies.write_state(7, payload)
    for old, new in zip(kept.saved(3) or (), kept.saved(7) or (), strict=True):
        assert old.dtype == new.dtype
        assert mx.array_equal(old, new)
    assert not copies.write_state(8, payload[:1])
    assert kept.saved(8) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_copied(value: float) -> None:
    store, _, copies = make("plain", mx.float16)
    index = mx.array([3])
    store.put_block_arrays(0, index, [array * value for array in store.block_arrays(0, index)])
    assert copies.read_blocks(0, [2, 3]).read() is None
    assert copies.read_blocks(0, [2]).read() is not None


def test_a_model_without_states_has_none() -> None:
    store, _, _ = make("plain", mx.float32)
    copies = BlockCopies(store, None)
    assert copies.state_bytes == 0
    assert copies.read_state(0) is None
