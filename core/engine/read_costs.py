"""Whether a prefix is there sooner if it is read from the disk, or if it is computed.

A GPU may compute keys and values faster than a slow disk has them, and a busy one the other way
round, so both are measured as they happen.
"""

from __future__ import annotations

from collections.abc import Callable

# Reading may take so many times as long: it leaves the device to others.
_PATIENCE = 1.5
# Share of all earlier reads that stays when another one is measured.
_OLDER = 0.75
# What each prefix that is not read takes off the time of the earlier ones, so that a disk that was
# busy once is tried again.
_FORGIVEN = 0.9
# Tokens of the chunk whose cost stands for all.
_CHUNK = 2048


class ReadCosts:
    """Bytes and seconds of reads so far; newer ones count more.

    Args:
        chunk_seconds: What the device takes for a chunk of so many tokens; ``None`` while unknown.
    """

    def __init__(self, chunk_seconds: Callable[[int], float | None]) -> None:
        self._chunk_seconds = chunk_seconds
        self._bytes = 0.0
        self._seconds = 0.0

    def observe(self, num_bytes: int, seconds: float) -> None:
        """Learn from a read."""
        self._bytes = _OLDER * self._bytes + num_bytes
        self._seconds = _OLDER * self._seconds + seconds

    def is_worth_it(self, num_bytes: int, num_tokens: int) -> bool:
        """Whether to read so many bytes instead of computing so many tokens; yes while unknown."""
        chunk_s = self._chunk_seconds(_CHUNK)
        if chunk_s is None or not self._seconds:
            return True
        # Without division: nothing at all may have been read in all that time.
        computing = chunk_s * num_tokens / _CHUNK * self._bytes
        if self._seconds * num_bytes <= _PATIENCE * computing:
            return True
        self._seconds *= _FORGIVEN
        return False
