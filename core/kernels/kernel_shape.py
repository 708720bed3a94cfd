"""What a paged decode kernel is compiled for, and how its work is cut up. Plain arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from ..backend import mx

_ITEM_BYTES = {mx.float16: 2, mx.bfloat16: 2, mx.float32: 4}
_MAX_DIM = 768
_MAX_TILES = 4  # warps of one thread block that read the same tokens
_MAX_TILE_HEADS = 4
# Per lane: numbers of a query and of an output, all heads of a tile together. With a limit of 32,
# two thread blocks of 8 warps (one of 16) fit into the registers of an NVIDIA SM.
_MAX_LANE_NUMBERS = 32
_LOADS = 4  # 16-byte loads of keys in flight per lane; twice that where registers are left


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelShape:
    """The constants of a layer's attention.

    Attributes:
        dtype: Of the queries, the output and, if it is not quantised, the store.
        window: Tokens that a row attends to, its own included; ``None`` for all.
        has_sinks: Whether each head has the logit of a token that has no value.
        key_bits: 4 or 8 for keys in the affine layout of ``mx.quantize``, 0 for plain ones.
        group_size: Numbers that share a scale, if quantised.
    """

    num_heads: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    block_size: int
    dtype: mx.Dtype
    window: int | None = None
    has_sinks: bool = False
    key_bits: int = 0
    value_bits: int = 0
    group_size: int = 64

    @property
    def group(self) -> int:
        """Query heads of one KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def dims(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Dim and bits of keys, then of values."""
        return (self.key_dim, self.key_bits), (self.value_dim, self.value_bits)

    @property
    def is_valid(self) -> bool:
        """Whether the kernel is written for such a shape, on whatever device."""
        if self.dtype not in _ITEM_BYTES or self.num_heads % self.num_kv_heads:
            return False
        if self.block_size < 1 or self.block_size & (self.block_size - 1):
            return False
        for dim, bits in self.dims:
            if dim > _MAX_DIM or dim % _chunk_size(self.dtype, bits) or bits not in (0, 4, 8):
                return False
            if bits and (self.group_size % 8 or dim % self.group_size):
                return False
        return self.block_size >= self._least_tokens

    @property
    def _least_tokens(self) -> int:
        """Tokens that a warp reads with one load per lane."""
        return 32 // min(_lanes(dim, _chunk_size(self.dtype, bits))[0] for dim, bits in self.dims)


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a thread block shares out the work.

    Attributes:
        warps: Of a thread block.
        heads: Query heads that one warp serves, a *tile*.
        tiles: Tiles of one thread block.
        grid_tiles: Thread blocks that share a KV head.
        tokens: Tokens that a warp reads at a time.
    """

    warps: int
    heads: int
    tiles: int
    grid_tiles: int
    tokens: int

    @property
    def threads(self) -> int:
        """Of a thread block."""
        return self.warps * 32


def make_tiling(shape: KernelShape, max_warps: int) -> Tiling:
    """Cut the work of a valid shape up for thread blocks of at most ``max_warps`` warps."""
    key_lanes, key_steps = _lanes(shape.key_dim, _chunk_size(shape.dtype, shape.key_bits))
    lane_numbers = max(
        chunk * _lanes(dim, chunk)[1]
        for dim, bits in shape.dims
        for chunk in [_chunk_size(shape.dtype, bits)]
    )
    most_heads = max(1, min(_MAX_TILE_HEADS, key_lanes, _MAX_LANE_NUMBERS // lane_numbers))
    num_tiles = _ceil(shape.group, most_heads)
    heads = _ceil(shape.group, num_tiles)
    grid_tiles = _ceil(num_tiles, min(_MAX_TILES, max_warps))
    tiles = _ceil(num_tiles, grid_tiles)
    loads = _LOADS if 2 * heads * lane_numbers > _MAX_LANE_NUMBERS else 2 * _LOADS
    tokens = _power_of_two_below(max(1, loads // key_steps)) * 32 // key_lanes
    tokens = min(max(tokens, shape._least_tokens), shape.block_size)
    # The warps' outputs meet in 32 KiB of shared memory at most.
    warps = min(max_warps, 8192 // shape.value_dim)
    return Tiling(max(1, warps // tiles) * tiles, heads, tiles, grid_tiles, tokens)


def constants(shape: KernelShape, tiling: Tiling) -> dict[str, int | bool]:
    """The compile-time constants of the decode kernel, by the names its source knows."""
    return {
        "KEY_DIM": shape.key_dim,
        "VALUE_DIM": shape.value_dim,
        "KEY_BITS": shape.key_bits,
        "VALUE_BITS": shape.value_bits,
        "GROUP_SIZE": shape.group_size,
        "WARPS": tiling.warps,
        "HEADS": tiling.heads,
        "TILES": tiling.tiles,
        "TOKENS": tiling.tokens,
        "BLOCK_SIZE": shape.block_size,
        "NUM_KV_HEADS": shape.num_kv_heads,
        "GROUP": shape.group,
        "WINDOW": shape.window or 0,
        "HAS_SINKS": shape.has_sinks,
    }


def _ceil(count: int, size: int) -> int:
    return -(-count // size)


def _power_of_two_below(count: int) -> int:
    return int(1 << (count.bit_length() - 1))


def _chunk_size(dtype: mx.Dtype, bits: int) -> int:
    """Numbers that a lane reads with one load."""
    return 8 if bits else 16 // _ITEM_BYTES[dtype]


def _lanes(dim: int, chunk_size: int) -> tuple[int, int]:
    """Lanes that share a vector, and chunks that each of them has."""
    chunks = _ceil(dim, chunk_size)
    lanes = min(32, 1 << (chunks - 1).bit_length())
    return lanes, _ceil(chunks, lanes)
