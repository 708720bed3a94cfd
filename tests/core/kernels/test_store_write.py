"""The write into the store: its source on the CPU, and the kernel where there is a GPU."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import kernel_shim
import numpy as np
import pytest
from kernel_shim_cases import make_shape

from pippin.core.backend import device_kind, mx
from pippin.core.errors import ConfigError
from pippin.core.kernels import paged_attention, store_write
from pippin.core.kernels.kernel_source import read
from pippin.core.kernels.store_write import find_write_problem

_SOURCE = """
#include "kernel_shim.h"
using S = float;
constexpr int KEY_DIM = 5, VALUE_DIM = 3, NUM_KV_HEADS = 2, BLOCK_SIZE = 4, THREADS = 32;
extern "C" void run(const S* keys, const S* values, const int* slots, const int* slots_shape,
                    const S* key_store, const S* value_store, unsigned* out, int blocks) {{
  for (int block = 0; block < blocks; ++block) {{
    for (int thread_index = 0; thread_index < THREADS; ++thread_index) {{
      const int3 grid_position = {{block, 0, 0}};
      {body}
    }}
  }}
}}
"""


@pytest.mark.skipif(kernel_shim.COMPILER is None, reason="g++ is not installed")
def test_every_number_gets_to_its_slot_and_nothing_else_changes(tmp_path: Path) -> None:
    library = tmp_path / "write.so"
    text = _SOURCE.format(body=read("store_write"))
    command = [str(kernel_shim.COMPILER), *kernel_shim.FLAGS, "-o", str(library), "-xc++", "-"]
    subprocess.run(command, input=text, text=True, check=True)
    rng = np.random.default_rng(0)
    slots = np.array([17, 0, 3, 4, 23, 9, 22], np.int32)
    count = np.array([len(slots)], np.int32)
    keys, values = (rng.normal(size=(len(slots), 2, dim)).astype(np.float32) for dim in (5, 3))
    stores = [np.full((6, 2, 4, dim), 7.0, np.float32) for dim in (5, 3)]
    out = np.array([9], np.uint32)
    blocks = -(-keys.size // 32) + -(-values.size // 32) + 2  # threads past the end do nothing

    ctypes.CDLL(str(library)).run(
        *(ctypes.c_void_p(a.ctypes.data) for a in (keys, values, slots, count, *stores, out)),
        blocks,
    )

    assert out[0] == 0
    for tokens, store in zip((keys, values), stores, strict=True):
        want = np.full_like(store, 7.0)
        for token, slot in zip(tokens, slots, strict=True):
            want[slot // 4, :, slot % 4] = token
        assert np.array_equal(store, want)


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
