"""What a step's sampling costs, by way of drawing, on the device that mlx has.

Run by hand: ``python tests/perf/sampler_cost.py``; about a minute on two CPU cores. ``host`` is the
time that `Sampler.sample` takes to build its graph, the best of some steps; ``device`` is the time
of one evaluation, several steps at once where they are short. Below the line are the operations
that the sampler does without, or is made of, for comparison.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pippin.core.backend import device_kind, mx
from pippin.core.runner.logits_processors import RowState
from pippin.core.runner.noise import add_gumbel, row_keys
from pippin.core.runner.sampler import Sampler
from pippin.core.runner.top_k import top_k
from pippin.core.sampling_params import SamplingParams

_SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "greedy": ({"temperature": 0.0},),
    "temperature": ({},),
    "min_p 0.05": ({"min_p": 0.05},),
    "top_k 20": ({"top_k": 20},),
    "top_k 20, top_p 0.8": ({"top_k": 20, "top_p": 0.8},),
    "top_k 1000": ({"top_k": 1000},),
    "top_p 0.9": ({"top_p": 0.9},),
    "top_p 0.4 (sorts)": ({"top_p": 0.4},),
    "logprobs 20": ({"temperature": 0.0, "num_logprobs": 20},),
    "mixed": ({"temperature": 0.0}, {}, {"top_k": 20, "top_p": 0.8}, {"top_p": 0.9}),
}


def main() -> None:
    """Print one table for each vocabulary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--vocab", type=int, nargs="+", default=[49_152, 151_936])
    parser.add_argument("--seconds", type=float, default=0.2, help="For each figure.")
    options = parser.parse_args()
    for vocab in options.vocab:
        print(f"\n{device_kind()}, vocabulary {vocab}, microseconds a step: device (host)")
        print(f"{'':24}" + "".join(f"{rows:>9} rows     " for rows in options.rows))
        for name, settings in _SETTINGS.items():
            cells = [_sampler_cell(n, vocab, settings, options.seconds) for n in options.rows]
            print(f"{name:24}" + "".join(cells), flush=True)
        print("-" * 24)
        for name, operation in _operations().items():
            cells = [_operation_cell(n, vocab, operation, options.seconds) for n in options.rows]
            print(f"{name:24}" + "".join(cells), flush=True)


def _sampler_cell(
    num_rows: int, vocab: int, settings: tuple[dict[str, Any], ...], seconds: float
) -> str:
    sampler, logits = Sampler(()), _logits(num_rows, vocab)
    params = [SamplingParams(**settings[i % len(settings)]) for i in range(num_rows)]
    host = []

    def step(position: int) -> list[mx.array]:
        rows = [
            RowState(
                key=("row", i),
                params=params[i],
                seed=i,
                position=position,
                num_prompt_tokens=1,
                num_output_tokens=position,
                token_ids=(),
            )
            for i in range(num_rows)
        ]
        start = time.perf_counter()
        sampled, _ = sampler.sample(logits, rows)
        host.append(time.perf_counter() - start)
        return sampled.arrays()

    device = _time(step, seconds)
    return f"{device * 1e6:9.0f} ({min(host) * 1e6:4.0f})   "


def _operations() -> dict[str, Callable[[mx.array, int], mx.array]]:
    def noise(logits: mx.array, position: int) -> mx.array:
        keys = row_keys(range(len(logits)), [position] * len(logits))
        return add_gumbel(logits, keys, mx.arange(logits.shape[-1], dtype=mx.uint32))

    return {
        "argmax": lambda x, _: mx.argmax(x, axis=-1),
        "addressed noise": noise,
        "mlx's noise": lambda x, _: x + mx.random.gumbel(x.shape),
        "mlx's categorical": lambda x, _: mx.random.categorical(x),
        "top_k 64": lambda x, _: top_k(x, 64)[1],
        "top_k 1024": lambda x, _: top_k(x, 1024)[1],
        "mlx's argpartition 64": lambda x, _: mx.argpartition(-x, 63, axis=-1)[:, :64],
        "mlx's sort": lambda x, _: mx.sort(x, axis=-1),
    }


def _operation_cell(
    num_rows: int, vocab: int, operation: Callable[[mx.array, int], mx.array], seconds: float
) -> str:
    logits = _logits(num_rows, vocab)
    # A sum of one's own each time: equal graphs must not be worked out once.
    device = _time(lambda position: [operation(logits + position, position)], seconds)
    return f"{device * 1e6:9.0f}          "


def _logits(num_rows: int, vocab: int) -> mx.array:
    logits = mx.array(np.random.default_rng(0).normal(0, 3, (num_rows, vocab)).astype(np.float32))
    mx.eval(logits)
    return logits


def _time(step: Callable[[int], list[mx.array]], seconds: float) -> float:
    """Seconds of device time for one step, after a first that may compile kernels."""
    mx.eval(step(0))
    start = time.perf_counter()
    mx.eval(step(1))
    # Short steps are evaluated together, so that waiting for the device is not what is timed.
    joined = max(1, min(16, int(0.01 / (time.perf_counter() - start))))
    best, position, end = float("inf"), 2, time.perf_counter() + seconds
    while True:
        steps = [step(position + i) for i in range(joined)]
        position += joined
        start = time.perf_counter()
        mx.eval(*steps)
        now = time.perf_counter()
        best = min(best, (now - start) / joined)
        if now > end:
            return best


if __name__ == "__main__":
    main()
