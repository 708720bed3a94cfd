"""The kernel's source, compiled as C++ and run in lock step, against attention in float64."""

from __future__ import annotations

from typing import Any

import kernel_shim
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_shim_cases import Case, make_case, make_shape
from numpy.typing import NDArray

from pippin.core.backend import mx
from pippin.core.kernels.kernel_shape import KernelShape
from pippin.core.kernels.paged_attention import choose_num_splits, supports

needs_compiler = pytest.mark.skipif(kernel_shim.COMPILER is None, reason="no g++")

_TOLERANCE = 1e-5
_EDGES = (1, 31, 0, 32, 33, 100)


def _attend(case: Case, **options: Any) -> NDArray[np.float64]:
    return kernel_shim.attend(
        case.shape,
        case.queries,
        case.keys,
        case.values,
        case.rows,
        scale=case.scale,
        sinks=case.sinks,
        **options,
    )


def _check(case: Case, **options: Any) -> None:
    assert case.error(_attend(case, **options)) < _TOLERANCE


@needs_compiler
@pytest.mark.parametrize(
    ("dim", "value_dim", "dtype"),
    [
        (8, 8, mx.float16),
        (16, 16, mx.float32),
        (64, 64, mx.bfloat16),
        (72, 72, mx.float16),
        (80, 80, mx.float16),
        (96, 96, mx.bfloat16),
        (128, 128, mx.float16),
        (128, 128, mx.bfloat16),
        (128, 128, mx.float32),
        (192, 128, mx.bfloat16),
        (64, 256, mx.float16),
        (256, 256, mx.bfloat16),
        (512, 512, mx.float16),
        (512, 512, mx.float32),
        (576, 512, mx.bfloat16),
    ],
)
def test_dims_and_dtypes(dim: int, value_dim: int, dtype: mx.Dtype) -> None:
    shape = make_shape(4, 1, dim, value_dim=value_dim, dtype=dtype)
    assert shape.is_valid
    _check(make_case(shape, _EDGES))


@needs_compiler
@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 7, 8, 16, 64])
def test_heads_of_a_group(group: int) -> None:
    _check(make_case(make_shape(2 * group, 2, dtype=mx.float32), [70, 33]), num_splits=2)


@needs_compiler
@pytest.mark.parametrize("max_warps", [1, 8, 16])
def test_thread_blocks_as_on_a_gpu(max_warps: int) -> None:
    shape = make_shape(12, 2, 128, dtype=mx.bfloat16)
    _check(make_case(shape, [300, 7]), max_warps=max_warps)


@needs_compiler
@pytest.mark.parametrize("num_splits", range(1, 9))
def test_splits(num_splits: int) -> None:
    shape = make_shape(has_sinks=num_splits % 2 == 0)
    _check(make_case(shape, [0, 5, 64, 65, 150], spare_width=3), num_splits=num_splits)


@needs_compiler
@pytest.mark.parametrize("window", [1, 5, 32, 40, 99, 100, 101, 1000])
@pytest.mark.parametrize("num_splits", [1, 3])
def test_windows(window: int, num_splits: int) -> None:
    shape = make_shape(window=window, dtype=mx.float32)
    _check(make_case(shape, _EDGES), num_splits=num_splits)


@needs_compiler
@pytest.mark.parametrize("num_splits", [1, 2])
def test_windows_that_left_blocks_behind(num_splits: int) -> None:
    case = make_case(make_shape(window=40), [200, 130, 41, 65], firsts=[160, 64, 0, 0])
    _check(case, num_splits=num_splits)


@needs_compiler
@pytest.mark.parametrize("num_splits", [1, 4])
def test_sinks_take_their_share(num_splits: int) -> None:
    case = make_case(make_shape(16, 2, has_sinks=True, dtype=mx.float32), _EDGES)
    got = _attend(case, num_splits=num_splits)
    assert case.error(got) < _TOLERANCE
    without = make_case(make_shape(16, 2, dtype=mx.float32), _EDGES)
    assert np.abs(got - without.expected()).max() > 0.05


