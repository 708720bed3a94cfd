"""The write into the store: its source on the CPU, and the kernel where there is a GPU."""

from __future__ import annotations

from pathlib import Path

import kernel_shim
import numpy as np
import pytest
from kernel_shim_cases import make_shape
from small_kernel import run_kernel

from pippin.core.backend import device_kind, mx
from pippin.core.errors import ConfigError
from pippin.core.kernels import paged_attention, store_write
from pippin.core.kernels.store_write import find_write_problem

_CONSTANTS = {"KEY_DIM": 5, "VALUE_DIM": 3, "NUM_KV_HEADS": 2, "BLOCK_SIZE": 4}


@pytest.mark.skipif(kernel_shim.COMPILER is None, reason="g++ is not installed")
def test_every_number_gets_to_its_slot_and_nothing_else_changes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    slots = np.array([17, 0, 3, 4, 23, 9, 22], np.int32)
    keys, values = (rng.normal(size=(len(slots), 2, dim)).astype(np.float32) for dim in (5, 3))
    stores = [np.full((6, 2, 4, dim), 7.0, np.float32) for dim in (5, 3)]
    blocks = -(-keys.size // 32) + -(-values.size // 32) + 2  # threads past the end do nothing

    *_, key_store, value_store, out = run_kernel(
        "store_write",
        tmp_path,
        [mx.array(it) for it in (keys, values, slots, *stores)],
        [mx.array([9], mx.uint32)],
        _CONSTANTS | {"THREADS": 32, "WARPS": 1},
        blocks=blocks,
    )

    assert out.item() == 0
    for tokens, store in zip((keys, values), (key_store, value_store), strict=True):
        want = np.full(store.shape, 7.0, np.float32)
        for token, slot in zip(tokens, slots, strict=True):
            want[slot // 4, :, slot % 4] = token
        assert np.array_equal(np.array(store), want)


@pytest.mark.skipif(device_kind() == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_the_kernel_writes_in_place(dtype: mx.Dtype) -> None:
    assert find_write_problem(dtype) is None


@pytest.mark.skipif(device_kind() != "cpu", reason="the CPU has no kernels")
def test_without_kernels_there_is_a_problem() -> None:
    assert find_write_problem(mx.float32) == "no kernels on this device"


def test_kernels_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paged_attention, "device_kind", lambda: "cuda")
    monkeypatch.setattr(store_write, "device_kind", lambda: "cuda")
    shape = make_shape(32, 8, 128, dtype=mx.bfloat16)
    assert paged_attention.supports(shape)

    monkeypatch.setenv("PIPPIN_KERNELS", "off")

    assert not paged_attention.supports(shape)
    assert find_write_problem(mx.float32) == "kernels are switched off"


def test_a_switch_in_another_position_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPPIN_KERNELS", "no")

    with pytest.raises(ConfigError, match="PIPPIN_KERNELS must be 'auto' or 'off', got 'no'"):
        find_write_problem(mx.float32)
