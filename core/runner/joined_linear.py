"""Layers that are given the same input, such as queries, keys and values, made into one product.

mlx-lm's code stays as it is. Which layers those are is seen in a run of one token: children of one
module that get the very same array. Their weights are laid side by side in one buffer, of which
each keeps its part as a view. Of joined layers the first to be called multiplies for all, and the
others fetch their parts.
"""

from __future__ import annotations

import copy
import itertools
import logging
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..backend import mx  # first: what is below loads mlx

# isort: split
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.quantized import QuantizedLinear

from .head_part import Part
from .linear import Layer, PlannedLinear
from .model_adapter import Model, reference_logits

logger = logging.getLogger(__name__)

# Of the largest number: some roundings. Parts that are mixed up are off by far more.
_TOLERANCE = {mx.float32: 5e-3, mx.float16: 5e-3, mx.bfloat16: 2e-2}


class JointProduct:
    """What the layers of a group share: a product of an input with the weights of them all.

    Attributes:
        layer: Has these weights. It is not part of the model.
        max_rows: Up to how many rows of input the layers take their parts from here.
        gives_parts: Whether those are stand-ins, for one token a row; else they are arrays.
    """

    def __init__(self, layer: Layer, bounds: Sequence[int]) -> None:
        self.layer = layer
        self.max_rows = 0
        self.gives_parts = False
        self._bounds = list(bounds)
        self._input: weakref.ref[mx.array] | None = None
        self._parts: dict[int, mx.array | Part] = {}

    def compute(self, x: mx.array) -> list[mx.array]:
        """``[..., input_dims]`` -> one ``[..., width]`` for each of the layers."""
        return list(mx.split(self.layer(x), self._bounds, axis=-1))

    def _compute_parts(self, x: mx.array) -> list[Part]:
        product = self.layer(x)
        bounds = itertools.pairwise([0, *self._bounds, product.shape[-1]])
        return [Part(product, start, (*x.shape[:-1], end - start)) for start, end in bounds]

    def take(self, index: int, x: mx.array) -> mx.array | Part:
        """One layer's part. The others are held until they are taken or `x` is gone.

        Under `mx.compile` arrays belong to one trace and must not be seen by the next. An array
        that was gone is not mistaken for a new one, as it could be by its address.
        """
        if self._input is None or self._input() is not x or index not in self._parts:
            compute = self._compute_parts if self.gives_parts else self.compute
            self._parts = dict(enumerate(compute(x)))
            self._input = weakref.ref(x, self._forget)
        part = self._parts.pop(index)
        if not self._parts:
            self._input = None
        return part

    def _forget(self, gone: weakref.ref[mx.array]) -> None:
        if gone is self._input:
            self._input, self._parts = None, {}


@dataclass(frozen=True, slots=True)
class LinearGroup:
    """Layers whose weights lie side by side, and which may be joined.

    Attributes:
        paths: Their places in the model.
    """

    paths: tuple[str, ...]
    layers: tuple[Layer, ...]
    product: JointProduct
    input_dims: int

    def join(self, max_rows: int) -> None:
        """Have the layers take their parts from the product, up to so many rows of input."""
        self.product.max_rows = max_rows
        for index, layer in enumerate(self.layers):
            layer.joint, layer.joint_index = self.product, index
            layer.__class__ = _JOINED.get(type(layer), type(layer))

    def unjoin(self) -> None:
        """Have each layer multiply by itself again. Weights stay where they are."""
        for layer in self.layers:
            layer.__class__ = _STOCK.get(type(layer), type(layer))


def _joined(stock: Any) -> type:
    def multiply(layer: Layer, x: mx.array) -> Any:
        if x.size <= layer.joint.max_rows * x.shape[-1]:
            return layer.joint.take(layer.joint_index, x)
        return stock.__call__(layer, x)

    return type(f"Joined{stock.__name__}", (stock,), {"__call__": multiply})


_JOINED = {stock: _joined(stock) for stock in (Linear, QuantizedLinear, PlannedLinear)}
_STOCK = {joined: stock for stock, joined in _JOINED.items()}


