"""Prints what each way of multiplying with quantised weights costs, by shape and number of rows.

By hand, on a GPU, in about a minute. Microseconds of one product in a chain; ``[M,1,K]`` is what
mlx-lm's layer takes for a batch of M tokens, and the others are what `pippin.core.runner.linear`
chooses from. Weights of several layers are gone through, more than a GPU's cache holds.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from pippin.core.backend import device_kind, mx
from pippin.core.runner.linear import Layer, install_linear_plans
from pippin.core.runner.linear_plan import LinearPlan, LinearShape, LinearTimings
from pippin.core.runner.linear_timing import time_chain

# isort: split
from mlx.nn.layers.base import Module  # noqa: TID251
from mlx.nn.layers.linear import Linear  # noqa: TID251
from mlx.nn.layers.quantized import quantize  # noqa: TID251
from mlx_lm.models.switch_layers import SwitchGLU

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
SHAPES = {
    "Qwen3-8B": [(4096, 4096), (4096, 1024), (4096, 12288), (12288, 4096), (4096, 151936)],
    "Qwen3-0.6B": [(1024, 2048), (1024, 1024), (1024, 3072), (3072, 1024), (1024, 151936)],
}
TOKENS = (1, 16, 64, 512)
DTYPE = mx.bfloat16
_CACHE_BYTES = 100 << 20  # the weights gone through are larger than this
_MAX_LAYERS = 24


class Layers(Module):
    """Layers of one shape."""

    def __init__(self, layers: list[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers = layers
        self._planned: list[Any] = []
        self.set_dtype(DTYPE)

    def quantize(self) -> None:
        """To 4 bits in groups of 64."""
        quantize(self, 64, 4)
        mx.eval([layer.parameters() for layer in self.layers])

    def set_plan(self, plan: LinearPlan) -> None:
        """Have all of them multiply one way."""
        if not self._planned:
            install_linear_plans(self, DTYPE, self._remember)
        for layer in self._planned:
            layer.plan = plan

    def _remember(self, _: LinearShape, layers: Sequence[Layer]) -> LinearTimings:
        self._planned += layers
        return LinearTimings({1: 0.0})


def print_shape(input_dims: int, output_dims: int) -> None:
    """One line a number of rows."""
    count = min(_MAX_LAYERS, 1 + _CACHE_BYTES * 2 // (input_dims * output_dims))
    model = Layers([Linear(input_dims, output_dims, bias=False) for _ in range(count)])
    model.quantize()
    layers = model.layers
    dense = [
        mx.random.normal((output_dims, input_dims)).astype(DTYPE) for _ in range(min(count, 4))
    ]
    mx.eval(dense)
    stock = {
        rows: microseconds(lambda x, i: layers[i % count](x[:, None])[:, 0], rows, input_dims)
        for rows in ROWS
    }

    def planned(rows: int, plan: LinearPlan) -> float:
        model.set_plan(plan)
        return microseconds(lambda x, i: layers[i % count](x), rows, input_dims)

    print(f"\n{input_dims} -> {output_dims}, {count} layers")
    print(f"{'rows':>6}{'[M,1,K]':>10}{'flat':>10}{'as 8':>10}{'dense':>10}{'bfloat16':>10}")
    for rows in ROWS:
        times = [
            stock[rows],
            planned(rows, LinearPlan()),
            planned(rows, LinearPlan(padded=(8,) * 7)) if rows < 8 else None,
            planned(rows, LinearPlan(dense_from=1)),
            microseconds(lambda x, i: x @ dense[i % len(dense)].T, rows, input_dims),
        ]
        print(f"{rows:>6}" + "".join(f"{'':>10}" if t is None else f"{t:>10.1f}" for t in times))


def microseconds(product: Callable[[mx.array, int], mx.array], rows: int, dims: int) -> float:
    """Of one product."""
    return 1e6 * time_chain(product, mx.random.normal((rows, dims)).astype(DTYPE))


def print_experts() -> None:
    """A layer of experts like Qwen3-30B-A3B's: 128 of 2048 -> 768 -> 2048, 8 a token."""
    model = Layers([SwitchGLU(2048, 768, 128) for _ in range(2)])
    model.quantize()
    layers = model.layers
    print("\n128 experts, 8 a token, 2048 -> 768 -> 2048")
    print(f"{'tokens':>8}{'[N,1]':>10}{'[1,N]':>10}{'[N,1] dense':>14}")
    for tokens in TOKENS:
        chosen = mx.argsort(mx.random.uniform(shape=(tokens, 128)), axis=-1)[:, :8]
        mx.eval(chosen)

        def as_rows(x: mx.array, i: int, chosen: mx.array = chosen) -> mx.array:
            out: mx.array = layers[i % 2](x[:, None], chosen[:, None])
            return out[:, 0, 0]

        def as_chunk(x: mx.array, i: int, chosen: mx.array = chosen) -> mx.array:
            out: mx.array = layers[i % 2](x[None], chosen[None])
            return out[0, :, 0]

        model.set_plan(LinearPlan())
        times = [microseconds(product, tokens, 2048) for product in (as_rows, as_chunk)]
        model.set_plan(LinearPlan(dense_from=1))
        times.append(microseconds(as_rows, tokens, 2048))
        print(f"{tokens:>8}{times[0]:>10.1f}{times[1]:>10.1f}{times[2]:>14.1f}", flush=True)


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one shape and the experts")
    quick = parser.parse_args().quick
    if device_kind() == "cpu":
        sys.exit("this needs a GPU")
    start = time.perf_counter()
    for name, shapes in SHAPES.items():
        print(f"\n{name}, 4-bit weights in groups of 64, {DTYPE}")
        for shape in shapes[2:3] if quick else shapes:
            print_shape(*shape)
    print_experts()
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
