"""The quantised matmul kernel on the CPU, lane by lane, against float64."""

from __future__ import annotations

import ctypes
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import warp_shim
from numpy.typing import NDArray

from pippin.core.backend import device_kind, mx
from pippin.core.kernels.quantized_matmul import (
    Problem,
    Tile,
    choose_tile,
    fit_tile,
    multiply,
    quantized_matmul,
    supports,
    tile_constants,
)

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
HOPPER = 228 * 1024
AMPERE = 164 * 1024
CUDA_NAMES = {mx.bfloat16: "__nv_bfloat16", mx.float16: "__half"}
MANTISSA = {mx.bfloat16: 8, mx.float16: 11}


@dataclass(frozen=True)
class Case:
    """A product; rows and outputs at the edges of tiles.

    Attributes:
        shape: Output tiles, width, depth and splits.
    """

    rows: int
    outputs: int
    columns: int
    shape: tuple[int, int, int, int]
    bits: int = 4
    group_size: int = 64
    dtype: mx.Dtype = mx.bfloat16

    @property
    def name(self) -> str:
        dtype = str(self.dtype).rpartition(".")[2]
        shape = "x".join(map(str, self.shape))
        return (
            f"q{self.rows}x{self.columns}x{self.outputs}_tile{shape}"
            f"_{self.bits}bit{self.group_size}_{dtype}"
        )

    @property
    def problem(self) -> Problem:
        return Problem(self.rows, self.outputs, self.columns, self.bits, self.group_size)

    @property
    def tile(self) -> Tile:
        row_tiles = next((tiles for tiles in (1, 2, 4) if self.rows <= 8 * tiles), 8)
        tile = fit_tile(self.problem, (row_tiles, *self.shape), HOPPER)
        assert tile is not None
        return tile


CASES = [
    Case(1, 16, 128, (1, 1, 8, 1)),
    Case(1, 48, 1024, (2, 1, 8, 1)),
    Case(7, 80, 2048, (2, 2, 4, 2)),
    Case(8, 80, 2304, (1, 1, 8, 2)),
    Case(9, 32, 1152, (1, 1, 8, 1)),
    Case(15, 48, 896, (2, 2, 2, 3), group_size=32),
    Case(16, 144, 1280, (2, 4, 2, 1), group_size=128),
    Case(16, 48, 2048, (2, 2, 4, 1)),
    Case(17, 48, 1152, (2, 4, 1, 3)),
    Case(32, 80, 640, (2, 2, 4, 1)),
    Case(33, 112, 1152, (2, 4, 1, 1)),
    Case(64, 32, 640, (3, 4, 2, 1)),
    Case(64, 144, 1024, (1, 4, 2, 4), group_size=32),
    Case(64, 208, 768, (2, 4, 2, 3)),
    Case(100, 48, 640, (2, 4, 1, 2)),
    Case(8, 48, 2048, (2, 1, 8, 1), dtype=mx.float16),
    Case(33, 48, 640, (1, 4, 2, 2), dtype=mx.float16),
    Case(5, 48, 1152, (1, 1, 8, 1), bits=8),
    Case(16, 48, 640, (2, 2, 4, 1), bits=8, group_size=32, dtype=mx.float16),
    Case(40, 80, 768, (2, 4, 1, 5), bits=8, group_size=128),
]


@dataclass(frozen=True)
class Operands:
    """Arrays of a product, and the product in float64 of the 16-bit weights."""

    arrays: tuple[mx.array, mx.array, mx.array, mx.array]
    product: NDArray[np.float64]
    magnitude: NDArray[np.float64]  # sums of absolute values


def widen(array: mx.array) -> NDArray[np.float64]:
    return np.array(array.astype(mx.float32)).astype(np.float64)


def make_operands(case: Case, seed: int = 0) -> Operands:
    random = np.random.default_rng(seed)
    x = mx.array(random.standard_normal((case.rows, case.columns)), case.dtype)
    dense = mx.array(random.standard_normal((case.outputs, case.columns)), case.dtype)
    weight, scales, biases = mx.quantize(dense, group_size=case.group_size, bits=case.bits)
    shifts = np.arange(0, 32, case.bits, dtype=np.uint32)
    quants = (np.array(weight)[..., None] >> shifts) & (2**case.bits - 1)
    groups = quants.reshape(case.outputs, -1, case.group_size)
    exact = groups * widen(scales)[..., None] + widen(biases)[..., None]
    rounded = widen(mx.array(exact.reshape(case.outputs, -1), mx.float32).astype(case.dtype))
    rows = widen(x)
    return Operands((x, weight, scales, biases), rows @ rounded.T, np.abs(rows) @ np.abs(rounded).T)


def run(library: ctypes.CDLL, case: Case, operands: Operands, *, eager: bool) -> mx.array:
    x, weight, scales, biases = operands.arrays
    bits = [np.array(array.view(mx.uint16)) for array in (x, scales, biases)]
    arrays = [bits[0], np.array(weight), *bits[1:]]
    return mx.array(warp_shim.call(library, case.name, arrays, eager=eager)).view(case.dtype)


