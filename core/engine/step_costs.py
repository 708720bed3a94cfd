"""What steps have taken, and how long a chunk may be beside running answers.

A chunk delays everybody who decodes beside it. How long it takes differs a thousandfold between
machines and models, so it is learned from the steps that run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

# Share of the newest measurement in a running mean.
_NEWEST = 0.25
# A step that took so many times the mean was held up by something else, once: a compilation, a
# garbage collection, a sleeping machine.
_OUTLIER = 8.0
# Chunks that are considered. With fewer tokens, a step is hardly shorter.
_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_UNKNOWN = 256  # the first chunk
_LEAST_SHARE = 0.02  # of a step, that its chunk is held to have taken
_DELAY = 0.9  # of a step without a chunk, that a chunk may add
# Where even the smallest chunk takes longer, what it takes may grow so much for more tokens. On an
# H200 a chunk of 32 tokens added 24 ms, one of 512 some 75: with 32 a 16k prompt beside 15 answers
# took 13.7 s, with 512 it took 2.7 s, and each step of the others 36 and 100 ms.
_BARELY_LONGER = 1.5
# The same for each further sequence that waits. 16 clients of the demo model on 2 CPU cores, always
# busy: 60, 68 and 68 tokens/s with 1, 2 and 4, and 0.98, 0.94 and 1.8 s at the 99th percentile
# between tokens; 55 tokens/s and 0.6 s with none.
_DELAY_FOR_MORE = 2.0


class StepCosts:
    """Running means: steps of rows alone by rows, and what a chunk adds by its tokens."""

    def __init__(self) -> None:
        self._rows: dict[int, float] = {}
        self._chunks: dict[int, float] = {}

    def __str__(self) -> str:
        rows, chunks = (
            ", ".join(f"{size}: {1e3 * seconds:.1f}" for size, seconds in sorted(means.items()))
            for means in (self._rows, self._chunks)
        )
        return f"rows {{{rows}}} ms, chunks {{{chunks}}} ms"

    def observe(self, num_rows: int, num_chunk_tokens: int, seconds: float) -> None:
        """Learn from a step that the device went on to without a pause."""
        if num_chunk_tokens == 0:
            _learn(self._rows, _bucket(num_rows), seconds)
            return
        beside = self.rows_seconds(num_rows) or 0.0
        # Chunks may ride along for free, but a longer one will not.
        extra = max(seconds - beside, _LEAST_SHARE * seconds)
        bucket = _bucket(num_chunk_tokens)
        _learn(self._chunks, bucket, extra * bucket / num_chunk_tokens)

    def rows_seconds(self, num_rows: int) -> float | None:
        """What a step of rows alone takes; 0 for none, ``None`` if nothing is known."""
        if num_rows == 0:
            return 0.0
        return _nearest(self._rows, _bucket(num_rows), lambda seconds, _: seconds)

    def chunk_seconds(self, num_tokens: int) -> float | None:
        """What a chunk adds to a step; ``None`` if nothing is known."""
        bucket = _bucket(num_tokens)
        return _nearest(self._chunks, bucket, lambda seconds, ratio: seconds * ratio)

    def chunk_limit(self, num_decoding: int, num_hungry: int) -> int:
        """Most prompt tokens of the next step.

        For one sequence that waits for its first token, the others' step may take not quite twice
        as long as without a chunk; for each further one, two such steps longer. Many that wait
        want to become rows soon: a step of many rows takes hardly longer than one of few. A chunk
        that takes hardly longer than the smallest one may run in any case.
        """
        rows = self.rows_seconds(num_decoding)
        least = self.chunk_seconds(_SIZES[0])
        if rows is None or least is None:
            return _UNKNOWN
        delay = rows * (_DELAY + _DELAY_FOR_MORE * (num_hungry - 1))
        allowed = max(delay, _BARELY_LONGER * least)
        return max(size for size in _SIZES if (self.chunk_seconds(size) or 0.0) <= allowed)


def _bucket(count: int) -> int:
    return 1 << max(0, count - 1).bit_length()


def _learn(means: dict[int, float], bucket: int, seconds: float) -> None:
    mean = means.get(bucket)
    if mean is None:
        means[bucket] = seconds
    elif seconds < mean * _OUTLIER:
        means[bucket] = mean + _NEWEST * (seconds - mean)
    else:
        means[bucket] = mean * 1.1  # if it stays so slow, the mean gets there


def _nearest(
    means: dict[int, float], bucket: int, scale: Callable[[float, float], float]
) -> float | None:
    """The mean of a bucket or, scaled by the ratio of sizes, that of the nearest known one."""
    if bucket in means:
        return means[bucket]
    known: Iterable[int] = means
    nearest = min(known, key=lambda size: abs(size.bit_length() - bucket.bit_length()), default=0)
    return scale(means[nearest], bucket / nearest) if nearest else None
