"""Times a model's own layers at load, and keeps the times for the next load.

Products run in a chain in which each waits for the one before it, as in a model, and over the
weights of several layers, so that they do not all come from the processor's cache. The chain is
submitted while the device has something else to do: else, of few rows, it would be the host's time
for starting kernels that is measured. That time is measured apart, and added, since a step of many
quick kernels takes as long as it takes the host to start them.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import time
from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np

from ..backend import device_kind, mx
from ..kernels import quantized_matmul
from .joined_linear import LinearGroup
from .linear import (
    ROW_BUCKETS,
    Layer,
    LinearReport,
    PlannedEmbedding,
    PlannedSwitchLinear,
    install_linear_plans,
    shape_of,
)
from .linear_check import find_kernel_problem, has_own_kernel
from .linear_plan import MARGIN, LinearPlan, LinearShape, LinearTimings
from .measurements import Measurements
from .model_adapter import Model

logger = logging.getLogger(__name__)

_OWN_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_DENSE_ROWS = (16, 32, 64, 128, 256, 1024)
# Pairs of a token and one of its experts: mlx-lm sorts them from 64 on.
_EXPERT_PAIRS = (256, 1024, 4096, 16384)
# Unpacked weights are a temporary: larger ones (heads, which run few rows) are not worth the room.
_MAX_DENSE_BYTES = 512 << 20
_CHAIN_SECONDS = 2e-3
_MAX_CHAIN = 16
_REPEATS = 3
_STOCK_ONLY = LinearTimings(stock={1: 0.0})
_SLOW_SECONDS = 2e-2  # one product of this size is timed well enough by itself
# What the device is kept busy with takes longer than the host takes to start a chain.
_BUSY_SECONDS = 2e-3
_BUSY_DIMS = 2048
_JOINED_ROWS = (1, 8, 16, 64, 256)
# SmolLM2-135M, float32, 2 cores: joined, a step of 1 row takes 0.96, of 8 rows 1.0 and of 16 rows
# 0.97 of the time. Gate and up alone take 0.97 up to here, but 1.08 from 64 rows on: parts of a
# joined result do not lie together, and what reads them is slower.
_CPU_JOINED_ROWS = 32


def tune_linear_layers(
    model: Model,
    dtype: mx.Dtype,
    measurements: Measurements,
    groups: Sequence[LinearGroup] = (),
) -> LinearReport:
    """Time the model's quantised layers, unless that was done before, and install what is best.

    Call it before memory is given to the KV cache: unpacked experts take some. Without a GPU
    nothing is timed and layers run the stock way: there the loader leaves nothing quantised.

    Args:
        dtype: Of the activations.
        groups: Layers to join, as far as that is faster.
    """
    if device_kind() == "cpu":
        for group in groups:
            group.join(_CPU_JOINED_ROWS)
        return install_linear_plans(model, dtype, lambda *_: _STOCK_ONLY)
    joint = [group.product.layer for group in groups]
    problem = find_kernel_problem([*model.modules(), *joint], dtype)
    if problem is not None:
        logger.warning("mlx's quantised kernel is used in place of our own: %s", problem)

    def time_layers(shape: LinearShape, layers: Sequence[Layer]) -> LinearTimings:
        has_own = problem is None and has_own_kernel(shape, dtype)
        key = f"{shape}, own kernel {_own_kernel_version()}" if has_own else str(shape)
        try:
            record = measurements.get(
                "product", key, lambda: time_shape(shape, layers, dtype, has_own=has_own).to_json()
            )
        # A way that this backend lacks for this shape, or no room: the model may run all the same.
        except (RuntimeError, ValueError, MemoryError) as error:
            logger.warning("cannot time %s: %s", shape, error)
            return _STOCK_ONLY
        return LinearTimings.from_json(record)

    report = install_linear_plans(model, dtype, time_layers, also=joint)
    report = report.without(_join_where_faster(groups, dtype, measurements))
    mx.clear_cache()
    logger.debug("linear layers: %s", report.describe())
    return report


def _own_kernel_version() -> str:
    """Of its source, of the choice of tiles, and of how it is timed."""
    source = quantized_matmul.header(1, 32) + inspect.getsource(quantized_matmul)
    source += inspect.getsource(time_chain)
    return hashlib.sha256(source.encode()).hexdigest()[:12]


def _join_where_faster(
    groups: Sequence[LinearGroup], dtype: mx.Dtype, measurements: Measurements
) -> list[LinearShape]:
    """Join groups up to the number of rows where that pays.

    Returns:
        Shapes of the quantised layers that no decode step runs.
    """
    alike: dict[str, list[LinearGroup]] = {}
    for group in groups:
        alike.setdefault(_describe(group, dtype), []).append(group)
    idle: list[Layer] = []
    for key, same in alike.items():
        try:
            named = f"{key}, own kernel {_own_kernel_version()}"
            max_rows = measurements.get("joined", named, partial(time_joining, same, dtype))
        except (RuntimeError, ValueError, MemoryError) as error:
            logger.warning("cannot time joined layers: %s", error)
            max_rows = 0
        logger.debug("joined up to %d rows: %s", max_rows, key)
        for group in same:
            if max_rows:
                group.join(max_rows)
            idle += group.layers if max_rows else [group.product.layer]
    return [shape_of(layer, dtype) for layer in idle if "scales" in layer]


def _describe(group: LinearGroup, dtype: mx.Dtype) -> str:
    """All that the speed of the layers depends on, joined or not."""

    def describe(layer: Layer) -> str:
        if "scales" in layer:
            return f"{shape_of(layer, dtype)}: {layer.plan}"
        return f"{layer.weight.shape} {layer.weight.dtype}"

    return "; ".join(describe(layer) for layer in (*group.layers, group.product.layer))


def time_joining(groups: Sequence[LinearGroup], dtype: mx.Dtype) -> int:
    """Up to how many rows joining pays, 0 for never: where the shares that it saves add up to most.

    Args:
        groups: Of the same shapes. They are left unjoined.
    """

    def product(x: mx.array, i: int) -> mx.array:
        parts = [layer(x) for layer in groups[i % len(groups)].layers]
        # Joined parts do not lie together: what reads them is part of the price.
        return mx.concatenate([mx.abs(part)[:1, :1] for part in parts]).sum(keepdims=True)

    best, best_gain, gain = 0, 0.0, 0.0
    try:
        for rows in _JOINED_ROWS:
            x = _inputs(rows, groups[0].input_dims, dtype)
            seconds = []
            for max_rows in (0, rows):
                for group in groups:
                    group.join(max_rows)
                seconds.append(time_chain(product, x))
            gain += 1 - seconds[1] / seconds[0]
            if gain > best_gain:
                best, best_gain = rows, gain
    finally:
        for group in groups:
            group.unjoin()
    return best


def time_shape(
    shape: LinearShape, layers: Sequence[Layer], dtype: mx.Dtype, *, has_own: bool = False
) -> LinearTimings:
    """Time every way that may be worth it.

    Args:
        layers: All of `shape`. They are left with some plan.
        has_own: Whether our own kernel takes them.
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
    own = {}
    for rows in _OWN_ROWS if has_own else ():
        stock[rows] = stock.get(rows) or seconds(rows, LinearPlan())
        own[rows] = seconds(rows, LinearPlan(own=(range(rows, rows + 1),)))
    return LinearTimings(stock, padded, dense, own)


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
    # Where head and embedding are two layers, both have this shape.
    products = [
        layer.as_linear if isinstance(layer, PlannedEmbedding) else layer for layer in layers
    ]
    return lambda x, i: products[i % len(products)](x)


