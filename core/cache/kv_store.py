"""The arrays behind the block ids: keys and values of every paged layer.

Per layer, keys are ``[num_blocks, num_kv_heads, block_size, key_dim]`` and values the same with
their own dim. The store knows slots, not sequences. Writes are lazy graph nodes that replace the
layer's array; nobody else may keep a reference to it, or the device has to copy instead of writing
in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..backend import mx
from .kv_layout import KVLayout


@dataclass(frozen=True, slots=True)
class SlotIndex:
    """Where the tokens of one forward pass are written, for one layer group.

    Attributes:
        blocks: ``[tokens, 1]``, block of each token.
        offsets: ``[tokens, 1]``, its place in the block.
    """

    blocks: mx.array
    offsets: mx.array

    @classmethod
    def from_slots(cls, slots: Sequence[int], block_size: int) -> SlotIndex:
        """Split flat slots into block and offset."""
        flat = np.asarray(slots, dtype=np.int32)[:, None]
        return cls(mx.array(flat // block_size), mx.array(flat % block_size))


class KVStore:
    """Keys and values of all paged layers.

    Args:
        num_blocks: Blocks of each layer group.
    """

    def __init__(
        self, layout: KVLayout, num_blocks: Sequence[int], *, block_size: int, dtype: mx.Dtype
    ) -> None:
        self.layout = layout
        self.block_size = block_size
        self.dtype = dtype
        self._num_blocks = tuple(num_blocks)
        self._keys: list[mx.array] = []
        self._values: list[mx.array] = []
        self._heads: list[mx.array] = []
        self.group_of_layer = [layout.group_of(i) for i in range(len(layout.layers))]
        self.reset()

    def reset(self) -> None:
        """Start again with empty arrays, whatever state a failed step left the old ones in."""
        self._keys, self._values, self._heads = [], [], []
        for index, layer in enumerate(self.layout.layers):
            blocks = self._num_blocks[self.group_of_layer[index]]
            shape = (blocks, layer.num_kv_heads, self.block_size)
            self._keys.append(mx.zeros((*shape, layer.key_dim), dtype=self.dtype))
            self._values.append(mx.zeros((*shape, layer.value_dim), dtype=self.dtype))
            self._heads.append(mx.arange(layer.num_kv_heads)[None])
        mx.eval(self.arrays())

    def scrub(self) -> None:
        """Put 0 in place of everything that is not a finite number.

        Attention gives slots that it masks the weight 0, but 0 times NaN is NaN: such a slot would
        spoil whoever holds its block next.
        """
        for arrays in (self._keys, self._values):
            for layer in range(len(arrays)):
                arrays[layer] = mx.where(mx.isfinite(arrays[layer]), arrays[layer], 0)
                mx.eval(arrays[layer])  # one by one: never the whole store twice

    @property
    def nbytes(self) -> int:
        """Memory of all arrays."""
        return sum(array.nbytes for array in self.arrays())

    def arrays(self) -> list[mx.array]:
        """All arrays, to be evaluated together with a step."""
        return [*self._keys, *self._values]

    def keys(self, layer: int) -> mx.array:
        """``[num_blocks, num_kv_heads, block_size, key_dim]``. Do not keep the reference."""
        return self._keys[layer]

    def values(self, layer: int) -> mx.array:
        """``[num_blocks, num_kv_heads, block_size, value_dim]``. Do not keep the reference."""
        return self._values[layer]

    def write(self, layer: int, keys: mx.array, values: mx.array, slots: SlotIndex) -> None:
        """Put new tokens into their slots.

        Args:
            keys: ``[batch, num_kv_heads, length, key_dim]``, ``batch * length`` tokens in the
                order of ``slots``.
            values: The same with ``value_dim``.
        """
        index = (slots.blocks, self._heads[layer], slots.offsets)
        self._keys[layer][index] = _by_token(keys).astype(self.dtype)
        self._values[layer][index] = _by_token(values).astype(self.dtype)

    def gather(self, layer: int, blocks: mx.array) -> tuple[mx.array, mx.array]:
        """Copy blocks into one run of tokens.

        Args:
            blocks: ``[n]`` block ids in the order of their positions.

        Returns:
            Keys and values, each ``[1, num_kv_heads, n * block_size, dim]``.
        """
        return _as_run(self._keys[layer][blocks]), _as_run(self._values[layer][blocks])


def _by_token(array: mx.array) -> mx.array:
    batch, heads, length, dim = array.shape
    return array.swapaxes(1, 2).reshape(batch * length, heads, dim)


def _as_run(blocks: mx.array) -> mx.array:
    count, heads, size, dim = blocks.shape
    return blocks.swapaxes(0, 1).reshape(1, heads, count * size, dim)
