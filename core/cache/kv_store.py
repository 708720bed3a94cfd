"""The arrays behind the block ids: keys and values of every paged layer.

Per layer, keys are ``[num_blocks, num_kv_heads, block_size, key_dim]`` and values the same with
their own dim. The store knows slots, not sequences. Writes are lazy graph nodes that replace the
layer's array; nobody else may keep a reference to it, or the device has to copy instead of writing
in place.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from ..backend import mx
from .kv_layout import KVLayout


class TokenSlots:
    """Where the tokens of one forward pass are written, for one layer group.

    Args:
        slots: ``[tokens]``, int32.
    """

    def __init__(self, slots: mx.array, block_size: int) -> None:
        self.slots = slots
        self._block_size = block_size
        # All layers of a group ask for the same thing.
        self._vectors: dict[int, mx.array] = {}

    def vectors(self, num_kv_heads: int) -> mx.array:
        """Which of a layer's vectors these are, ``[tokens * num_kv_heads]``.

        A layer's vectors are numbered in the store's order: block, head, place in the block.
        """
        if num_kv_heads not in self._vectors:
            heads = mx.arange(num_kv_heads, dtype=mx.int32)
            blocks, offsets = mx.divmod(self.slots, self._block_size)
            numbers = (blocks[:, None] * num_kv_heads + heads) * self._block_size
            self._vectors[num_kv_heads] = (numbers + offsets[:, None]).reshape(-1)
        return self._vectors[num_kv_heads]


class KVStore:
    """Keys and values of all paged layers.

    Args:
        num_blocks: Blocks of each layer group. There is one more of each, see `trash_block`.
        write_in_place: Writes tokens as `write_store` does and returns what that returns, where
            there is a kernel for it. Without, a write replaces the layer's arrays.
    """

    def __init__(
        self,
        layout: KVLayout,
        num_blocks: Sequence[int],
        *,
        block_size: int,
        dtype: mx.Dtype,
        write_in_place: Callable[..., mx.array] | None = None,
    ) -> None:
        self.layout = layout
        self.block_size = block_size
        self.dtype = dtype
        self._write_in_place = write_in_place
        self._num_blocks = tuple(num_blocks)
        self._keys: list[mx.array] = []
        self._values: list[mx.array] = []
        self.group_of_layer = [layout.group_of(i) for i in range(len(layout.layers))]
        self.reset()

    def reset(self) -> None:
        """Start again with empty arrays, whatever state a failed step left the old ones in."""
        self._keys, self._values = [], []
        for index, layer in enumerate(self.layout.layers):
            blocks = self._num_blocks[self.group_of_layer[index]] + 1
            # Flat, because a write by one index is one quick operation; by three it is many.
            count = blocks * layer.num_kv_heads * self.block_size
            self._keys.append(mx.zeros((count, layer.key_dim), dtype=self.dtype))
            self._values.append(mx.zeros((count, layer.value_dim), dtype=self.dtype))
        # On the CPU it takes a second to fill gigabytes; nobody needs to wait for that yet.
        mx.async_eval(*self.arrays())  # type: ignore[no-untyped-call]

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
        """All arrays."""
        return [*self._keys, *self._values]

    @property
    def is_written_in_place(self) -> bool:
        """Whether the arrays stay the same ones."""
        return self._write_in_place is not None

    def trash_block(self, group: int) -> int:
        """A block that nobody reads, for tokens that only fill up a batch."""
        return self._num_blocks[group]

    def over(self, arrays: Sequence[mx.array]) -> KVStore:
        """The same store made of other arrays, in the order of `arrays`."""
        other = copy.copy(self)
        count = len(self._keys)
        other._keys, other._values = list(arrays[:count]), list(arrays[count:])
        return other

    def put(self, arrays: Sequence[mx.array]) -> None:
        """Own these arrays, in the order of `arrays`."""
        count = len(self.layout.layers)
        self._keys, self._values = list(arrays[:count]), list(arrays[count:])

    def last_layer(self) -> list[mx.array]:
        """The last layer's keys and values, which depend on all others'."""
        return [self._keys[-1], self._values[-1]]

    def keys(self, layer: int) -> mx.array:
        """``[num_blocks, num_kv_heads, block_size, key_dim]``. Do not keep the reference."""
        return self._by_block(layer, self._keys[layer])

    def values(self, layer: int) -> mx.array:
        """``[num_blocks, num_kv_heads, block_size, value_dim]``. Do not keep the reference."""
        return self._by_block(layer, self._values[layer])

    def write(
        self, layer: int, keys: mx.array, values: mx.array, slots: TokenSlots
    ) -> mx.array | None:
        """Put new tokens into their slots.

        Args:
            keys: ``[tokens, num_kv_heads, 1, key_dim]``.
            values: The same with ``value_dim``.

        Returns:
            ``[1]``, uint32, 0: what reads these tokens in the same pass must take it as an input.
            ``None`` if the layer's arrays are new ones, which say that by themselves.
        """
        keys, values = keys.astype(self.dtype), values.astype(self.dtype)
        if self._write_in_place is not None:
            return self._write_in_place(
                keys,
                values,
                slots.slots,
                self._keys[layer],
                self._values[layer],
                block_size=self.block_size,
            )
        index = slots.vectors(keys.shape[1])
        self._keys[layer][index] = keys.reshape(-1, keys.shape[3])
        self._values[layer][index] = values.reshape(-1, values.shape[3])
        return None

    def gather(self, layer: int, blocks: mx.array) -> tuple[mx.array, mx.array]:
        """Copy blocks into one run of tokens.

        Args:
            blocks: ``[n]`` block ids in the order of their positions.

        Returns:
            Keys and values, each ``[1, num_kv_heads, n * block_size, dim]``.
        """
        return _as_run(self.keys(layer)[blocks]), _as_run(self.values(layer)[blocks])

    def _by_block(self, layer: int, vectors: mx.array) -> mx.array:
        heads = self.layout.layers[layer].num_kv_heads
        return vectors.reshape(-1, heads, self.block_size, vectors.shape[-1])


def _as_run(blocks: mx.array) -> mx.array:
    count, heads, size, dim = blocks.shape
    return blocks.swapaxes(0, 1).reshape(1, heads, count * size, dim)
