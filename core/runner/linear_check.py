"""Tries our own quantised kernel on a model's layers before anybody relies on it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from ..backend import mx  # first: what is below loads mlx

# isort: split
from mlx.nn.layers.quantized import QuantizedEmbedding, QuantizedLinear

from ..kernels.quantized_matmul import quantized_matmul, supports
from .linear import Layer, shape_of
from .linear_plan import LinearShape

logger = logging.getLogger(__name__)

# Of the largest number: some roundings of 16 bits. A wrong kernel is off by far more.
_TOLERANCE = {mx.float16: 5e-3, mx.bfloat16: 2e-2}
# One for every tile that the kernel takes up to 256 rows, so that all are compiled by now.
_ROWS = (3, 16, 29, 64, 100, 192, 256)


def has_own_kernel(shape: LinearShape, dtype: mx.Dtype) -> bool:
    """Whether our own kernel can multiply activations of `dtype` with weights of this shape."""
    return not shape.num_experts and supports(
        shape.input_dims, shape.output_dims, shape.bits, shape.group_size, shape.mode, dtype
    )


def find_kernel_problem(modules: Iterable[Any], dtype: mx.Dtype) -> str | None:
    """Compare our kernel with mlx's on one layer of every shape. Does not raise.

    Args:
        modules: Of any class.
        dtype: Of the activations.

    Returns:
        ``None`` if the numbers agree, else what went wrong.
    """
    tried: set[LinearShape] = set()
    for module in modules:
        if not isinstance(module, QuantizedLinear | QuantizedEmbedding):
            continue
        shape = shape_of(module, dtype)
        if shape in tried or module["scales"].dtype != dtype or not has_own_kernel(shape, dtype):
            continue
        tried.add(shape)
        try:
            problem = _compare(module, shape, dtype)
        # Compilers and drivers fail in ways of their own; none of them may stop the server.
        except Exception as error:
            logger.debug("kernel check failed", exc_info=True)
            problem = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        if problem is not None:
            return f"{shape}: {problem}"
    return None


def _compare(layer: Layer, shape: LinearShape, dtype: mx.Dtype) -> str | None:
    weight, scales, biases = layer["weight"], layer["scales"], layer["biases"]
    options = {"group_size": layer.group_size, "bits": layer.bits}
    x = mx.random.normal((_ROWS[-1], shape.input_dims), key=mx.random.key(1)).astype(dtype)
    want = mx.quantized_matmul(x, weight, scales, biases, transpose=True, **options)
    want = want.astype(mx.float32)
    largest = float(mx.abs(want).max())
    for rows in _ROWS:
        have = quantized_matmul(x[:rows], weight, scales, biases, **options)
        error = float(mx.abs(have.astype(mx.float32) - want[:rows]).max())
        # Comparing this way round lets no NaN pass.
        if not error <= _TOLERANCE[dtype] * largest:
            return f"off by {error:.1e} of {largest:.1e} at {rows} rows"
    return None
