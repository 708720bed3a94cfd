"""Quantised layers of a loaded model, made to multiply in the way that was measured to be fastest.

mlx-lm's code stays as it is: a layer keeps its weights and gets a subclass of its class. Rows are
flattened first, since mlx's CUDA kernels take ``[rows, 1, dims]`` for that many products that each
read the weights. Plain layers need none of this: mlx's ``matmul`` flattens by itself.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeAlias

import numpy as np

from ..backend import mx  # first: what is below loads mlx

# isort: split
from mlx.nn.layers.embedding import Embedding
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.quantized import QuantizedEmbedding, QuantizedLinear
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from ..kernels.quantized_matmul import quantized_matmul
from .linear_plan import MARGIN, LinearPlan, LinearShape, LinearTimings, choose_plan
from .model_adapter import Model

# A module of one of the classes in `_PLANNED`.
Layer: TypeAlias = Any

# Few rows, where running more of them may be faster.
ROW_BUCKETS = (1, 2, 4, 8, 16, 32)


class PlannedLinear(QuantizedLinear):
    """A quantised layer with a plan."""

    plan: LinearPlan

    def __call__(self, x: mx.array) -> mx.array:
        """``[..., input_dims]`` -> ``[..., output_dims]``."""
        out = _multiply(self, x)
        return out + self["bias"] if "bias" in self else out


class PlannedEmbedding(QuantizedEmbedding):
    """A quantised embedding whose product, the head of a tied model, has a plan."""

    plan: LinearPlan

    def as_linear(self, x: mx.array) -> mx.array:
        """``[..., dims]`` -> ``[..., num_embeddings]``."""
        return _multiply(self, x)


class PlannedSwitchLinear(QuantizedSwitchLinear):
    """Quantised experts with a plan.

    Only the sorted form, which long chunks take, has another way: unpacked experts multiply all
    of their rows together, while mlx's CUDA kernel reads an expert's weights again for every row.
    """

    plan: LinearPlan

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        """As mlx-lm's: sorted, ``[pairs, 1, input_dims]`` and ``[pairs]``."""
        out: mx.array
        if not (sorted_indices and self.plan.is_dense(indices.size)):
            out = super().__call__(x, indices, sorted_indices)  # type: ignore[no-untyped-call]
            return out
        weight = _unpack(self, x.dtype).swapaxes(-1, -2)
        out = mx.gather_mm(x, weight, rhs_indices=indices, sorted_indices=True)
        return out + self["bias"][indices][:, None] if "bias" in self else out


_PLANNED: dict[type, type] = {
    QuantizedLinear: PlannedLinear,
    QuantizedEmbedding: PlannedEmbedding,
    QuantizedSwitchLinear: PlannedSwitchLinear,
}
_PLANNED |= {planned: planned for planned in _PLANNED.values()}  # installing again is harmless
_LINEAR = (Linear, Embedding, SwitchLinear, *_PLANNED)


def _multiply(layer: Layer, x: mx.array) -> mx.array:
    plan: LinearPlan = layer.plan
    *batch, dims = x.shape
    rows = math.prod(batch)
    if plan.is_own(rows) and x.dtype == layer["scales"].dtype:
        return quantized_matmul(
            x,
            layer["weight"],
            layer["scales"],
            layer["biases"],
            group_size=layer.group_size,
            bits=layer.bits,
        )
    x = x.reshape(rows, dims)
    if plan.is_dense(rows):
        out = x @ _unpack(layer, x.dtype).T
    else:
        run = plan.rows_to_run(rows)
        out = mx.quantized_matmul(
            x if run == rows else x[_repeated(rows, run)],
            layer["weight"],
            scales=layer["scales"],
            biases=layer.get("biases"),
            transpose=True,
            group_size=layer.group_size,
            bits=layer.bits,
            mode=layer.mode,
        )[:rows]
    return out.reshape(*batch, out.shape[-1])


@cache
def _repeated(rows: int, run: int) -> mx.array:
    """Row numbers, gone round until there are `run`: one kernel, where zeros would take three."""
    return mx.array(np.arange(run, dtype=np.uint32) % rows)


