"""The setting, the layers that follow it, and what the store gives back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pippin.core.backend import mx
from pippin.core.cache.kv_layout import KVLayout, LayerKind, LayerSpec, StateSpec
from pippin.core.cache.kv_quantization import quantize_layout
from pippin.core.cache.kv_store import KVStore, TokenSlots
from pippin.core.cache.vector_format import QuantizedBlocks
from pippin.core.config import KVBits
from pippin.core.errors import ConfigError

BLOCK_SIZE = 4


def make_layer(**changes: Any) -> LayerSpec:
    fields = {
        "kind": LayerKind.FULL,
        "num_kv_heads": 2,
        "key_dim": 64,
        "value_dim": 128,
        "item_bytes": 2,
    }
    return LayerSpec(**{**fields, **changes})


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("8", KVBits(8, 8)),
        ("4", KVBits(4, 4)),
        ("8,4", KVBits(8, 4)),
        ("4, 8", KVBits(4, 8)),
        ("off", None),
    ],
)
def test_the_setting_is_read(text: str, bits: KVBits | None) -> None:
    assert KVBits.parse(text) == bits
    if bits is not None:
        assert KVBits.parse(str(bits)) == bits


@pytest.mark.parametrize("text", ["", "3", "16", "8,", "8,4,4", "8;4", "k8"])
def test_other_settings_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="kv-bits must be"):
        KVBits.parse(text)


def test_layers_that_keep_all_of_the_past_follow_it(caplog: pytest.LogCaptureFixture) -> None:
    recurrent = LayerSpec(kind=LayerKind.RECURRENT, states=(StateSpec((1, 3), "float32", 4),))
    layers = [
        make_layer(),
        make_layer(kind=LayerKind.SLIDING, window=16),
        make_layer(key_dim=80, value_dim=80),
        make_layer(key_dim=96, value_dim=64),
        recurrent,
    ]

    layout = quantize_layout(KVLayout(layers, [(0, 4), 1, 2, 3]), KVBits(8, 4))

    assert [(it.key_bits, it.value_bits, it.group_size) for it in layout.layers] == [
        (8, 4, 64),
        (0, 0, 0),
        (0, 0, 0),
        (8, 4, 32),
        (0, 0, 0),
    ]
    # 64 numbers of 8 bits and 128 of 4, and 3 groups with a scale and a bias of 2 bytes each.
    assert layout.layers[0].bytes_per_token == 2 * (64 + 64 + 3 * 4)
    assert layout.groups[0].bytes_per_token == sum(
        layout.layers[i].bytes_per_token for i in (0, 2, 3)
    )
    assert layout.tree == ((0, 4), 1, 2, 3)
    assert layout.describe() == "2 full(k8 v4), 1 sliding(16), 1 full, 1 recurrent"
    assert "leaves 1 layers as they are" in caplog.text


def test_a_model_without_such_layers_is_refused() -> None:
    layers = [make_layer(key_dim=80), make_layer(kind=LayerKind.SLIDING, window=16)]
    with pytest.raises(ConfigError, match=r"kv-bits 8 cannot be used .*1 full, 1 sliding\(16\)"):
        quantize_layout(KVLayout(layers), KVBits(8, 8))


def write_in_python(
    keys: mx.array,
    values: mx.array,
    slots: mx.array,
    key_store: mx.array,
    value_store: mx.array,
    *,
    block_size: int,
) -> mx.array:
    """Stands for `write_store`: it changes the arrays that it is given."""
    index = TokenSlots(slots, block_size).vectors(keys.shape[1])
    for store, new in ((key_store, keys), (value_store, values)):
        assert store.dtype == new.dtype
        store[index] = new.reshape(-1, new.shape[-1])
    return mx.zeros(1, mx.uint32)


def make_store(bits: KVBits, dtype: mx.Dtype, *, in_place: bool = False) -> KVStore:
    layers = [make_layer(item_bytes=dtype.size), make_layer(key_dim=40, item_bytes=dtype.size)]
    return KVStore(
        quantize_layout(KVLayout(layers), bits),
        [6],
        block_size=BLOCK_SIZE,
        dtype=dtype,
        write_in_place=write_in_python if in_place else None,
    )


def random_tokens(count: int, key_dim: int, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
    rng = np.random.default_rng(count)
    keys, values = (
        mx.array(rng.normal(size=(count, 2, 1, dim)).astype(np.float32)).astype(dtype)
        for dim in (key_dim, 128)
    )
    return keys, values


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
@pytest.mark.parametrize("bits", [KVBits(8, 8), KVBits(8, 4), KVBits(4, 8)], ids=str)
def test_the_store_gives_back_rounded_numbers(
    bits: KVBits, dtype: mx.Dtype, *, in_place: bool
) -> None:
    store = make_store(bits, dtype, in_place=in_place)
    # Positions 0 to 9 of a text whose blocks are 5, 0 and 3.
    blocks = mx.array([5, 0, 3], mx.uint32)
    slots = mx.array([20, 21, 22, 23, 0, 1, 2, 3, 12, 13], mx.int32)
    for layer, key_dim in ((0, 64), (1, 40)):
        keys, values = random_tokens(10, key_dim, dtype)
        read_keys, read_values = store.as_read(layer, keys, values)
        store.write(layer, keys, values, TokenSlots(slots, BLOCK_SIZE))

        run_keys, run_values = store.gather(layer, blocks)

        for run, read, given in ((run_keys, read_keys, keys), (run_values, read_values, values)):
            assert run.dtype == dtype
            assert mx.array_equal(run[:, :, :10], read.swapaxes(0, 2))
            assert mx.array_equal(read, given) == (layer == 1)
        if layer == 0:
            for run, given, number in (
                (run_keys, keys, bits.keys),
                (run_values, values, bits.values),
            ):
                groups = given.astype(mx.float32).reshape(10, 2, -1, 64)
                step = (groups.max(axis=-1) - groups.min(axis=-1)) / (2**number - 1)
                rounded = run[:, :, :10].swapaxes(0, 2).astype(mx.float32).reshape(groups.shape)
                error = mx.abs(rounded - groups) / step[..., None]
                # Half a step; one where the scale was stretched for zero to be among the steps.
                assert 0.2 < float(error.max()) <= (1.05 if dtype == mx.float32 else 2.5)


def test_its_arrays_are_as_large_as_the_layout_says() -> None:
    for bits in (KVBits(8, 8), KVBits(8, 4), KVBits(4, 4)):
        store = make_store(bits, mx.bfloat16)
        per_token = store.layout.groups[0].bytes_per_token
        assert store.nbytes == per_token * BLOCK_SIZE * (6 + 1)


@pytest.mark.parametrize("in_place", [False, True])
def test_blocks_move_as_they_are(*, in_place: bool) -> None:
    bits = KVBits(8, 4)
    store, other = (make_store(bits, mx.bfloat16, in_place=in_place) for _ in range(2))
    for layer, key_dim in ((0, 64), (1, 40)):
        keys, values = random_tokens(8, key_dim, mx.bfloat16)
        store.write(layer, keys, values, TokenSlots(mx.arange(4, 12, dtype=mx.int32), BLOCK_SIZE))
        arrays = store.block_arrays(layer, mx.array([1, 2], mx.uint32))
        assert len(arrays) == (6 if layer == 0 else 2)
        per_token = store.layout.layers[layer].bytes_per_token
        assert sum(array.nbytes for array in arrays) == 2 * BLOCK_SIZE * per_token

        other.put_block_arrays(layer, mx.array([5, 0], mx.uint32), arrays)

        there = other.block_arrays(layer, mx.array([5, 0], mx.uint32))
        for sent, received in zip(arrays, there, strict=True):
            assert mx.array_equal(sent, received)
        assert mx.array_equal(
            other.gather(layer, mx.array([5, 0]))[0], store.gather(layer, mx.array([1, 2]))[0]
        )


def test_scrubbing_takes_away_what_is_no_number() -> None:
    store = make_store(KVBits(8, 8), mx.float32)
    keys, values = random_tokens(2, 64, mx.float32)
    slots = TokenSlots(mx.array([0, 1], mx.int32), BLOCK_SIZE)
    keys[0] = mx.nan
    store.write(0, keys, values, slots)

    store.scrub()

    got_keys, got_values = store.gather(0, mx.array([0]))
    assert mx.isfinite(got_keys).all()
    read_keys, read_values = store.as_read(0, keys, values)
    assert mx.array_equal(got_keys[0, :, 1], read_keys[1, :, 0])
    assert mx.array_equal(got_values[0, :, :2], read_values[:, :, 0].swapaxes(0, 1))


def test_the_same_store_over_other_arrays() -> None:
    """As in the trace of a compiled step."""
    store = make_store(KVBits(8, 4), mx.float32)
    keys, values = random_tokens(1, 64, mx.float32)
    copies = [mx.array(array) for array in store.arrays()]
    other = store.over(copies)
    other.write(0, keys, values, TokenSlots(mx.array([9], mx.int32), BLOCK_SIZE))

    assert not any(mx.any(array != 0).item() for array in store.arrays())
    assert [array.shape for array in other.arrays()] == [a.shape for a in store.arrays()]
    store.put(other.arrays())
    blocks = store.keys(0)
    assert isinstance(blocks, QuantizedBlocks)
    assert blocks.shape == (7, 2, BLOCK_SIZE, 64)
    assert mx.array_equal(blocks[2][:, 1], store.as_read(0, keys, values)[0][0, :, 0])
