"""Our quantised matmul kernel against what MLX has, on an NVIDIA GPU.

Run by hand: ``python tests/perf/quantized_matmul_speed.py``. Each product waits for the one before
it, through a small kernel whose time is taken off, and the weights are more than fit into the L2
cache. TB/s are bytes of weights, scales and biases.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import NamedTuple, TypeAlias

from pippin.core.backend import device_kind, mx
from pippin.core.kernels.quantized_matmul import (
    Problem,
    Tile,
    estimate_cost,
    multiply,
    quantized_matmul,
    rank_tiles,
    shared_memory,
    supports,
)

GROUP_SIZE = 64
DTYPE = mx.bfloat16
CACHE_BYTES = 200 << 20
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SHAPES = (
    (4096, 4096),
    (4096, 1024),
    (4096, 6144),
    (4096, 12288),
    (4096, 24576),
    (12288, 4096),
    (4096, 49152),
    (4096, 151936),
    (1024, 1024),
    (1024, 3072),
    (1024, 6144),
    (3072, 1024),
    (2048, 1024),
)
TILE_SHAPES = (
    (4096, 6144),
    (4096, 4096),
    (4096, 24576),
    (12288, 4096),
    (1024, 4096),
    (2048, 1024),
    (1024, 6144),
    (3072, 1024),
)
TILE_ROWS = (1, 16, 64, 128)
COMPILERS = 8
TOLERANCE = 1e-2  # of the greatest result; roundings of bfloat16 come to half of that
# Dims, heads' dims of queries and of keys, inner dims, layers and vocabulary.
MODELS = {
    "8B": (4096, 4096, 1024, 12288, 36, 49152),
    "0.6B": (1024, 2048, 1024, 3072, 28, 151936),
}


class Weight(NamedTuple):
    """A quantised weight."""

    packed: mx.array
    scales: mx.array
    biases: mx.array
    bits: int


Multiply: TypeAlias = Callable[[mx.array, Weight], mx.array]


def make_weight(columns: int, outputs: int, bits: int) -> Weight:
    """Random; the values keep the size of what is multiplied."""
    shape = (outputs, columns * bits // 32)
    packed = mx.random.randint(0, 2**31 - 1, shape, mx.int32).astype(mx.uint32)
    groups = (outputs, columns // GROUP_SIZE)
    # Weights within about 1.7 / sqrt(columns) of zero.
    span = 3.4 * columns**-0.5
    scales = mx.full(groups, span / 2**bits, DTYPE)
    weight = Weight(packed, scales, mx.full(groups, -span / 2, DTYPE), bits)
    mx.eval(weight.packed, weight.scales, weight.biases)
    return weight


def ours(x: mx.array, weight: Weight) -> mx.array:
    """The kernel under test."""
    return quantized_matmul(
        x, weight.packed, weight.scales, weight.biases, group_size=GROUP_SIZE, bits=weight.bits
    )


def stock(x: mx.array, weight: Weight) -> mx.array:
    """MLX's quantised kernel."""
    return mx.quantized_matmul(
        x, *weight[:3], transpose=True, group_size=GROUP_SIZE, bits=weight.bits
    )


def unpack(weight: Weight) -> mx.array:
    """The weight in 16 bits."""
    return mx.dequantize(*weight[:3], group_size=GROUP_SIZE, bits=weight.bits, dtype=DTYPE)


def dense(x: mx.array, weight: Weight) -> mx.array:
    """Unpacks, then multiplies."""
    return x @ unpack(weight).T


def check(bits: int) -> None:
    """Print errors against float32 sums, and whether rows depend on their number."""
    print(f"{bits} bits: greatest error, of the greatest result: ours, MLX's")
    for columns, outputs in ((4096, 4096), (12288, 1040), (1024, 3072), (896, 48)):
        weight = make_weight(columns, outputs, bits)
        dequantised = unpack(weight).astype(mx.float32)
        rows = mx.random.normal((256, columns)).astype(DTYPE)
        errors, same = [], []
        first = ours(rows[:1], weight)
        for count in (1, 7, 8, 9, 16, 17, 33, 64, 100, 256):
            x = rows[:count]
            exact = x.astype(mx.float32) @ dequantised.T
            greatest = mx.abs(exact).max()
            both = [mx.abs(way(x, weight) - exact).max() / greatest for way in (ours, stock)]
            errors.append(f"{count}: {both[0].item():.1e} {both[1].item():.1e}")
            same.append(count if mx.array_equal(ours(x, weight)[:1], first) else -count)
        again = all(mx.array_equal(ours(rows, weight), ours(rows, weight)) for _ in range(3))
        print(f"  {columns}->{outputs}", "; ".join(errors))
        print(f"    row 0 as alone (- if not) at {same}; repeatable {again}", flush=True)


def seconds(run: Callable[[], mx.array]) -> float:
    """Of the best of a few evaluations."""
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        mx.eval(run())
        best = min(best, time.perf_counter() - start)
    return best