def check(out: mx.array, case: Case, operands: Operands) -> None:
    # The result is rounded once; float32 sums are far better than that.
    allowed = 2.0 ** -MANTISSA[case.dtype] * np.abs(operands.product)
    error = np.abs(widen(out) - operands.product)
    assert (error <= 1.01 * allowed + 1e-6 * operands.magnitude).all()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder: Path = tmp_path_factory.mktemp("kernels")
    kernels: dict[str, tuple[str, Mapping[str, int], Tile]] = {
        case.name: (
            CUDA_NAMES[case.dtype],
            tile_constants(case.tile, case.bits, case.group_size),
            case.tile,
        )
        for case in CASES
    }
    return warp_shim.build(folder, kernels)


@needs_compiler
@pytest.mark.parametrize("eager", [False, True], ids=["late", "early"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_product_is_that_of_the_dequantised_weight(
    library: ctypes.CDLL, case: Case, eager: bool
) -> None:
    operands = make_operands(case)
    check(run(library, case, operands, eager=eager), case, operands)


@needs_compiler
def test_a_poisoned_row_poisons_no_other(library: ctypes.CDLL) -> None:
    case = next(case for case in CASES if case.rows == 33)
    operands = make_operands(case)
    x = operands.arrays[0]
    x[5] = float("nan")
    poisoned = Operands((x, *operands.arrays[1:]), operands.product, operands.magnitude)
    out = widen(run(library, case, poisoned, eager=False))
    clean = widen(run(library, case, make_operands(case), eager=False))
    assert np.isnan(out[5]).all()
    np.testing.assert_array_equal(np.delete(out, 5, axis=0), np.delete(clean, 5, axis=0))


@needs_compiler
def test_fewer_rows_give_the_same_numbers(library: ctypes.CDLL) -> None:
    case = Case(16, 48, 2048, (2, 2, 4, 1))
    x, weight, scales, biases = make_operands(case).arrays
    few = Operands((x[:1], weight, scales, biases), np.zeros(0), np.zeros(0))
    all_rows = run(library, case, make_operands(case), eager=False)
    assert mx.array_equal(run(library, case, few, eager=False), all_rows[:1])


@pytest.mark.parametrize("rows", [1, 8, 16, 32, 64, 256])
@pytest.mark.parametrize("shape", [(4096, 1024), (12288, 4096), (896, 48), (28672, 8192)])
def test_tiles_fit_twice_or_once(rows: int, shape: tuple[int, int]) -> None:
    columns, outputs = shape
    problem = Problem(rows, outputs, columns, bits=4, group_size=64)
    for limit in (HOPPER, AMPERE):
        tile = choose_tile(problem, limit)
        assert tile is not None
        assert tile.blocks * (tile.shared + 1024) <= limit
        assert tile.stages >= 2


@pytest.mark.parametrize("rows", [8, 64])
def test_small_weights_are_spread_over_the_card(rows: int) -> None:
    problem = Problem(rows, 1024, 4096, bits=4, group_size=64)
    tile = choose_tile(problem, HOPPER)
    assert tile is not None
    assert math.prod(tile.grid(rows, 1024)) >= 64


@pytest.mark.parametrize(("fewest", "most"), [(1, 8), (9, 16), (17, 32), (33, 64), (65, 128)])
def test_rows_of_a_bucket_share_a_tile(fewest: int, most: int) -> None:
    problems = (Problem(rows, 4096, 4096, bits=4, group_size=64) for rows in (fewest, most))
    assert len({choose_tile(problem, HOPPER) for problem in problems}) == 1


def test_nothing_fits_into_little_memory() -> None:
    assert choose_tile(Problem(8, 64, 4096, bits=4, group_size=64), 8192) is None


@pytest.mark.skipif(device_kind() == "cuda", reason="there is a GPU")
def test_there_is_no_kernel_without_cuda() -> None:
    assert not supports(4096, 4096, 4, 64, "affine", mx.bfloat16)


needs_cuda = pytest.mark.skipif(device_kind() != "cuda", reason="needs an NVIDIA GPU")


@needs_cuda
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_product_on_the_gpu(case: Case) -> None:
    operands = make_operands(case)
    x, *weight = operands.arrays
    bits, group_size = case.bits, case.group_size
    out = multiply(x, *weight, group_size=group_size, bits=bits, tile=case.tile)
    check(out, case, operands)
    out = quantized_matmul(x[:, None], *weight, group_size=group_size, bits=bits)
    check(out[:, 0], case, operands)


@needs_cuda
def test_what_is_not_supported() -> None:
    assert supports(4096, 4096, 4, 64, "affine", mx.bfloat16)
    assert not supports(4096, 4096, 4, 32, "mxfp4", mx.bfloat16)
    assert not supports(4096, 4096, 6, 64, "affine", mx.bfloat16)
    assert not supports(4096, 4096, 4, 64, "affine", mx.float32)
    assert not supports(4096, 4100, 4, 64, "affine", mx.bfloat16)
    assert not supports(4160, 4096, 4, 64, "affine", mx.bfloat16)
