"""An addition and a norm: the source on the CPU, and the kernel on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import kernel_shim
import numpy as np
import pytest
from small_kernel import run_kernel

from pippin.core.backend import device_kind, mx
from pippin.core.kernels.add_norm import add_norm, supports
from pippin.core.kernels.paged_attention import float_bits

# Of a product of two rounded numbers.
_ROUNDING = {mx.float16: 2**-10, mx.bfloat16: 2**-7, mx.float32: 1e-6}
DIMS = (64, 96, 1000, 2560)


def make(dims: int, dtype: mx.Dtype) -> tuple[list[mx.array], list[mx.array]]:
    """Inputs, and what must come out, in float32."""
    random = np.random.default_rng(dims)
    inputs = [
        mx.array(random.standard_normal(shape), dtype) for shape in ((3, dims), (3, dims), (dims,))
    ]
    stream, added, weight = (it.astype(mx.float32) for it in inputs)
    sums = (stream + added).astype(dtype).astype(mx.float32)
    return inputs, [sums, mx.fast.rms_norm(sums, weight, 1e-3)]


def check(found: Sequence[mx.array], wanted: Sequence[mx.array]) -> None:
    for have, want in zip(found, wanted, strict=True):
        error = mx.abs(have.astype(mx.float32) - want).max()
        assert float(error) <= _ROUNDING[have.dtype] * float(mx.abs(want).max())


@pytest.mark.skipif(kernel_shim.COMPILER is None, reason="g++ is not installed")
@pytest.mark.parametrize("dtype", _ROUNDING, ids=str)
@pytest.mark.parametrize("dims", DIMS)
def test_it_does_what_mlx_does(dims: int, dtype: mx.Dtype, tmp_path: Path) -> None:
    inputs, wanted = make(dims, dtype)
    outputs = [mx.full(it.shape, float("nan"), dtype) for it in wanted]
    constants = {"DIMS": dims, "WARPS": 8, "EPS_BITS": float_bits(1e-3)}

    *_, sums, normed = run_kernel("add_norm", tmp_path, inputs, outputs, constants, blocks=3)

    check([sums, normed], wanted)


@pytest.mark.skipif(device_kind() == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("dtype", _ROUNDING, ids=str)
@pytest.mark.parametrize("dims", [*DIMS, 12288])
def test_the_kernel_agrees_with_mlx(dims: int, dtype: mx.Dtype) -> None:
    (stream, added, weight), wanted = make(dims, dtype)
    check(add_norm(stream, added, weight, 1e-3), wanted)


def test_what_it_is_written_for() -> None:
    x, weight = mx.zeros((2, 1, 64)), mx.ones(64)
    assert supports(x, x, weight)
    assert not supports(x, x[:1], weight)
    assert not supports(x, x, weight.astype(mx.float16))
    assert not supports(x.astype(mx.float16), x, weight)
    assert not supports(mx.zeros((2, 32768)), mx.zeros((2, 32768)), mx.ones(32768))
