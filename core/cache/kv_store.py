"""The arrays behind the block ids: keys and values of every paged layer.

Per layer, keys are ``[num_blocks, num_kv_heads, block_size, key_dim]`` and values the same with
their own dim, quantised or not as the layout says. The store knows slots, not sequences. Writes are
lazy graph nodes that replace the layer's arrays; nobody else may keep a reference to these, or the
device has to copy instead of writing in place.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from ..backend import mx
from .kv_layout import KVLayout
from .vector_format import Blocks, layer_formats


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
        lead_blocks: So many blocks of each group are there at once; the others, and the trash
            block, when `fill_more` has made them or `hold` wants them: the first touch of a
            gigabyte takes the CPU one to two seconds. ``None`` for all.
    """

    def __init__(
        self,
        layout: KVLayout,
        num_blocks: Sequence[int],
        *,
        block_size: int,
        dtype: mx.Dtype,
        write_in_place: Callable[..., mx.array] | None = None,
        lead_blocks: int | None = None,
    ) -> None:
        self.layout = layout
        self.block_size = block_size
        self.dtype = dtype
        self._write_in_place = write_in_place
        self._num_blocks = tuple(num_blocks)
        # By paged layer: the arrays of its keys, then as many of its values.
        self._parts: list[list[mx.array]] = []
        # By layer; those that keep a state have neither group nor arrays.
        self.group_of_layer = {
            i: layout.group_of(i) for i, layer in enumerate(layout.layers) if layer.is_paged
        }
        self._place = {layer: place for place, layer in enumerate(self.group_of_layer)}
        self._formats = [layer_formats(layer, dtype) for layer in layout.layers if layer.is_paged]
        self._lead_blocks = lead_blocks
        # All blocks, while only the first ones are in use, and how many of these arrays are filled.
        self._whole: list[mx.array] | None = None
        self._num_filled = 0
        if lead_blocks is None:
            self.reset()
        else:
            self._parts, self._whole = self._empty(lead_blocks), _flat(self._empty())

    def reset(self) -> None:
        """Start again with empty arrays, whatever state a failed step left the old ones in."""
        self._whole = None
        self._parts = self._empty()
        mx.async_eval(*self.arrays())  # type: ignore[no-untyped-call]

    @property
    def is_partial(self) -> bool:
        """Whether `hold` must be told of each step."""
        return self._whole is not None

    def fill_more(self) -> None:
        """Fill one more array of a partial store, which takes some 30 ms."""
        if self._whole is None:
            return
        mx.eval(self._whole[self._num_filled])
        self._num_filled += 1
        if self._num_filled == len(self._whole):
            self._take_over()

    def hold(self, highest: int | None) -> None:
        """Be ready for a step that touches blocks up to this one.

        Args:
            highest: ``None`` if it touches the trash block, too.
        """
        lead = self._lead_blocks
        if lead is not None and (highest is None or highest >= lead):
            self._take_over()

    def _take_over(self) -> None:
        """Go on with all blocks, once."""
        if self._whole is None:
            return
        whole, self._whole = self._whole, None
        for part, array in zip(self.arrays(), whole, strict=True):
            array[: len(part)] = part
        self.put(whole)

    def _empty(self, most_blocks: int | None = None) -> list[list[mx.array]]:
        """By paged layer, arrays of all blocks, or of the first ones."""
        parts: list[list[mx.array]] = []
        for (index, group), formats in zip(self.group_of_layer.items(), self._formats, strict=True):
            blocks = self._num_blocks[group] + 1
            if most_blocks is not None:
                blocks = min(blocks, most_blocks)
            # Flat, because a write by one index is one quick operation; by three it is many.
            count = blocks * self.layout.layers[index].num_kv_heads * self.block_size
            parts.append([part for form in formats for part in form.empty(count)])
        return parts

    def scrub(self) -> None:
        """Put 0 in place of everything that is not a finite number.

        Attention gives slots that it masks the weight 0, but 0 times NaN is NaN: such a slot would
        spoil whoever holds its block next.
        """
        for parts in self._parts:
            for i, part in enumerate(parts):
                if mx.issubdtype(part.dtype, mx.floating):
                    parts[i] = mx.where(mx.isfinite(part), part, 0)
                    mx.eval(parts[i])  # one by one: never the whole store twice

    @property
    def nbytes(self) -> int:
        """Memory of all arrays, those to come included."""
        return sum(array.nbytes for array in _flat(self._empty()))

    def arrays(self) -> list[mx.array]:
        """All arrays."""
        return _flat(self._parts)

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
        other.put(arrays)
        return other

    def put(self, arrays: Sequence[mx.array]) -> None:
        """Own these arrays, in the order of `arrays`."""
        rest = iter(arrays)
        self._parts = [[next(rest) for _ in parts] for parts in self._parts]

    def last_layer(self) -> list[mx.array]:
        """The last paged layer's keys and values, which depend on all others'."""
        return list(self._parts[-1]) if self._parts else []

    def layer_arrays(self, layer: int) -> list[mx.array]:
        """The arrays of a layer. Do not keep the references."""
        return list(self._parts[self._place[layer]])

    def keys(self, layer: int) -> Blocks:
        """``[num_blocks, num_kv_heads, block_size, key_dim]``. Do not keep the reference."""
        return self._blocks(layer, 0)

    def values(self, layer: int) -> Blocks:
        """``[num_blocks, num_kv_heads, block_size, value_dim]``. Do not keep the reference."""
        return self._blocks(layer, 1)

    def as_read(self, layer: int, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """``[..., dim]`` as they come back once they have been stored."""
        key_format, value_format = self._formats[self._place[layer]]
        return key_format.rounded(keys), value_format.rounded(values)

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
        key_format, value_format = self._formats[self._place[layer]]
        return self._put(layer, [*key_format.pack(keys), *value_format.pack(values)], slots)

    def gather(self, layer: int, blocks: mx.array) -> tuple[mx.array, mx.array]:
        """Copy blocks into one run of tokens.

        Args:
            blocks: ``[n]`` block ids in the order of their positions.

        Returns:
            Keys and values, each ``[1, num_kv_heads, n * block_size, dim]``.
        """
        return _as_run(self.keys(layer)[blocks]), _as_run(self.values(layer)[blocks])

    def block_arrays(self, layer: int, block_ids: mx.array) -> list[mx.array]:
        """All that blocks hold of a layer, ``[n, ...]`` each."""
        return [self._by_block(layer, part)[block_ids] for part in self._parts[self._place[layer]]]

    def put_block_arrays(self, layer: int, block_ids: mx.array, arrays: Sequence[mx.array]) -> None:
        """Fill whole blocks with what `block_arrays` gave."""
        self.hold(None)
        offsets = mx.arange(self.block_size, dtype=mx.int32)
        slots = (block_ids.astype(mx.int32)[:, None] * self.block_size + offsets).reshape(-1)
        # [n, heads, size, dim] by token: [n * size, heads, 1, dim]
        parts = [
            array.swapaxes(1, 2).reshape(-1, array.shape[1], 1, array.shape[3]) for array in arrays
        ]
        written = self._put(layer, parts, TokenSlots(slots, self.block_size))
        if written is not None:
            mx.eval(written)

    def _put(self, layer: int, parts: list[mx.array], slots: TokenSlots) -> mx.array | None:
        """Write ``[tokens, num_kv_heads, 1, ...]`` each; returns what `write` does."""
        stored = self._parts[self._place[layer]]
        if self._write_in_place is not None:
            half = len(parts) // 2
            pairs = zip(parts[:half], parts[half:], stored[:half], stored[half:], strict=True)
            written: mx.array | None = None
            for keys, values, key_store, value_store in pairs:
                index = slots.slots
                if written is not None:  # so that the last one stands for all
                    (index,) = mx.depends([index], [written])
                written = self._write_in_place(
                    keys, values, index, key_store, value_store, block_size=self.block_size
                )
            return written
        index = slots.vectors(parts[0].shape[1])
        for array, part in zip(stored, parts, strict=True):
            array[index] = part.reshape(-1, part.shape[3])
        return None

    def _blocks(self, layer: int, side: int) -> Blocks:
        place = self._place[layer]
        parts, form = self._parts[place], self._formats[place][side]
        half = len(parts) // 2
        heads = self.layout.layers[layer].num_kv_heads
        return form.blocks(parts[side * half : (side + 1) * half], heads, self.block_size)

    def _by_block(self, layer: int, vectors: mx.array) -> mx.array:
        heads = self.layout.layers[layer].num_kv_heads
        return vectors.reshape(-1, heads, self.block_size, vectors.shape[-1])


def _flat(parts: Sequence[Sequence[mx.array]]) -> list[mx.array]:
    return [array for arrays in parts for array in arrays]


def _as_run(blocks: mx.array) -> mx.array:
    count, heads, size, dim = blocks.shape
    return blocks.swapaxes(0, 1).reshape(1, heads, count * size, dim)