def _unpack(layer: Layer, dtype: mx.Dtype) -> mx.array:
    return mx.dequantize(
        layer["weight"],
        scales=layer["scales"],
        biases=layer.get("biases"),
        group_size=layer.group_size,
        bits=layer.bits,
        mode=layer.mode,
        dtype=dtype,
    )


@dataclass(frozen=True, slots=True)
class ShapeReport:
    """What was chosen for all layers of one shape."""

    shape: LinearShape
    num_layers: int
    timings: LinearTimings
    plan: LinearPlan


@dataclass(frozen=True, slots=True)
class LinearReport:
    """What `install_linear_plans` found and did.

    Attributes:
        num_layers: Linear layers and embeddings, by class.
        num_left_alone: Those of them, by class, that are quantised in a way that no plan covers.
    """

    num_layers: Mapping[str, int]
    num_left_alone: Mapping[str, int]
    shapes: tuple[ShapeReport, ...]

    def without(self, idle: Iterable[LinearShape]) -> LinearReport:
        """The same less one layer for each of `idle`, shapes of layers that no step runs."""
        less = Counter(idle)
        shapes = [replace(it, num_layers=it.num_layers - less[it.shape]) for it in self.shapes]
        return replace(self, shapes=tuple(shapes))

    def rows_to_run(self, rows: int) -> int:
        """How many rows a decode step of `rows` rows had best be given.

        Rows added once, to the step, save adding them in every layer. More rows would choose
        more experts, so a model that has any gets none.
        """
        if any(found.shape.num_experts for found in self.shapes):
            return rows

        def seconds(count: int) -> float:
            return sum(found.num_layers * found.timings.seconds(count) for found in self.shapes)

        best = min((more for more in ROW_BUCKETS if more > rows), key=seconds, default=rows)
        return best if seconds(best) < MARGIN * seconds(rows) else rows

    def describe(self) -> str:
        """Layers and choices, one line a shape, for a log."""
        counts = [f"{count} {name}" for name, count in self.num_layers.items()]
        counts += [f"{count} {name} left alone" for name, count in self.num_left_alone.items()]
        shapes = [f"{found.num_layers} of {found.shape}: {found.plan}" for found in self.shapes]
        return "\n".join([", ".join(counts) or "no linear layers", *shapes])


def install_linear_plans(
    model: Model,
    dtype: mx.Dtype,
    time_layers: Callable[[LinearShape, Sequence[Layer]], LinearTimings],
    *,
    also: Iterable[Layer] = (),
) -> LinearReport:
    """Give every quantised layer the plan that its shape's times speak for.

    Args:
        dtype: Of the activations.
        time_layers: Measures layers of one shape; their ``plan`` may be set freely meanwhile.
        also: Layers that are not in the model's tree.
    """
    layers: dict[LinearShape, list[Layer]] = {}
    num_left_alone: Counter[str] = Counter()
    modules = model.modules()
    num_layers = Counter(type(it).__name__ for it in modules if isinstance(it, _LINEAR))
    for module in (*modules, *also):
        kind = type(module)
        if kind in _PLANNED and module.get("global_scale") is None:
            module.__class__ = _PLANNED[kind]
            module.plan = LinearPlan()
            layers.setdefault(shape_of(module, dtype), []).append(module)
        elif isinstance(module, tuple(_PLANNED)):
            num_left_alone[kind.__name__] += 1
    shapes = []
    for shape, group in layers.items():
        timings = time_layers(shape, group)
        plan = choose_plan(timings)
        for layer in group:
            layer.plan = plan
        shapes.append(ShapeReport(shape, len(group), timings, plan))
    return LinearReport(num_layers, num_left_alone, tuple(shapes))


def shape_of(layer: Layer, dtype: mx.Dtype) -> LinearShape:
    """What the speed of a quantised layer depends on.

    Args:
        dtype: Of the activations.
    """
    *experts, output_dims, num_groups = layer["scales"].shape
    return LinearShape(
        input_dims=num_groups * layer.group_size,
        output_dims=output_dims,
        num_experts=experts[0] if experts else 0,
        bits=layer.bits,
        group_size=layer.group_size,
        mode=layer.mode,
        dtype=str(dtype).removeprefix("mlx.core."),
    )