def time_chain(product: Callable[[mx.array, int], mx.array], x: mx.array) -> float:
    """Seconds that one product takes the device and the host together, as part of a chain.

    Args:
        product: Given ``[rows, input_dims]`` and a running number, ``[rows, output_dims]``.
    """
    repeats = _busy_repeats()

    def seconds(count: int) -> float:
        out = x
        for i in range(count):
            # One small kernel, the same for all ways, that makes a product wait for the last one.
            out = mx.minimum(x, product(out, i)[:1, :1])
        busy = _start_multiplying(repeats)
        start = time.perf_counter()
        mx.async_eval(out)  # type: ignore[no-untyped-call]
        host_s = time.perf_counter() - start
        mx.eval(busy)
        start = time.perf_counter()
        mx.eval(out)
        return (time.perf_counter() - start + host_s) / count

    mx.eval(x)
    seconds(1)  # compiles
    once = seconds(1)
    if once > _SLOW_SECONDS:
        return once
    count = max(1, min(_MAX_CHAIN, int(_CHAIN_SECONDS / once)))
    # The least of some tries, since noise only adds.
    return min(seconds(count) for _ in range(_REPEATS))


def _start_multiplying(repeats: int) -> mx.array:
    """Something that the device has to do, one multiplication after another."""
    out = matrix = mx.zeros((_BUSY_DIMS, _BUSY_DIMS), mx.float16)
    for _ in range(repeats):
        out = out @ matrix
    mx.async_eval(out)  # type: ignore[no-untyped-call]
    return out


@cache
def _busy_repeats() -> int:
    """How many multiplications keep the device busy for long enough."""
    repeats, least = 1, 0.0
    while least < _BUSY_SECONDS:
        repeats *= 2
        times = []
        for _ in range(_REPEATS):
            start = time.perf_counter()
            mx.eval(_start_multiplying(repeats))
            times.append(time.perf_counter() - start)
        least = min(times)
    return repeats
