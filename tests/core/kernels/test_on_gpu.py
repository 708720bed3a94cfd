"""The kernel as it ships, on a GPU: against float64, and against its C++ build."""

from __future__ import annotations

import kernel_shim
import numpy as np
import pytest
from kernel_shim_cases import Case, make_case, make_shape
from numpy.typing import NDArray

from pippin.core.backend import mx
from pippin.core.kernels.paged_attention import paged_decode_attention, supports
from pippin.core.kernels.self_check import check

pytestmark = pytest.mark.skipif(
    not (mx.metal.is_available() or mx.cuda.is_available()), reason="needs a GPU"
)

_LENGTHS = (1, 31, 0, 32, 33, 300, 90, 64, 17)
_BFLOAT = mx.bfloat16
_CASES = [
    *(make_case(make_shape(8, 2, dim, dtype=_BFLOAT), _LENGTHS) for dim in (64, 80, 128, 256, 512)),
    make_case(make_shape(8, 2, 192, value_dim=128, dtype=_BFLOAT), _LENGTHS),
    make_case(make_shape(8, 2, 128, dtype=mx.float16), _LENGTHS),
    make_case(make_shape(8, 2, 128, dtype=mx.float32), _LENGTHS),
    *(make_case(make_shape(2 * group, 2, dtype=mx.float32), [40, 70]) for group in (1, 5, 8, 64)),
    make_case(make_shape(16, 2, has_sinks=True, window=50, dtype=_BFLOAT), _LENGTHS),
    make_case(make_shape(window=40), [200, 130, 41], firsts=[160, 64, 0]),
    make_case(make_shape(dim=128, key_bits=8, value_bits=4, dtype=_BFLOAT), _LENGTHS),
]


def _attend(case: Case, num_splits: int, after: mx.array | None = None) -> NDArray[np.float64]:
    @mx.compile
    def compiled(queries: mx.array) -> mx.array:
        return paged_decode_attention(
            case.shape,
            queries,
            case.keys,
            case.values,
            case.rows,
            scale=case.scale,
            sinks=case.sinks,
            num_splits=num_splits,
            after=after,
        )

    return np.array(compiled(case.queries).astype(mx.float32), dtype=np.float64)


@pytest.mark.parametrize("num_splits", [1, 3])
@pytest.mark.parametrize("case", _CASES, ids=lambda case: str(case.shape))
def test_against_float64(case: Case, num_splits: int) -> None:
    assert supports(case.shape)
    assert case.error(_attend(case, num_splits)) < 1e-5


@pytest.mark.skipif(kernel_shim.COMPILER is None, reason="no g++")
def test_against_the_build_for_the_cpu() -> None:
    case = make_case(make_shape(8, 2, 128, has_sinks=True, dtype=mx.float32), _LENGTHS)
    for num_splits in (1, 3):
        there = kernel_shim.attend(
            case.shape,
            case.queries,
            case.keys,
            case.values,
            case.rows,
            scale=case.scale,
            sinks=case.sinks,
            num_splits=num_splits,
            max_warps=16 if mx.cuda.is_available() else 8,
        )
        np.testing.assert_allclose(_attend(case, num_splits), there, rtol=0, atol=1e-6)


def test_it_may_wait_for_another_kernel() -> None:
    case = _CASES[0]
    got = _attend(case, 1, after=mx.zeros(1, dtype=mx.uint32))
    np.testing.assert_array_equal(got, _attend(case, 1))


def test_the_check_before_use_finds_it_right() -> None:
    report = check(make_shape(32, 8, 128, dtype=_BFLOAT))
    assert report.error is not None
    assert report.verdict == "kernel", report
