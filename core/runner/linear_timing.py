"""Times a model's own layers at load, and keeps the times for the next load.

Products run in a chain in which each waits for the one before it, as in a model, and over the
weights of several layers, so that they do not all come from the processor's cache.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np

from ..backend import device_kind, mx
from .linear import (
    ROW_BUCKETS,
    Layer,
    LinearReport,
    PlannedEmbedding,
    PlannedSwitchLinear,
    install_linear_plans,
)
from .linear_plan import MARGIN, LinearPlan, LinearShape, LinearTimings
from .measurements import Measurements
from .model_adapter import Model

logger = logging.getLogger(__name__)

_DENSE_ROWS = (16, 64, 256, 1024)
# Pairs of a token and one of its experts: mlx-lm sorts them from 64 on.
_EXPERT_PAIRS = (256, 1024, 4096, 16384)
# Unpacked weights are a temporary: larger ones (heads, which run few rows) are not worth the room.
_MAX_DENSE_BYTES = 512 << 20
_CHAIN_SECONDS = 2e-3
_MAX_CHAIN = 16
_REPEATS = 3
_STOCK_ONLY = LinearTimings(stock={1: 0.0})
_SLOW_SECONDS = 2e-2  # one product of this size is timed well enough by itself


def tune_linear_layers(model: Model, dtype: mx.Dtype, measurements: Measurements) -> LinearReport:
    """Time the model's quantised layers, unless that was done before, and install what is best.

    Call it before memory is given to the KV cache: unpacked experts take some. Without a GPU
    nothing is timed and layers run the stock way: there the loader leaves nothing quantised.

    Args:
        dtype: Of the activations.
    """

    def time_layers(shape: LinearShape, layers: Sequence[Layer]) -> LinearTimings:
        if device_kind() == "cpu":
            return _STOCK_ONLY
        try:
            record = measurements.get(
                "linear", str(shape), lambda: time_shape(shape, layers, dtype).to_json()
            )
        # A way that this backend lacks for this shape, or no room: the model may run all the same.
        except (RuntimeError, ValueError, MemoryError) as error:
            logger.warning("cannot time %s: %s", shape, error)
            return _STOCK_ONLY
        return LinearTimings.from_json(record)

    report = install_linear_plans(model, dtype, time_layers)
    mx.clear_cache()
    logger.debug("linear layers: %s", report.describe())
    return report


def time_shape(shape: LinearShape, layers: Sequence[Layer], dtype: mx.Dtype) -> LinearTimings:
    """Time every way that may be worth it.

    Args:
        layers: All of `shape`. They are left with some plan.
    """

    def seconds(rows: int, plan: LinearPlan) -> float:
        for layer in layers:
            layer.plan = plan
        return time_chain(_product(layers, rows), _inputs(rows, shape.input_dims, dtype))

    stock, padded, dense = dict[int, float](), dict[int, tuple[int, float]](), dict[int, float]()
    for rows in () if shape.num_experts else ROW_BUCKETS:
        stock[rows] = seconds(rows, LinearPlan())
    for rows in list(stock)[:-1]:
        target = min((more for more in stock if more > rows), key=stock.__getitem__)
        if stock[target] < MARGIN * stock[rows]:
            padded[rows] = target, seconds(rows, LinearPlan(padded=(target,) * rows))
    if _dense_bytes(shape, dtype) <= _MAX_DENSE_BYTES:
        for rows in _EXPERT_PAIRS if shape.num_experts else _DENSE_ROWS:
            stock[rows] = stock.get(rows) or seconds(rows, LinearPlan())
            dense[rows] = seconds(rows, LinearPlan(dense_from=1))
    return LinearTimings(stock, padded, dense)


def _dense_bytes(shape: LinearShape, dtype: mx.Dtype) -> int:
    return max(shape.num_experts, 1) * shape.input_dims * shape.output_dims * int(dtype.size)


def _inputs(rows: int, dims: int, dtype: mx.Dtype) -> mx.array:
    # With a key of its own: the state of mlx's generator stays what it was.
    return mx.random.normal((rows, dims), key=mx.random.key(0)).astype(dtype)


def _product(layers: Sequence[Layer], rows: int) -> Callable[[mx.array, int], mx.array]:
    """``[rows, input_dims]`` -> ``[rows, output_dims]`` by the i-th layer, going round."""
    first = layers[0]
    if isinstance(first, PlannedSwitchLinear):
        chosen = np.random.default_rng(0).integers(0, first.num_experts, rows)
        indices = mx.array(np.sort(chosen).astype(np.uint32))
        return lambda x, i: layers[i % len(layers)](x[:, None], indices, sorted_indices=True)[:, 0]
    if isinstance(first, PlannedEmbedding):
        return lambda x, i: layers[i % len(layers)].as_linear(x)
    return lambda x, i: layers[i % len(layers)](x)


def time_chain(product: Callable[[mx.array, int], mx.array], x: mx.array) -> float:
    """Seconds of one product within a chain; the least of some tries, since noise only adds.

    Args:
        product: Given ``[rows, input_dims]`` and a running number, ``[rows, output_dims]``.
    """

    def chain(count: int) -> float:
        out = x
        for i in range(count):
            # One small kernel, the same for all ways, that makes a product wait for the last one.
            out = mx.minimum(x, product(out, i)[:1, :1])
        start = time.perf_counter()
        mx.eval(out)
        return (time.perf_counter() - start) / count

    mx.eval(x)
    chain(1)  # compiles
    once = chain(1)
    if once > _SLOW_SECONDS:
        return once
    count = max(1, min(_MAX_CHAIN, int(_CHAIN_SECONDS / once)))
    return min(chain(count) for _ in range(_REPEATS))
