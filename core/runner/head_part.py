"""Stand-ins for queries, keys and values while the graph of a step is built.

mlx-lm's attention parts them into heads, norms and rotates them by an operation for each. A *part*
stands for one of the three within their joint product and remembers what was done to it. Attention
is handed all three, and has one kernel do what they remember, if that is what the kernel does;
else it is carried out as remembered. What else a model asks of a part is asked of the array.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..backend import mx
from ..kernels.rope_write import RotaryShape, find_problem, rope_write

_HEADS_FIRST = (0, 2, 1, 3)


@dataclass(frozen=True, slots=True)
class Part:
    """Some columns of a joint product with one row a token.

    Attributes:
        product: ``[tokens, 1, columns of all parts]``.
        start: The first of its own columns.
        shape: Of what it stands for.
        steps: What was done to the columns, as functions of an array.
        heads: Into how many heads they were parted, once they were.
        norm: The `mlx.nn.RMSNorm` that they went through, if any.
        rope: The module that rotated them, if any: `mlx.nn.RoPE` or one that has ``_freqs``.
        positions: What that was given.
    """

    product: mx.array
    start: int
    shape: tuple[int, ...]
    steps: tuple[Callable[[mx.array], mx.array], ...] = ()
    heads: int | None = None
    norm: Any = None
    rope: Any = None
    positions: Any = None

    @property
    def dtype(self) -> mx.Dtype:
        """Of the product, and so of all parts."""
        return self.product.dtype

    @property
    def width(self) -> int:
        """Columns."""
        return self.shape[-1] * (self.heads or 1)

    def array(self) -> mx.array:
        """What it stands for."""
        out = self.product[..., self.start : self.start + self.width]
        for step in self.steps:
            out = step(out)
        return out

    __mlx_array__ = array

    def __getattr__(self, name: str) -> Any:
        return getattr(self.array(), name)

    def reshape(self, *sizes: int) -> Any:
        """Remembered if it parts heads: ``[tokens, 1, heads, dim]``."""
        if self.heads is None and len(sizes) == 4 and sizes[:2] == self.shape[:2] and sizes[2] > 0:
            shape = (*sizes[:3], self.width // sizes[2])
            if sizes[3] in (-1, shape[3]) and shape[3] * sizes[2] == self.width:
                return self._then(lambda x: x.reshape(shape), shape=shape, heads=sizes[2])
        return self.array().reshape(*sizes)

    def transpose(self, *axes: int) -> Any:
        """Remembered if it puts heads before the one position: ``[tokens, heads, 1, dim]``."""
        if axes != _HEADS_FIRST or self.heads is None or self.shape[1] != 1:
            return self.array().transpose(*axes)
        shape = tuple(self.shape[axis] for axis in axes)
        return self._then(lambda x: x.transpose(*axes), shape=shape)

    def normalised(self, norm: Any, call: Callable[[mx.array], mx.array]) -> Any:
        """The result of `call`, which applies a `mlx.nn.RMSNorm`."""
        if self.heads is None or self.norm is not None or self.rope is not None:
            return call(self.array())
        return self._then(call, norm=norm)

    def rotated(self, rope: Any, positions: Any, call: Callable[[mx.array], mx.array]) -> Any:
        """The result of `call`, which has `rope` rotate it."""
        if self.heads is None or self.shape[1] != self.heads or self.rope is not None:
            return call(self.array())
        return self._then(call, rope=rope, positions=positions)

    def _then(self, step: Callable[[mx.array], mx.array], **changes: Any) -> Part:
        return replace(self, steps=(*self.steps, step), **changes)


def plain(heads: Any) -> mx.array:
    """An array, whether it is one or a part."""
    return heads.array() if isinstance(heads, Part) else heads


def write_parts(
    queries: Any,
    keys: Any,
    values: Any,
    positions: mx.array,
    slots: mx.array,
    key_store: mx.array,
    value_store: mx.array,
) -> mx.array | None:
    """Have the kernel do what the parts remember, and write keys and values.

    Args:
        positions: Of the tokens, ``[tokens]``, int32.
        slots: ``[tokens]``, int32.
        key_store: ``[num_blocks, num_kv_heads, block_size, key_dim]``; changed.
        value_store: The same with ``value_dim``; changed.

    Returns:
        Queries ``[tokens, num_heads, 1, key_dim]``; ``None`` if that is not what the kernel does.
    """
    if not all(isinstance(it, Part) for it in (queries, keys, values)):
        return None
    rope, norms = keys.rope, (queries.norm, keys.norm)
    has_norms = norms[0] is not None
    _, num_kv_heads, block_size, key_dim = key_store.shape
    used = [queries.product, key_store, *(norm["weight"] for norm in norms if norm is not None)]
    if not (
        queries.product is keys.product is values.product
        and (queries.start, keys.start) == (0, queries.width)
        and values.start == keys.start + keys.width
        and queries.product.shape[-1] == values.start + values.width
        and rope is not None
        and queries.rope is rope
        and queries.positions is keys.positions is positions
        and values.rope is values.norm is None
        and has_norms == (norms[1] is not None)
        and (not has_norms or norms[0].eps == norms[1].eps)
        and all(array.dtype == key_store.dtype for array in used)
        and queries.shape[2:] == keys.shape[2:] == (1, key_dim)
        and (keys.heads, values.shape[1:])
        == (num_kv_heads, (num_kv_heads, 1, *value_store.shape[3:]))
    ):
        return None
    periods = getattr(rope, "_freqs", None)
    shape = RotaryShape(
        num_heads=queries.heads,
        num_kv_heads=num_kv_heads,
        key_dim=key_dim,
        value_dim=value_store.shape[3],
        block_size=block_size,
        dtype=key_store.dtype,
        eps=norms[0].eps if has_norms else None,
        rotated=rope.dims,
        traditional=rope.traditional,
        base=rope.base if periods is None else None,
        scale=rope.scale if periods is None else 1.0,
    )
    if find_problem(shape) is not None:
        return None
    weights = (norms[0]["weight"], norms[1]["weight"]) if has_norms else None
    return rope_write(
        shape, queries.product, weights, periods, positions, slots, key_store, value_store
    )
