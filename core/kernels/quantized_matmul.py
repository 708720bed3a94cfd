"""Rows times a quantised weight as our own CUDA kernel, for the few rows of a decode step.

On CUDA, MLX's `quantized_matmul` reads weights at a sixteenth of the memory's speed for 8 or 16
rows. This kernel takes the same arrays and multiplies on tensor cores: weights become 16-bit
numbers in registers, as `mx.dequantize` makes them; sums are in float32. Where outputs are too few
to keep the card busy, thread blocks share the sum over K too, and the one that is done last adds
what they found. The source is `quantized_matmul.inc`.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..backend import device_kind, mx
from .kernel_source import read, refer
from .launch import are_kernels_off

_KIB = 1024
_NUM_PROCESSORS = 132  # of a Hopper card; nothing tells how many this one has
_MAX_STAGES = 4
_SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)
_DTYPES = (mx.bfloat16, mx.float16)
# By row tiles: output tiles, width and depth of blocks worth a try.
_BLOCKS = {
    1: ((1, 1, 8), (2, 1, 8), (2, 2, 4)),
    2: ((1, 1, 8), (2, 2, 4), (2, 4, 2)),
    4: ((2, 2, 4), (2, 4, 2), (2, 4, 1)),
    8: ((1, 4, 2), (2, 4, 1), (2, 4, 2), (3, 4, 2)),
}
_ENOUGH_WARPS = 8
# What adding the splits up costs beside its reads, in bytes that a multiprocessor could have read.
_SUM_COST = 75_000
_MAX_SUMS = 4096  # thread blocks that add splits up
# Products count with different counters, as many in a row as could ever run at once.
_NUM_COUNTERS = 64


@dataclass(frozen=True, slots=True)
class Tile:
    """What a thread block multiplies, and how its warps share that.

    Attributes:
        row_tiles: Rows, in eights.
        output_tiles: Outputs of a warp, in sixteens.
        width: Warps that are side by side along the outputs.
        depth: Warps that share the sum over K.
        splits: Thread blocks that share the sum over K.
        stages: Steps that the rings in shared memory hold.
        blocks: Thread blocks that a multiprocessor runs at once.
        shared: Shared memory of a thread block, in bytes.
    """

    row_tiles: int
    output_tiles: int
    width: int
    depth: int
    splits: int
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

    @property
    def threads(self) -> int:
        """Threads of a thread block."""
        return 32 * self.width * self.depth

    def grid(self, rows: int, outputs: int) -> tuple[int, int, int]:
        """Thread blocks of a product."""
        return -(-rows // self.rows), -(-outputs // self.outputs), self.splits


@dataclass(frozen=True, slots=True)
class Problem:
    """A product, as far as its tile depends on it."""

    rows: int
    outputs: int
    columns: int
    bits: int
    group_size: int

    @property
    def steps(self) -> int:
        """Steps of K: 64 bytes of a weight row each."""
        return self.columns * self.bits // 512


def shared_memory(device_info: dict[str, Any]) -> int:
    """Shared memory of a multiprocessor, in bytes; 0 where the kernel cannot run.

    Source: CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability".
    """
    major = int(device_info.get("compute_capability_major", 0))
    minor = int(device_info.get("compute_capability_minor", 0))
    if major < 8:
        return 0
    small = major == 12 or (major == 8 and minor in (6, 9))
    return (100 if small else 164 if major == 8 else 228) * _KIB


def choose_tile(problem: Problem, shared_limit: int) -> Tile | None:
    """The tile that should be fastest, ``None`` if none fits into shared memory."""
    return next(iter(rank_tiles(problem, shared_limit)), None)


def rank_tiles(problem: Problem, shared_limit: int) -> list[Tile]:
    """Tiles worth a try, what should be fastest first.

    Args:
        shared_limit: Shared memory of a multiprocessor, in bytes.
    """
    row_tiles = next((tiles for tiles in _BLOCKS if problem.rows <= 8 * tiles), max(_BLOCKS))
    shapes = [
        (row_tiles, *block, splits)
        for block in _BLOCKS[row_tiles]
        for splits in _SPLITS
        # Every slot has a step at least.
        if splits == 1 or problem.steps >= splits * block[-1]
    ]
    fitted = (fit_tile(problem, shape, shared_limit) for shape in shapes)
    tiles = [tile for tile in fitted if tile and _num_sums(problem, tile) <= _MAX_SUMS]
    return sorted(tiles, key=partial(estimate_cost, problem))


def _num_sums(problem: Problem, tile: Tile) -> int:
    x, y, z = tile.grid(problem.rows, problem.outputs)
    return x * y if z > 1 else 0


def estimate_cost(problem: Problem, tile: Tile) -> int:
    """Bytes through the busiest multiprocessor, as many times as its warps are too few.

    Depends on the number of tiles' rows only, lest each number of rows had a kernel to compile.
    """
    x, y, z = tile.grid(problem.rows, problem.outputs)
    blocks = -(-x * y * z // _NUM_PROCESSORS)
    # Up to eight rows are one most of the time.
    rows = tile.rows if tile.row_tiles > 1 else 1
    # Of 16 outputs a step takes 1152 bytes with its scales.
    step = tile.outputs * 72 + rows * 1024 // problem.bits
    total = blocks * -(-problem.steps // z) * step
    warps = min(blocks, tile.blocks) * tile.threads // 32
    total = total * max(_ENOUGH_WARPS, warps) // warps
    if z > 1:
        total += _SUM_COST + z * x * rows * problem.outputs * 8 // _NUM_PROCESSORS
    return total


def fit_tile(
    problem: Problem, shape: tuple[int, int, int, int, int], shared_limit: int
) -> Tile | None:
    """A tile with as many stages and blocks as shared memory takes.

    Args:
        shape: Row tiles, output tiles, width, depth and splits.
    """
    tile = Tile(*shape, stages=0, blocks=0, shared=0)
    step = 512 // problem.bits
    scales = 2 * tile.outputs * max(_scale_strides(problem, tile.splits))
    stage = tile.width * tile.depth * tile.output_tiles * 1024 + tile.depth * tile.rows * step * 2
    sums = tile.depth * tile.rows * (tile.outputs + 4) * 4
    # As many blocks as leave 128 registers to a thread, or 255 if it has many sums.
    most = (512 if tile.row_tiles * tile.output_tiles <= 16 else 256) // tile.threads
    for blocks in range(most, 0, -1):
        # The driver keeps a KiB for itself.
        room = shared_limit // blocks - _KIB
        stages = min((room - scales) // stage, _MAX_STAGES)
        if stages >= (3 if blocks > 1 else 2) and sums <= room:
            # All the room, so that fewer variants have to be compiled.
            return Tile(*shape, stages, blocks, room)
    return None


def _scale_strides(problem: Problem, splits: int) -> Iterator[int]:
    """Bytes between rows of scales in shared memory, for each split; see `copy_scales`."""
    groups = problem.columns // problem.group_size
    step = 512 // problem.bits
    for split in range(splits):
        begin, end = (problem.steps * i // splits * step for i in (split, split + 1))
        first = begin // problem.group_size // 8 * 8
        last = min(-(-end // (8 * problem.group_size)) * 8, groups)
        yield (-(-(last - first) // 8) | 1) * 16


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
        and all(
            choose(Problem(8 * tiles, outputs, columns, bits, group_size)) is not None
            for tiles in _BLOCKS
        )
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
        x: ``[..., columns]``, bfloat16 or float16.
        weight: ``[outputs, columns * bits / 32]``, uint32, as `mx.quantize` packs it.
        scales: ``[outputs, columns / group_size]``, of the dtype of ``x``.
        biases: As ``scales``.

    Returns:
        ``[..., outputs]``, of the dtype of ``x``.
    """
    columns = x.shape[-1]
    tile = choose(Problem(x.size // columns, weight.shape[0], columns, bits, group_size))
    assert tile is not None, "not a weight that `supports` accepted"
    return multiply(x, weight, scales, biases, group_size=group_size, bits=bits, tile=tile)


@functools.cache
def choose(problem: Problem) -> Tile | None:
    """What `quantized_matmul` takes on this device."""
    return choose_tile(problem, shared_memory(mx.device_info()))


def multiply(
    x: mx.array,
    weight: mx.array,
    scales: mx.array,
    biases: mx.array,
    *,
    group_size: int,
    bits: int,
    tile: Tile,
) -> mx.array:
    """As `quantized_matmul`, with a tile that fits."""
    *batch, columns = x.shape
    rows, outputs = x.size // columns, weight.shape[0]
    if batch[0] != rows:  # a reshape costs the host less than a kernel, but it does cost
        x = x.reshape(rows, columns)
    grid = tile.grid(rows, outputs)
    is_split = tile.splits > 1
    # The last one is the result.
    outs = [((tile.splits, rows, outputs), mx.float32)] * is_split + [((*batch, outputs), x.dtype)]
    out: mx.array = _kernel(tile.blocks, tile.threads, tile.shared, is_split)(
        inputs=[x, weight, scales, biases] + [next(_counters())] * is_split,
        template=[("T", x.dtype), *tile_constants(tile, bits, group_size).items()],
        grid=(grid[0] * tile.threads, *grid[1:]),
        threadgroup=(tile.threads, 1, 1),
        output_shapes=[shape for shape, _ in outs],
        output_dtypes=[dtype for _, dtype in outs],
    )[-1]
    return out


@functools.cache
def _counters() -> Iterator[mx.array]:
    """Arrays of zeros. A kernel that counts with one leaves it so."""
    arrays = [mx.zeros(_MAX_SUMS, mx.uint32) for _ in range(_NUM_COUNTERS)]
    mx.eval(arrays)
    return itertools.cycle(arrays)


def tile_constants(tile: Tile, bits: int, group_size: int) -> dict[str, int]:
    """What the kernel is compiled for, beside the types."""
    return {
        "BITS": bits,
        "GROUP": group_size,
        "ROW_TILES": tile.row_tiles,
        "OUTPUT_TILES": tile.output_tiles,
        "WIDTH": tile.width,
        "DEPTH": tile.depth,
        "STAGES": tile.stages,
    }


# The bodies of the kernels; MLX makes the signatures.
BODY = """
extern __shared__ __align__(16) char shared[];
Product<T, T, BITS, GROUP, ROW_TILES, OUTPUT_TILES, WIDTH, DEPTH, STAGES>{
    x, weight, scales, biases, out,
    x_shape[0], weight_shape[0], weight_shape[1] * 32 / BITS, shared}.run();
"""
SPLIT_BODY = """
extern __shared__ __align__(16) char shared[];
Product<T, float, BITS, GROUP, ROW_TILES, OUTPUT_TILES, WIDTH, DEPTH, STAGES> product{
    x, weight, scales, biases, partials,
    x_shape[0], weight_shape[0], weight_shape[1] * 32 / BITS, shared};
product.run();
product.sum_splits(const_cast<uint32_t*>(counters), out);
"""


def header(blocks: int, threads: int, get: Callable[[str], str] = read) -> str:
    """What comes before a body.

    Args:
        blocks: Thread blocks that must fit on a multiprocessor, as far as registers go.
        threads: Of a block.
        get: Gives the text of a source file.
    """
    bounds = f"#define MAX_THREADS {threads}\n#define MIN_BLOCKS {blocks}\n"
    return bounds + get("quantized_matmul_cuda") + get("quantized_matmul")


@functools.cache
def _kernel(blocks: int, threads: int, shared: int, is_split: bool) -> Any:
    body = SPLIT_BODY if is_split else BODY
    # MLX keeps compiled kernels by name, even on disk.
    source = header(blocks, threads)
    digest = hashlib.sha256((source + body).encode()).hexdigest()[:12]
    return mx.fast.cuda_kernel(
        # MLX sets the shared memory of a kernel only once.
        name=f"pippin_quantized_matmul_{digest}_{shared}",
        input_names=["x", "weight", "scales", "biases", *["counters"] * is_split],
        output_names=[*["partials"] * is_split, "out"],
        source=body,
        header=header(blocks, threads, refer),
        shared_memory=shared,
    )