def find_linear_groups(model: Model) -> list[LinearGroup]:
    """Find layers that may be joined and lay their weights side by side. None is joined yet.

    Subclasses of mlx's layers are left alone, as are layers that some adapter wraps. Does not
    raise: what cannot be grouped stays as it was.
    """
    groups: list[LinearGroup] = []
    # The model's code is not ours, and room for a group's weights may be lacking.
    try:
        for calls in _calls_of_one_input(model):
            group = _lay_side_by_side(calls)
            if group is not None:
                groups.append(group)
            mx.clear_cache()  # the former weights, which the next group may not be able to use
    except Exception as error:
        logger.warning("no more linear layers are joined: %s", error)
        logger.debug("cannot join", exc_info=True)
    logger.debug("layers of one input: %s", "; ".join(" ".join(it.paths) for it in groups))
    return groups


class _Call(NamedTuple):
    layer: Layer
    path: str
    x: mx.array
    out: mx.array


def _calls_of_one_input(model: Model) -> list[list[_Call]]:
    calls = _record(model)
    num_calls = Counter(call.path for call in calls)
    alike: dict[Hashable, list[_Call]] = {}
    for call in calls:
        if num_calls[call.path] == 1:
            key = call.path.rpartition(".")[0], id(call.x), _format(call.layer)
            alike.setdefault(key, []).append(call)
    return [group for group in alike.values() if len(group) > 1]


def _record(model: Model) -> list[_Call]:
    """What plain layers were given, and gave, while one token ran."""
    calls: list[_Call] = []
    paths: dict[int, str] = {}

    def recording(stock: Any) -> Callable[[Layer, mx.array], mx.array]:
        def multiply(layer: Layer, x: mx.array) -> mx.array:
            out: mx.array = stock.__call__(layer, x)
            calls.append(_Call(layer, paths[id(layer)], x, out))
            return out

        return multiply

    recorders = {
        stock: type(stock.__name__, (stock,), {"__call__": recording(stock)})
        for stock in (Linear, QuantizedLinear)
    }
    touched = [(layer, type(layer)) for layer in model.modules() if type(layer) in recorders]
    try:
        for path, layer in model.named_modules():
            if type(layer) in recorders:
                paths[id(layer)] = path
                layer.__class__ = recorders[type(layer)]
        reference_logits(model, [[0]])
    finally:
        for layer, stock in touched:
            layer.__class__ = stock
    return calls


def _format(layer: Layer) -> Hashable:
    """What must be the same for weights to lie side by side."""
    arrays = tuple((name, array.dtype, array.shape[1:]) for name, array in sorted(layer.items()))
    names = ("bits", "group_size", "mode")
    return type(layer), arrays, tuple(getattr(layer, name, None) for name in names)


def _lay_side_by_side(calls: Sequence[_Call]) -> LinearGroup | None:
    layers = [call.layer for call in calls]
    joint = copy.copy(layers[0])
    for name in layers[0]:
        joint[name] = mx.concatenate([layer[name] for layer in layers])
    ends = list(itertools.accumulate(layer["weight"].shape[0] for layer in layers))
    product = JointProduct(joint, ends[:-1])
    # An array that the model's code changed in place between the calls was the same by name only.
    for call, part in zip(calls, product.compute(calls[0].x), strict=True):
        out = call.out.astype(mx.float32)
        error = float(mx.abs(part.astype(mx.float32) - out).max())
        if not error <= _TOLERANCE[call.out.dtype] * float(mx.abs(out).max()):
            logger.debug("not joined: %s is off by %.1e", call.path, error)
            return None
    mx.eval(joint.parameters())
    for layer, (start, end) in zip(layers, itertools.pairwise([0, *ends]), strict=True):
        for name in layer:
            layer[name] = joint[name][start:end]
        # Evaluated, a part along the first axis is a view and keeps no former weights alive.
        mx.eval(layer.parameters())
    paths = tuple(call.path for call in calls)
    return LinearGroup(paths, tuple(layers), product, calls[0].x.shape[-1])