def time_products(rows: int, weights: Sequence[Weight], columns: int, multiply: Multiply) -> float:
    """Seconds that one product takes in a chain of at least 24."""
    turns = max(1, 24 // len(weights))
    x = mx.random.normal((rows, columns)).astype(DTYPE)
    small = [mx.random.normal((rows, 8)).astype(DTYPE) for _ in weights]
    mx.eval(x, small)

    @mx.compile
    def chain(x: mx.array) -> mx.array:
        for _ in range(turns):
            for weight in weights:
                x = mx.minimum(x, multiply(x, weight)[:1, :1])
        return x

    @mx.compile
    def links(x: mx.array) -> mx.array:
        for _ in range(turns):
            for other in small:
                x = mx.minimum(x, other[:1, :1])
        return x

    return (seconds(partial(chain, x)) - seconds(partial(links, x))) / (turns * len(weights))


def compare_shapes(shapes: Sequence[tuple[int, int]], bits: int) -> None:
    """Print a table of one shape after another."""
    for columns, outputs in shapes:
        first = make_weight(columns, outputs, bits)
        size = sum(part.nbytes for part in first[:3])
        copies = max(2, -(-CACHE_BYTES // size))
        weights = [first, *(make_weight(columns, outputs, bits) for _ in range(copies - 1))]
        ways: dict[str, Multiply] = {"ours": ours, "MLX": stock}
        if outputs <= 49152:
            ways["dense"] = dense
        print(f"{columns}->{outputs} ({size / 2**20:.1f} MiB, {copies} copies), us")
        for rows in ROWS:
            line = []
            for name, way in ways.items():
                if name == "dense" and rows < 32:
                    continue
                taken = time_products(rows, weights, columns, way)
                line.append(f"{name} {taken * 1e6:6.1f} ({size / taken / 1e12:4.2f} TB/s)")
            if outputs <= 24576 and rows in (1, 16, 64, 256):
                dense_weights = [unpack(weight) for weight in weights[:8]]
                mx.eval(dense_weights)
                taken = time_dense(rows, dense_weights)
                line.append(f"bf16 {taken * 1e6:6.1f}")
            print(f"  {rows:4d} rows: " + "  ".join(line), flush=True)
        mx.clear_cache()


def time_dense(rows: int, weights: Sequence[mx.array]) -> float:
    """Seconds of a product with a weight that is not quantised."""
    as_weights = [Weight(weight, weight, weight, 16) for weight in weights]
    columns = weights[0].shape[1]
    return time_products(rows, as_weights, columns, lambda x, weight: x @ weight.packed.T)


def tiles_to_try(problem: Problem) -> list[Tile]:
    """Every kind of block with its two most promising splits; first what is chosen."""
    kinds = Counter[tuple[int, int, int]]()
    tiles = []
    for tile in rank_tiles(problem, shared_memory(mx.device_info())):
        kind = (tile.output_tiles, tile.width, tile.depth)
        kinds[kind] += 1
        if kinds[kind] <= 2:
            tiles.append(tile)
    return tiles


def with_tile(tile: Tile, x: mx.array, weight: Weight) -> mx.array:
    """Our kernel with a tile that is given."""
    return multiply(x, *weight[:3], group_size=GROUP_SIZE, bits=weight.bits, tile=tile)


def compile_tile(tile: Tile, bits: int) -> None:
    """Run a tile's kernel on the smallest weight. MLX keeps compiled kernels on disk."""
    weight = make_weight(128 * tile.depth * tile.splits, tile.outputs, bits)
    mx.eval(with_tile(tile, mx.zeros((1, weight.packed.shape[1] * 32 // bits), DTYPE), weight))


def compile_tiles(tiles: Sequence[Tile], bits: int) -> None:
    """Compile in several processes at once, since MLX compiles one kernel after another."""

    def variant(tile: Tile) -> tuple[object, ...]:
        shape = (tile.row_tiles, tile.output_tiles, tile.width, tile.depth)
        return *shape, tile.stages, tile.blocks, tile.splits > 1

    start = time.perf_counter()
    first, *rest = sorted({variant(tile): tile for tile in tiles}.values(), key=lambda t: -t.splits)
    compile_tile(first, bits)  # and what all of them share
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(COMPILERS, mp_context=spawn) as pool:
        list(pool.map(partial(compile_tile, bits=bits), rest))
    print(f"compiled {1 + len(rest)} variants in {time.perf_counter() - start:.0f} s", flush=True)


def compare_tiles(bits: int) -> None:
    """Print the time of every tile worth a try, and of what MLX has."""
    cases = {
        (shape, rows): Problem(rows, shape[1], shape[0], bits, GROUP_SIZE)
        for shape in TILE_SHAPES
        for rows in TILE_ROWS
    }
    compile_tiles([tile for problem in cases.values() for tile in tiles_to_try(problem)], bits)
    print("us; tiles are rows x outputs / output tiles, width, depth, splits, stages, blocks;")
    print("* chosen, < fastest, in brackets what the choice goes by, in kB")
    for columns, outputs in TILE_SHAPES:
        first = make_weight(columns, outputs, bits)
        copies = max(2, -(-CACHE_BYTES // sum(part.nbytes for part in first[:3])))
        weights = [
            first,
            *(make_weight(columns, outputs, bits) for _ in range(min(copies, 64) - 1)),
        ]
        dequantised = unpack(first).astype(mx.float32)
        for rows in TILE_ROWS:
            problem = cases[(columns, outputs), rows]
            x = mx.random.normal((rows, columns)).astype(DTYPE)
            exact = x.astype(mx.float32) @ dequantised.T
            taken = {}
            for tile in tiles_to_try(problem):
                error = mx.abs(with_tile(tile, x, first) - exact).max() / mx.abs(exact).max()
                if not float(error) <= TOLERANCE:
                    print(f"WRONG by {float(error):.1e}: {problem} {tile}", flush=True)
                taken[tile] = time_products(rows, weights, columns, partial(with_tile, tile))
            stock_time = time_products(rows, weights, columns, stock)
            print(f"{columns}->{outputs} {rows:3d} rows: MLX {stock_time * 1e6:.1f}; ", end="")
            print(describe_times(problem, taken), flush=True)
        mx.clear_cache()


def describe_times(problem: Problem, taken: dict[Tile, float]) -> str:
    """One piece for each tile; the first is the chosen one."""
    best = min(taken.values())
    pieces: list[str] = []
    for tile, spent in taken.items():
        numbers = (tile.output_tiles, tile.width, tile.depth, tile.splits, tile.stages, tile.blocks)
        mark = "*" * (not pieces) + "<" * (spent == best)
        name = f"{tile.rows}x{tile.outputs}/{','.join(map(str, numbers))}"
        cost = estimate_cost(problem, tile) // 1000
        pieces.append(f"{mark}{name} {spent * 1e6:.1f} ({cost})")
    return "  ".join(pieces)


def compare_models(names: Sequence[str], bits: int) -> None:
    """Print the time of all linear layers of a decode step, with what must lie between them."""
    for name in names:
        dims, query_dims, key_dims, inner, num_layers, vocab = MODELS[name]
        shapes = [
            (dims, query_dims),
            (dims, key_dims),
            (dims, key_dims),
            (query_dims, dims),
            (dims, inner),
            (dims, inner),
            (inner, dims),
        ]
        # Enough different layers to leave the cache.
        layers = [[make_weight(*shape, bits) for shape in shapes] for _ in range(6)]
        head = make_weight(dims, vocab, bits)
        print(f"{name} step, ms: linear layers and {3 * num_layers} small kernels")
        for rows in ROWS:
            x = mx.random.normal((rows, dims)).astype(DTYPE)
            line = []
            for way_name, way in (("ours", ours), ("MLX", stock)):
                step = make_step(layers, head, num_layers, way)
                line.append(f"{way_name} {seconds(partial(step, x)) * 1e3:6.2f}")
            print(f"  {rows:4d} rows: " + "  ".join(line), flush=True)


def make_step(
    layers: Sequence[Sequence[Weight]], head: Weight, num_layers: int, multiply: Multiply
) -> Callable[[mx.array], mx.array]:
    """A model without norms and attention."""

    def step(x: mx.array) -> mx.array:
        for index in range(num_layers):
            query, key, value, output, gate, up, down = layers[index % len(layers)]
            few = multiply(x, key) + multiply(x, value)
            x = x + multiply(mx.minimum(multiply(x, query), few[:1, :1]), output)
            gated = multiply(x, gate)
            x = x + multiply(mx.sigmoid(gated) * gated * multiply(x, up), down)
            x = mx.clip(x, -4, 4)
        return multiply(x, head)

    return mx.compile(step)


def main() -> None:
    """Check, then time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--part", choices=("check", "models", "shapes", "tiles"), action="append")
    parser.add_argument("--shape", action="append", help="such as 4096x12288; default: all")
    options = parser.parse_args()
    if device_kind() != "cuda":
        raise SystemExit("needs an NVIDIA GPU")
    assert supports(4096, 4096, options.bits, GROUP_SIZE, "affine", DTYPE)
    parts = options.part or ("check", "models", "shapes")
    if "check" in parts:
        check(options.bits)
    if "models" in parts:
        compare_models(list(MODELS), options.bits)
    if "tiles" in parts:
        compare_tiles(options.bits)
    if "shapes" in parts:
        given = [tuple(map(int, shape.split("x"))) for shape in options.shape or ()]
        compare_shapes([(k, n) for k, n in given] or SHAPES, options.bits)


if __name__ == "__main__":
    main()
