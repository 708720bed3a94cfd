"""What tests of the library share: settings of a small engine, and waiting until it is idle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from pippin.core.config import CacheConfig, EngineConfig, SchedulerConfig
from pippin.core.engine.stats import EngineStats
from pippin.core.llm import Sampling

TIMEOUT_S = 60
LONG: Sampling = {"max_tokens": 3000, "temperature": 0, "ignore_eos": True}


def small(*, max_queue: int = 1024) -> EngineConfig:
    """Sixteen sequences at a time."""
    return EngineConfig(
        cache=CacheConfig(block_size=16, max_bytes=4 << 20),
        scheduler=SchedulerConfig(max_num_seqs=16, max_queue=max_queue),
    )


def greedy(max_tokens: int) -> Sampling:
    """As many tokens as that."""
    return {"max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}


def is_idle(stats: EngineStats) -> bool:
    """Whether nothing runs or waits, and every block can be had."""
    return (
        stats.num_running == stats.num_waiting == 0
        and stats.num_free_blocks + stats.num_evictable_blocks == stats.num_blocks
    )


def wait_until(condition: Callable[[], bool]) -> None:
    """Look until it is so."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


async def until(condition: Callable[[], bool]) -> None:
    """The same, on an event loop."""
    await asyncio.to_thread(wait_until, condition)
