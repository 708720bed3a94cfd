"""A `FakeEngine` with a number, and each another, in every place that the metrics have one."""

from __future__ import annotations

from fake_engine import FakeEngine, make_card

from pippin.core.cache.disk.stats import DiskStats
from pippin.core.engine.client import ModelCard
from pippin.core.engine.stats import EngineStats, FinishedStats, SpeculationStatus, StepStats
from pippin.core.request import FinishReason
from pippin.core.speculation.stats import DraftCounts
from pippin.server.metrics import Metrics

STATS = EngineStats(
    num_running=3,
    num_waiting=2,
    num_blocks=4_000,
    num_free_blocks=1_701,
    num_evictable_blocks=1_203,
    block_size=32,
    kv_cache_bytes=5 << 30,
    active_memory_bytes=17 << 30,
    num_states=13,
    max_states=14,
    speculation=SpeculationStatus(
        proposer="suffix",
        counts=DraftCounts(num_steps=40, num_drafted=300, num_accepted=219, num_emitted=259),
        gain=1.62,
        is_on=True,
    ),
    disk=DiskStats(
        folder="/kv",
        num_records=1_234,
        num_bytes=3 << 29,
        max_bytes=7 << 30,
        queued_bytes=4,
        is_writing=True,
        spilled=2_345,
        spilled_bytes=6,
        restored=77,
        restored_bytes=8,
        dropped=9,
        evicted=1_010,
        corrupt=11,
        missing=12,
    ),
)


def make_busy_engine(card: ModelCard | None = None) -> tuple[FakeEngine, Metrics]:
    """The engine, and metrics that have seen one step and four answers."""
    engine = FakeEngine(card=card or make_card())
    engine.engine_stats = STATS
    metrics = Metrics()
    ended = [
        FinishedStats(
            finish_reason=reason,
            num_prompt_tokens=10,
            num_cached_tokens=5,
            num_output_tokens=7,
            queue_s=0.1,
            ttft_s=0.2,
            e2e_s=1.5,
        )
        for count, reason in enumerate(FinishReason, 1)
        for _ in range(count)
    ]
    step = StepStats(
        duration_s=0.02,
        num_prefill_tokens=1_500,
        num_decode_tokens=2_222,
        num_preempted=6,
        num_prefix_queries=8_000,
        num_prefix_hits=5_005,
        num_disk_hits=808,
        ttft_s=(0.2, 0.4),
        inter_token_s=(0.0125, 0.0135),
        finished=tuple(ended),
    )
    metrics.observe_step(step)
    return engine, metrics
