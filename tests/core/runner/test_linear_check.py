"""Our own kernel is trusted only after it gave the numbers that mlx's gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pippin.core.backend import device_kind, mx
from pippin.core.runner import linear_check
from pippin.core.runner.linear_check import find_kernel_problem

# isort: split
from mlx.nn.layers.linear import Linear  # noqa: TID251
from mlx.nn.layers.quantized import QuantizedEmbedding, QuantizedLinear  # noqa: TID251
from mlx_lm.models.switch_layers import QuantizedSwitchLinear

STOCK: Any = mx.quantized_matmul


def own_kernel(x: mx.array, *weight: mx.array, group_size: int, bits: int) -> mx.array:
    out: mx.array = STOCK(x, *weight, transpose=True, group_size=group_size, bits=bits)
    return out


def wrong(x: mx.array, *weight: mx.array, group_size: int, bits: int) -> mx.array:
    """The last row is, if there are many."""
    out = own_kernel(x, *weight, group_size=group_size, bits=bits)
    return out if len(x) < 65 else out + (mx.arange(len(x)) == len(x) - 1)[:, None] * 0.2


def not_a_number(x: mx.array, *weight: mx.array, **_: int) -> mx.array:
    return mx.full((len(x), weight[0].shape[0]), float("nan"), x.dtype)


def failing(*_: mx.array, **__: int) -> mx.array:
    raise RuntimeError("nvrtc: no such header\nand so on")


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Weights that the kernel was given, where it takes whatever is 4-bit."""
    shapes: list[tuple[int, ...]] = []

    def record(x: mx.array, *weight: mx.array, **options: int) -> mx.array:
        if len(x) == 3:
            shapes.append(weight[0].shape)
        return own_kernel(x, *weight, **options)

    monkeypatch.setattr(linear_check, "supports", lambda *shape: shape[2] == 4)
    monkeypatch.setattr(linear_check, "quantized_matmul", record)
    return shapes


def bfloat16(layer: Any) -> Any:
    layer.set_dtype(mx.bfloat16)
    return layer


def test_one_layer_of_each_shape_that_it_takes_is_tried(tried: list[tuple[int, ...]]) -> None:
    modules = [
        bfloat16(QuantizedLinear(128, 64, bits=4)),
        bfloat16(QuantizedLinear(128, 64, bits=4)),
        bfloat16(QuantizedEmbedding(96, 128, bits=4)),
        bfloat16(QuantizedLinear(128, 80, bits=8)),
        QuantizedLinear(128, 48, bits=4),  # its scales are of another dtype than the activations
        bfloat16(QuantizedSwitchLinear(128, 32, 4)),
        bfloat16(Linear(128, 16)),
    ]

    assert find_kernel_problem(modules, mx.bfloat16) is None
    assert tried == [(64, 16), (96, 16)]


@pytest.mark.parametrize(
    ("kernel", "problem"),
    [
        (wrong, "at 100 rows"),
        (not_a_number, "off by nan"),
        (failing, "RuntimeError: nvrtc: no such header"),
    ],
)
@pytest.mark.usefixtures("tried")
def test_what_is_wrong_is_told(
    kernel: Callable[..., mx.array], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_check, "quantized_matmul", kernel)

    told = find_kernel_problem([bfloat16(QuantizedLinear(128, 64, bits=4))], mx.bfloat16)

    assert told is not None
    assert told.startswith("128->64 affine 4-bit group 64 bfloat16: ")
    assert problem in told
    assert "\n" not in told


def test_nothing_is_tried_without_an_nvidia_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if device_kind() == "cuda":
        pytest.skip("here is one")
    monkeypatch.setattr(linear_check, "quantized_matmul", failing)

    assert find_kernel_problem([bfloat16(QuantizedLinear(128, 64))], mx.bfloat16) is None
