"""The residual stream while the graph of a step is built: an addition waits for the norm after it.

mlx-lm's blocks add to the stream and norm the sum, by an operation each. A stream in place of the
array has one kernel do both. What else a model asks of it is asked of the array.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..backend import mx
from ..kernels.add_norm import add_norm, supports


class Stream:
    """An array, or the sum of two that nobody has needed yet."""

    def __init__(self, base: mx.array, added: mx.array | None = None) -> None:
        self._base = base
        self._added = added

    def array(self) -> mx.array:
        """The sum."""
        if self._added is not None:
            self._base, self._added = self._base + self._added, None
        return self._base

    __mlx_array__ = array

    def __getattr__(self, name: str) -> Any:
        return getattr(self.array(), name)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self._base.shape

    @property
    def dtype(self) -> mx.Dtype:
        """Of the array."""
        return self._base.dtype

    def __add__(self, other: Any) -> Any:
        if isinstance(other, mx.array) and other.shape == self.shape:
            return Stream(self.array(), other)
        return self.array() + other

    def __mul__(self, other: Any) -> Any:
        return self.array() * other

    def __getitem__(self, index: Any) -> Any:
        return self.array()[index]

    def normalised(self, norm: Any, call: Callable[[mx.array], mx.array]) -> mx.array:
        """The result of `call`, which applies a `mlx.nn.RMSNorm`."""
        added, weight = self._added, norm["weight"]
        if added is None or not supports(self._base, added, weight):
            return call(self.array())
        self._base, normed = add_norm(self._base, added, weight, norm.eps)
        self._added = None
        return normed