@needs_compiler
@pytest.mark.parametrize(
    ("key_bits", "value_bits", "group_size", "dim"),
    [(8, 8, 64, 128), (4, 4, 32, 128), (8, 4, 32, 96), (0, 8, 64, 64), (4, 0, 64, 64)],
)
def test_quantised_stores(key_bits: int, value_bits: int, group_size: int, dim: int) -> None:
    shape = make_shape(
        dim=dim, key_bits=key_bits, value_bits=value_bits, group_size=group_size, dtype=mx.bfloat16
    )
    assert shape.is_valid
    _check(make_case(shape, _EDGES), num_splits=2)


@needs_compiler
@pytest.mark.parametrize("block_size", [4, 8, 16, 64])
def test_block_sizes(block_size: int) -> None:
    shape = make_shape(dim=128, block_size=block_size)
    assert shape.is_valid
    _check(make_case(shape, [1, block_size - 1, block_size, block_size + 1, 90]), num_splits=2)


@needs_compiler
def test_rows_of_one_sequence() -> None:
    _check(make_case(make_shape(), range(60, 70), shared=True), num_splits=2)


@needs_compiler
def test_nothing_depends_on_the_order_of_threads() -> None:
    case = make_case(make_shape(16, 2, has_sinks=True), _EDGES)
    for num_splits in (1, 3):
        forwards = _attend(case, num_splits=num_splits)
        np.testing.assert_array_equal(
            forwards, _attend(case, num_splits=num_splits, backwards=True)
        )


@needs_compiler
def test_a_spoilt_row_keeps_to_itself() -> None:
    case = make_case(make_shape(), [40, 40, 40])
    assert isinstance(case.keys, mx.array)
    case.keys[case.rows.blocks[1, 1], :, 3] = np.nan
    got = _attend(case, num_splits=2)
    assert np.isnan(got[1]).all()
    assert np.isfinite(got[[0, 2]]).all()


@needs_compiler
@pytest.mark.parametrize("size", [1e-3, 300.0])
def test_logits_of_any_size(size: float) -> None:
    case = make_case(make_shape(dtype=mx.float32), _EDGES)
    case = Case(**{**vars(case), "queries": case.queries * size})
    assert case.error(_attend(case, num_splits=2)) < 1e-4


@needs_compiler
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    heads=st.sampled_from([(1, 1), (6, 3), (4, 1), (14, 2)]),
    dtype=st.sampled_from([mx.float32, mx.bfloat16]),
    window=st.none() | st.integers(1, 90),
    has_sinks=st.booleans(),
    rows=st.lists(st.tuples(st.integers(0, 130), st.integers(0, 4)), min_size=1, max_size=4),
    num_splits=st.integers(1, 6),
    spare_width=st.integers(0, 3),
)
def test_any_batch(
    heads: tuple[int, int],
    dtype: mx.Dtype,
    window: int | None,
    has_sinks: bool,
    rows: list[tuple[int, int]],
    num_splits: int,
    spare_width: int,
) -> None:
    shape = make_shape(*heads, dtype=dtype, window=window, has_sinks=has_sinks)
    lengths = [length for length, _ in rows]
    # No block is left behind that the window still needs.
    firsts = [
        min(blocks, max(0, length - (window or length)) // 32) * 32 for length, blocks in rows
    ]
    case = make_case(shape, lengths, firsts=firsts, spare_width=max(spare_width, 1))
    _check(case, num_splits=num_splits)


@pytest.mark.parametrize(
    "shape",
    [
        make_shape(dim=68),
        make_shape(dim=1024),
        make_shape(num_heads=7),
        make_shape(block_size=24),
        make_shape(dim=16, block_size=8),
        make_shape(dim=80, key_bits=8),
        make_shape(key_bits=3),
        make_shape(dtype=mx.int32),
    ],
    ids=str,
)
def test_shapes_that_are_left_to_others(shape: KernelShape) -> None:
    assert not shape.is_valid
    assert not supports(shape)


def test_few_rows_are_split_and_many_are_not() -> None:
    def splits(rows: int, tokens: int) -> int:
        return choose_num_splits(rows, 8, tokens, 132)

    assert splits(16, 4096) == 1
    assert splits(16, 320) == 1
    assert splits(1, 4096) == 16
    assert splits(1, 64) == 1
    # One thread block more than there are processors must not take a second round of them all.
    assert splits(17, 4096) > 1
    assert all(1 <= splits(rows, 1 << 20) <= 64 for rows in (1, 8, 512))
