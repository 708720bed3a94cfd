"""A store whose last blocks come later holds what one that is whole from the start does."""

from __future__ import annotations

import numpy as np
import pytest

from pippin.core.backend import mx
from pippin.core.cache.kv_layout import KVLayout, LayerKind, LayerSpec
from pippin.core.cache.kv_store import KVStore, TokenSlots

BLOCK_SIZE, HEADS, DIM = 4, 2, 8
NUM_BLOCKS, LEAD = 9, 3
LAYER = LayerSpec(kind=LayerKind.FULL, num_kv_heads=HEADS, key_dim=DIM, value_dim=DIM, item_bytes=4)


def make_store(lead_blocks: int | None) -> KVStore:
    layout = KVLayout([LAYER, LAYER])
    return KVStore(
        layout, [NUM_BLOCKS], block_size=BLOCK_SIZE, dtype=mx.float32, lead_blocks=lead_blocks
    )


def write(store: KVStore, blocks: list[int], *, seed: int) -> None:
    rng = np.random.default_rng(seed)
    slots = [block * BLOCK_SIZE + place for block in blocks for place in range(BLOCK_SIZE)]
    for layer in range(2):
        keys, values = (
            mx.array(rng.normal(size=(len(slots), HEADS, 1, DIM)).astype(np.float32))
            for _ in range(2)
        )
        store.write(layer, keys, values, TokenSlots(mx.array(slots, mx.int32), BLOCK_SIZE))
    mx.eval(store.arrays())


def contents(store: KVStore) -> list[bytes]:
    return [np.array(array).tobytes() for array in store.arrays()]


@pytest.mark.parametrize("num_filled", [0, 1, 3])
@pytest.mark.parametrize("block", [LEAD, NUM_BLOCKS - 1, None])
def test_the_first_blocks_serve_until_a_further_one_is_wanted(
    block: int | None, num_filled: int
) -> None:
    store, whole = make_store(LEAD), make_store(None)
    for each in (store, whole):
        each.hold(LEAD - 1)
        write(each, [LEAD - 1, 0], seed=1)
    for _ in range(num_filled):
        store.fill_more()
    assert store.is_partial
    assert store.nbytes == whole.nbytes
    assert len(store.arrays()[0]) == LEAD * HEADS * BLOCK_SIZE

    for each in (store, whole):
        each.hold(block)
        write(each, [NUM_BLOCKS - 1 if block is None else block, 1], seed=2)

    assert not store.is_partial
    assert contents(store) == contents(whole)


def test_the_rest_is_taken_as_soon_as_all_of_it_is_there() -> None:
    store, whole = make_store(LEAD), make_store(None)
    num_fills = 0
    while store.is_partial:
        for each in (store, whole):  # between requests, too
            write(each, [num_fills % LEAD], seed=num_fills)
        store.fill_more()
        num_fills += 1

    assert num_fills == len(store.arrays())
    store.fill_more()  # harmless
    store.hold(None)
    for each in (store, whole):
        write(each, [NUM_BLOCKS - 1], seed=9)
    assert contents(store) == contents(whole)


def test_blocks_from_elsewhere_need_not_be_announced() -> None:
    store, other = make_store(LEAD), make_store(None)
    write(other, [NUM_BLOCKS - 1], seed=1)
    index = mx.array([NUM_BLOCKS - 1])

    for layer in range(2):
        store.put_block_arrays(layer, index, other.block_arrays(layer, index))

    assert contents(store) == contents(other)


@pytest.mark.parametrize("num_filled", [0, 1])
def test_a_reset_store_is_empty_and_whole(num_filled: int) -> None:
    store = make_store(LEAD)
    write(store, [0], seed=1)
    for _ in range(num_filled):
        store.fill_more()

    store.reset()

    assert not store.is_partial
    store.hold(None)
    assert contents(store) == contents(make_store(None))
