"""How fast the paged decode kernel reads the KV store, beside a plain copy. By hand, on a GPU::

    python tests/perf/attention_bandwidth.py --quick

Calls are chained, each with the answer of the one before as its queries, and take turns with
several stores that do not fit into the cache together. Times are per call, the device's own launch
included; building the graph is not. A star marks the number of splits that the server would choose.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

from pippin.core.backend import device_kind, mx
from pippin.core.kernels import paged_attention
from pippin.core.kernels.kernel_shape import KernelShape
from pippin.core.kernels.paged_attention import (
    RowTable,
    choose_num_splits,
    paged_decode_attention,
)
from pippin.core.kernels.self_check import gathered_attention

_BLOCK_SIZE = 32
_STORES_BYTES = 400 << 20
_COPY_BYTES = 1 << 30
_CALLS = 50
_ROUNDS = 5
_BATCHES = {
    "16 x 300": [300] * 16,
    "64 x 300": [300] * 64,
    "16 x 4096": [4096] * 16,
    "1 x 32768 + 15 x 512": [32768] + [512] * 15,
    "1 x 4096": [4096],
    "16 x 16384": [16384] * 16,
}


def _seconds(build: Callable[[], mx.array]) -> float:
    """Median time of evaluating what ``build`` makes."""
    times = []
    for _ in range(_ROUNDS + 1):
        graph = build()
        begun_at = time.perf_counter()
        mx.eval(graph)
        times.append(time.perf_counter() - begun_at)
    return statistics.median(times[1:])


def _copy_bandwidth() -> float:
    """Bytes read and written per second."""
    source = mx.zeros(_COPY_BYTES // 4, dtype=mx.float32)
    mx.eval(source)
    return 2 * _COPY_BYTES / _seconds(lambda: source + 1)


def _measure(shape: KernelShape, name: str, args: argparse.Namespace, copy: float) -> None:
    lengths = _BATCHES[name]
    counts = [-(-length // _BLOCK_SIZE) for length in lengths]
    num_blocks, width = sum(counts), max(counts)
    order: list[int] = mx.random.permutation(num_blocks).tolist()  # type: ignore[assignment]
    table = []
    for count in counts:
        table.append([order.pop() for _ in range(count)] + [0] * (width - count))
    rows = RowTable(
        blocks=mx.array(table, dtype=mx.uint32),
        firsts=mx.zeros(len(lengths), dtype=mx.int32),
        lengths=mx.array(lengths, dtype=mx.int32),
    )
    store_shape = (num_blocks, shape.num_kv_heads, _BLOCK_SIZE, shape.key_dim)
    num_bytes = 2 * sum(lengths) * shape.num_kv_heads * shape.key_dim * shape.dtype.size
    stores = [
        tuple(mx.random.normal(store_shape, dtype=shape.dtype) for _ in range(2))
        for _ in range(max(2, -(-_STORES_BYTES // num_bytes)))
    ]
    queries = mx.random.normal((len(lengths), shape.num_heads, 1, shape.key_dim), shape.dtype)
    mx.eval(queries, rows, stores)

    def report(what: str, calls: int, attend: Callable[..., mx.array]) -> None:
        def chain() -> mx.array:
            out = queries
            for call in range(calls):
                out = attend(out, *stores[call % len(stores)])
            return out

        per_call = _seconds(chain) / calls
        speed = num_bytes / per_call
        heads = f"{shape.num_heads}/{shape.num_kv_heads}"
        print(
            f"{name:22}{heads:>6} {what:12}{per_call * 1e6:9.1f} us"
            f"{speed / 1e12:8.2f} TB/s{100 * speed / copy:6.0f} %",
            flush=True,
        )

    chosen = choose_num_splits(
        len(lengths), shape.num_kv_heads, width * _BLOCK_SIZE, args.processors
    )
    candidates = {chosen} if args.quick else {1, 2, 4, 8, 16, chosen}
    for num_splits in sorted(candidates):
        star = "*" if num_splits == chosen else " "
        report(
            f"splits {num_splits}{star}",
            _CALLS,
            lambda q, k, v, n=num_splits: paged_decode_attention(
                shape, q, k, v, rows, scale=0.1, num_splits=n
            ),
        )
    if args.fallback and width * len(lengths) <= 4096:
        report(
            "plain MLX",
            5,
            lambda q, k, v: gathered_attention(shape, q, k, v, rows, scale=0.1, sinks=None),
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="only the chosen number of splits")
    parser.add_argument("--fallback", action="store_true", help="plain MLX for comparison")
    parser.add_argument("--warps", type=int, help="most warps of a thread block")
    parser.add_argument("--processors", type=int, default=132, help="SMs or cores of the device")
    args = parser.parse_args()
    if args.warps:
        paged_attention.MAX_WARPS[device_kind()] = args.warps
    copy = _copy_bandwidth()
    print(f"copy: {copy / 1e12:.2f} TB/s")
    for num_heads in (32, 16):
        shape = KernelShape(
            num_heads=num_heads,
            num_kv_heads=8,
            key_dim=128,
            value_dim=128,
            block_size=_BLOCK_SIZE,
            dtype=mx.bfloat16,
        )
        for name in _BATCHES:
            _measure(shape, name, args, copy)


if __name__ == "__main__":
    main()
