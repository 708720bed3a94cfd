"""How keys or values lie in the store: as they are, or in the affine layout of `mx.quantize`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..backend import mx
from .kv_layout import LayerSpec


@dataclass(frozen=True, slots=True)
class QuantizedBlocks:
    """Stands for the array of all blocks; what is taken out of it is dequantised.

    Attributes:
        parts: Packed numbers, scales and biases, ``[num_blocks, num_kv_heads, block_size, ...]``.
    """

    parts: tuple[mx.array, mx.array, mx.array]
    bits: int
    group_size: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``[num_blocks, num_kv_heads, block_size, dim]``."""
        blocks, heads, size, words = self.parts[0].shape
        return blocks, heads, size, words * 32 // self.bits

    @property
    def dtype(self) -> mx.Dtype:
        """Of the numbers that it stands for."""
        return self.parts[1].dtype

    def __getitem__(self, index: Any) -> mx.array:
        """As of an array, along the first axis."""
        packed, scales, biases = (part[index] for part in self.parts)
        return mx.dequantize(packed, scales, biases, group_size=self.group_size, bits=self.bits)


# All blocks of a layer's keys or values.
Blocks: TypeAlias = mx.array | QuantizedBlocks


@dataclass(frozen=True, slots=True)
class VectorFormat:
    """The format of one layer's keys or values.

    Attributes:
        dtype: Of the numbers, or, if they are quantised, of scales and biases.
        bits: Of a number; 0 if it is not quantised.
        group_size: Numbers that share a scale and a bias.
    """

    dim: int
    dtype: mx.Dtype
    bits: int = 0
    group_size: int = 0

    def empty(self, count: int) -> list[mx.array]:
        """Arrays for so many vectors, ``[count, ...]`` each."""
        if not self.bits:
            return [mx.zeros((count, self.dim), self.dtype)]
        packed = mx.zeros((count, self.dim * self.bits // 32), mx.uint32)
        groups = (count, self.dim // self.group_size)
        return [packed, mx.zeros(groups, self.dtype), mx.zeros(groups, self.dtype)]

    def pack(self, vectors: mx.array) -> list[mx.array]:
        """What is stored of ``[..., dim]``, ``[..., n]`` each."""
        vectors = vectors.astype(self.dtype)
        if not self.bits:
            return [vectors]
        return list(mx.quantize(vectors, group_size=self.group_size, bits=self.bits))

    def blocks(self, parts: Sequence[mx.array], num_kv_heads: int, block_size: int) -> Blocks:
        """See the arrays of `empty` as blocks."""
        shaped = [part.reshape(-1, num_kv_heads, block_size, part.shape[-1]) for part in parts]
        if not self.bits:
            return shaped[0]
        packed, scales, biases = shaped
        return QuantizedBlocks((packed, scales, biases), self.bits, self.group_size)

    def rounded(self, vectors: mx.array) -> mx.array:
        """``[..., dim]`` as the store gives them back, in their own dtype."""
        if not self.bits:
            return vectors
        packed, scales, biases = self.pack(vectors)
        out = mx.dequantize(packed, scales, biases, group_size=self.group_size, bits=self.bits)
        return out.astype(vectors.dtype)


def layer_formats(layer: LayerSpec, dtype: mx.Dtype) -> tuple[VectorFormat, VectorFormat]:
    """Of a paged layer's keys and of its values."""
    return (
        VectorFormat(layer.key_dim, dtype, layer.key_bits, layer.group_size),
        VectorFormat(layer.value_dim, dtype, layer.value_bits, layer.group_size),
    )
