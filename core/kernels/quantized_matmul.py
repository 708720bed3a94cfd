"""Rows times a quantised weight as our own CUDA kernel, for the few rows of a decode step.

On CUDA, MLX's `quantized_matmul` reads weights at a sixteenth of the memory's speed for 8 or 16
rows. This kernel takes the same arrays and multiplies on tensor cores: weights become 16-bit
numbers in registers, as `mx.dequantize` makes them; sums are in float32. The source is
`quantized_matmul.inc`.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..backend import device_kind, mx
from .kernel_source import read
from .launch import are_kernels_off

_KIB = 1024
_NUM_PROCESSORS = 132  # of a Hopper card; nothing tells how many this one has
_MAX_STAGES = 6
_ROW_TILES = (1, 2, 4, 8)
_THREADS = 256
_DTYPES = (mx.bfloat16, mx.float16)


@dataclass(frozen=True, slots=True)
class Tile:
    """What a thread block multiplies, and how its eight warps share that.

    Attributes:
        row_tiles: Rows, in eights.
        output_tiles: Outputs of a warp, in sixteens.
        width: Warps that are side by side along the outputs.
        depth: Warps that share the sum over K.
        stages: Steps that the rings in shared memory hold.
        blocks: Thread blocks that a multiprocessor runs at once.
        shared: Shared memory of a thread block, in bytes.
    """

    row_tiles: int
    output_tiles: int
    width: int
    depth: int
    stages: int
    blocks: int
    shared: int

    @property
    def rows(self) -> int:
        """Rows of a thread block."""
        return 8 * self.row_tiles

    @property
    def outputs(self) -> int:
        """Outputs of a thread block."""
        return 16 * self.output_tiles * self.width


def _shared_limit(device_info: dict[str, Any]) -> int:
    """Shared memory of a multiprocessor, in bytes; 0 where the kernel cannot run.

    Source: CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability".
    """
    major = int(device_info.get("compute_capability_major", 0))
    minor = int(device_info.get("compute_capability_minor", 0))
    if major < 8:
        return 0
    small = major == 12 or (major == 8 and minor in (6, 9))
    return (100 if small else 164 if major == 8 else 228) * _KIB


def choose_tile(
    rows: int,
    outputs: int,
    columns: int,
    *,
    bits: int,
    group_size: int,
    shared_limit: int,
    output_tiles: Sequence[int] = (1, 2, 3, 4),
) -> Tile | None:
    """The tile that brings the fewest bytes through the busiest multiprocessor.

    Args:
        shared_limit: Shared memory of a multiprocessor, in bytes.
        output_tiles: What `Tile.output_tiles` may be.

    Returns:
        ``None`` if no tile fits into shared memory.
    """
    most = next((tiles for tiles in _ROW_TILES if rows <= 8 * tiles), _ROW_TILES[-1])

    def cost(tile: Tile) -> tuple[int, int]:
        blocks = -(-rows // tile.rows) * -(-outputs // tile.outputs)
        # A step of 16 outputs takes 1152 bytes with its scales, one of 8 rows 2048.
        bytes_per_step = tile.outputs * 72 + tile.row_tiles * 2048
        return -(-blocks // _NUM_PROCESSORS) * bytes_per_step, -tile.outputs

    for row_tiles in reversed([tiles for tiles in _ROW_TILES if tiles <= most]):
        fitted = (
            _fit(row_tiles, count, columns, bits, group_size, shared_limit)
            for count in output_tiles
        )
        tiles = [tile for tile in fitted if tile]
        if tiles:
            return min(tiles, key=cost)
    return None


def _fit(
    row_tiles: int,
    output_tiles: int,
    columns: int,
    bits: int,
    group_size: int,
    shared_limit: int,
) -> Tile | None:
    width, depth = (1, 8) if row_tiles <= 2 else (2, 4)
    step = 512 // bits
    turns = -(-columns // (step * depth))
    outputs = 16 * output_tiles * width
    scales = 2 * outputs * (2 * columns // group_size + 16)
    stage = width * depth * output_tiles * 1024 + depth * 8 * row_tiles * step * 2
    sums = depth * 8 * row_tiles * (outputs + 4) * 4
    for blocks in (2, 1):
        # The driver keeps a KiB for itself.
        room = shared_limit // blocks - _KIB
        stages = min((room - scales) // stage, turns + 1, _MAX_STAGES)
        shared = max(scales + stages * stage, sums)
        if stages >= 2 and shared <= room:
            return Tile(row_tiles, output_tiles, width, depth, stages, blocks, shared)
    return None


def supports(
    columns: int, outputs: int, bits: int, group_size: int, mode: str, dtype: mx.Dtype
) -> bool:
    """Whether there is a kernel on this device for a weight of ``[outputs, columns]``.

    Args:
        dtype: Of the rows, scales and biases.
    """
    return (
        device_kind() == "cuda"
        and not are_kernels_off()
        and mode == "affine"
        and bits in (4, 8)
        and group_size in (32, 64, 128)
        and dtype in _DTYPES
        and columns % 128 == 0
        and columns % (2 * group_size) == 0  # scales are copied in pairs at least
        and outputs % 16 == 0
        and _tile(1, outputs, columns, bits, group_size) is not None
        and _tile(64, outputs, columns, bits, group_size) is not None
    )


def quantized_matmul(
    x: mx.array,
    weight: mx.array,
    scales: mx.array,
    biases: mx.array,
    *,
    group_size: int,
    bits: int,
) -> mx.array:
    """Multiply rows with the transpose of a weight.

    Args:
        x: ``[rows, columns]``, bfloat16 or float16.
        weight: ``[outputs, columns * bits / 32]``, uint32, as `mx.quantize` packs it.
        scales: ``[outputs, columns / group_size]``, of the dtype of ``x``.
        biases: As ``scales``.

    Returns:
        ``[rows, outputs]``, of the dtype of ``x``.
    """
    rows, columns = x.shape
    outputs = weight.shape[0]
    tile = _tile(rows, outputs, columns, bits, group_size)
    assert tile is not None, "not a weight that `supports` accepted"
    constants = tile_constants(tile, bits, group_size)
    out: mx.array = _kernel(tile.blocks, tile.shared)(
        inputs=[x, weight, scales, biases],
        template=[("T", x.dtype), *constants.items()],
        grid=(-(-rows // tile.rows) * _THREADS, -(-outputs // tile.outputs), 1),
        threadgroup=(_THREADS, 1, 1),
        output_shapes=[(rows, outputs)],
        output_dtypes=[x.dtype],
    )[0]
    return out


@functools.cache
def _tile(rows: int, outputs: int, columns: int, bits: int, group_size: int) -> Tile | None:
    limit = _shared_limit(mx.device_info())
    return choose_tile(rows, outputs, columns, bits=bits, group_size=group_size, shared_limit=limit)


def tile_constants(tile: Tile, bits: int, group_size: int) -> dict[str, int]:
    """What the kernel is compiled for, beside the type."""
    return {
        "BITS": bits,
        "GROUP": group_size,
        "ROW_TILES": tile.row_tiles,
        "OUTPUT_TILES": tile.output_tiles,
        "WIDTH": tile.width,
        "DEPTH": tile.depth,
        "STAGES": tile.stages,
    }


# The body of the kernel; MLX makes the signature.
BODY = """
extern __shared__ __align__(16) char shared[];
Product<T, BITS, GROUP, ROW_TILES, OUTPUT_TILES, WIDTH, DEPTH, STAGES>{
    x, weight, scales, biases, out,
    x_shape[0], weight_shape[0], x_shape[1], shared}.run();
"""


def header(blocks: int) -> str:
    """What comes before the body.

    Args:
        blocks: Thread blocks that must fit on a multiprocessor, as far as registers go.
    """
    bounds = f"#define MAX_THREADS {_THREADS}\n#define MIN_BLOCKS {blocks}\n"
    return bounds + read("quantized_matmul_cuda") + read("quantized_matmul")


@functools.cache
def _kernel(blocks: int, shared: int) -> Any:
    source = header(blocks)
    # MLX keeps compiled kernels by name, even on disk, and sets their shared memory only once.
    digest = hashlib.sha256((source + BODY).encode()).hexdigest()[:12]
    return mx.fast.cuda_kernel(
        name=f"pippin_quantized_matmul_{digest}_{shared}",
        input_names=["x", "weight", "scales", "biases"],
        output_names=["out"],
        source=BODY,
        header=source,
        shared_memory=shared,
    )
