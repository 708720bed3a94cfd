"""Norms, rotation and the write into the store: the source on the CPU, and the kernel on a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import kernel_shim
import pytest
from small_kernel import run_kernel

from pippin.core.backend import device_kind, mx
from pippin.core.kernels.rope_write import RotaryShape, constants, find_problem, plain_heads

QWEN3 = RotaryShape(
    num_heads=4,
    num_kv_heads=2,
    key_dim=128,
    value_dim=128,
    block_size=4,
    dtype=mx.bfloat16,
    eps=1e-6,
    rotated=128,
    traditional=False,
    base=1e6,
    scale=1.0,
)
SHAPES = {
    "qwen3": QWEN3,
    "float16": replace(QWEN3, dtype=mx.float16),
    "float32": replace(QWEN3, dtype=mx.float32, key_dim=96, rotated=96),
    "no-norm": replace(QWEN3, eps=None, num_kv_heads=4, key_dim=64, rotated=64),
    "periods": replace(QWEN3, eps=None, base=None, num_heads=3, num_kv_heads=1),
    "in-part": replace(QWEN3, key_dim=80, rotated=32, scale=0.25),
    "traditional": replace(QWEN3, traditional=True, key_dim=192, rotated=64),
    "large": replace(QWEN3, key_dim=512, rotated=512, dtype=mx.float32),
}
# Numbers are rounded three times, each time by half of a unit.
_ROUNDING = {mx.float16: 1.5 * 2**-10, mx.bfloat16: 1.5 * 2**-7, mx.float32: 5e-5}
POSITIONS = [33, 0, 7, 300, 120]
SLOTS = [17, 0, 3, 4, 23]


@pytest.mark.skipif(kernel_shim.COMPILER is None, reason="g++ is not installed")
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_it_does_what_mlx_does(shape: RotaryShape, backwards: bool, tmp_path: Path) -> None:
    mx.random.seed(0)
    width = (shape.num_heads + shape.num_kv_heads) * shape.key_dim
    width += shape.num_kv_heads * shape.value_dim
    projected = mx.random.normal((len(SLOTS), width)).astype(shape.dtype)
    norms = mx.random.uniform(1, 3, (2, shape.key_dim)).astype(shape.dtype)
    periods = None if shape.base else mx.arange(1, shape.rotated // 2 + 1) ** 1.5
    positions = mx.array(POSITIONS, mx.int32)
    stores = [
        mx.full((6, shape.num_kv_heads, shape.block_size, dim), 7.0, shape.dtype)
        for dim in (shape.key_dim, shape.value_dim)
    ]
    out = mx.full((len(SLOTS), shape.num_heads, 1, shape.key_dim), float("nan"), shape.dtype)
    inputs = [projected, *norms, projected if periods is None else periods, positions]
    vectors = len(SLOTS) * (shape.num_heads + 2 * shape.num_kv_heads)

    *_, key_store, value_store, queries = run_kernel(
        "rope_write",
        tmp_path,
        [*inputs, mx.array(SLOTS, mx.int32), *stores],
        [out],
        constants(shape),
        blocks=vectors // 4 + 2,
        backwards=backwards,
    )

    pair = None if shape.eps is None else (norms[0], norms[1])
    # In float32 for all: MLX's rotation on the CPU has sines of 16 bits.
    wide = replace(shape, dtype=mx.float32)
    wanted = plain_heads(wide, projected.astype(mx.float32), pair, periods, positions)
    blocks, places = mx.array(SLOTS) // shape.block_size, mx.array(SLOTS) % shape.block_size
    found = [queries]
    for store in (key_store, value_store):
        found.append(store[blocks, :, places][:, :, None])
        store[blocks, :, places] = 7.0
        assert bool((store == 7).all())
    for have, want in zip(found, wanted, strict=True):
        error = mx.abs(have.astype(mx.float32) - want)
        assert float(error.max()) <= _ROUNDING[shape.dtype] * float(mx.abs(want).max())


@pytest.mark.skipif(device_kind() == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_kernel_agrees_with_mlx(shape: RotaryShape) -> None:
    assert find_problem(shape) is None


@pytest.mark.skipif(device_kind() != "cpu", reason="the CPU has no kernels")
def test_without_a_gpu_there_is_a_problem() -> None:
    assert find_problem(QWEN3) == "no kernel for this shape on this device"
    assert not replace(QWEN3, key_dim=1024).is_valid
