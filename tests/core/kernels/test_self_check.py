"""The check before use, with the C++ build of the kernel in place of a GPU's."""

from __future__ import annotations

from typing import Any

import kernel_shim
import pytest
from kernel_shim_cases import make_shape

from pippin.core.backend import device_kind, mx
from pippin.core.kernels import self_check
from pippin.core.kernels.kernel_shape import KernelShape
from pippin.core.kernels.self_check import check

_SHAPES = [
    make_shape(4, 2, dtype=mx.float32),
    make_shape(4, 2, window=50, has_sinks=True),
    make_shape(4, 2, key_bits=8, value_bits=4, dtype=mx.bfloat16),
]


def _on_cpu(shape: KernelShape, *args: Any, **options: Any) -> mx.array:
    return mx.array(kernel_shim.attend(shape, *args, **options)).astype(shape.dtype)


def _use(monkeypatch: pytest.MonkeyPatch, kernel: object) -> None:
    monkeypatch.setattr(self_check, "supports", lambda _: True)
    monkeypatch.setattr(self_check, "paged_decode_attention", kernel)


@pytest.mark.skipif(device_kind() != "cpu", reason="there is a GPU")
def test_no_kernel_on_a_cpu() -> None:
    report = check(_SHAPES[0])
    assert report.verdict == "fallback"
    assert report.reason == "no kernel for this shape on this device"


@pytest.mark.skipif(kernel_shim.COMPILER is None, reason="no g++")
@pytest.mark.parametrize("shape", _SHAPES, ids=str)
def test_a_right_kernel_is_used_if_it_is_fast(
    shape: KernelShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    _use(monkeypatch, _on_cpu)
    times = iter([0.01, 0.02, 0.03])  # unsplit, split, fallback
    monkeypatch.setattr(self_check, "_seconds", lambda _: next(times))
    report = check(shape)
    assert report.verdict == "kernel"
    assert report.error is not None
    assert report.error < 1e-2
    assert (report.kernel_s, report.fallback_s) == (0.01, 0.03)


@pytest.mark.skipif(kernel_shim.COMPILER is None, reason="no g++")
def test_a_slow_kernel_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    _use(monkeypatch, _on_cpu)
    times = iter([0.05, 0.04, 0.03])
    monkeypatch.setattr(self_check, "_seconds", lambda _: next(times))
    report = check(_SHAPES[0])
    assert report.verdict == "fallback"
    assert report.reason == "slower than MLX's own attention"


@pytest.mark.parametrize("wrong", [0.0, float("nan")])
def test_a_wrong_kernel_is_not_used(wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    _use(monkeypatch, lambda _, queries, *args, **options: mx.full(queries.shape, wrong))
    report = check(_SHAPES[0])
    assert report.verdict == "fallback"
    assert report.reason is not None
    assert "off by" in report.reason


def test_a_failure_to_compile_is_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> mx.array:
        raise RuntimeError("Failed to compile kernel: line 1\nline 2")

    _use(monkeypatch, fail)
    report = check(_SHAPES[0])
    assert report.verdict == "fallback"
    assert report.reason == "RuntimeError: Failed to compile kernel: line 1"
