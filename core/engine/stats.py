"""Numbers that the engine produces. How they are exposed is the server's business."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from ..cache.disk.stats import DiskStats
from ..request import FinishReason
from ..speculation.stats import DraftCounts
from .sequence import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedStats:
    """Timings of one answer that ended. Durations in seconds; ``None`` where it never got there.

    Attributes:
        queue_s: Arrival to first scheduled.
        ttft_s: Arrival to first token.
        e2e_s: Arrival to end.
    """

    finish_reason: FinishReason
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    queue_s: float | None
    ttft_s: float | None
    e2e_s: float

    @classmethod
    def of(cls, sequence: Sequence) -> FinishedStats:
        """Of a sequence that ended just now."""
        arrival_at = sequence.request.arrival_at
        scheduled_at, token_at = sequence.first_scheduled_at, sequence.first_token_at
        assert sequence.finish_reason is not None
        return cls(
            finish_reason=sequence.finish_reason,
            num_prompt_tokens=sequence.num_prompt_tokens,
            num_cached_tokens=sequence.num_cached_tokens or 0,
            num_output_tokens=sequence.num_output_tokens,
            queue_s=None if scheduled_at is None else scheduled_at - arrival_at,
            ttft_s=None if token_at is None else token_at - arrival_at,
            e2e_s=time.monotonic() - arrival_at,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStats:
    """What one step did.

    Host and device work side by side, and the host sees when steps end. ``duration_s`` and
    ``gap_s`` of all steps are together the time in which there was work.

    Attributes:
        duration_s: From the end of the step before, or from when the host began to build this one
            if that was later, to its own end. 0 if no step ran.
        gap_s: Before it, how long no step was under way although there was work: the host told
            the step before, drafted and planned.
        num_prefill_tokens: Prompt tokens computed (not those found in the prefix index).
        num_decode_tokens: Tokens drawn.
        ttft_s: Arrival to first token, for each answer that got its first token in this step.
        inter_token_s: Time since the answer's previous token, for every other token.
        queue_s: Time waited, for each request scheduled for the first time.
        num_prefix_queries: Prompt tokens looked up in the prefix index.
        num_prefix_hits: Those of them that were found.
        num_disk_hits: Those of these that the disk had and the memory had not.
    """

    duration_s: float = 0.0
    gap_s: float = 0.0
    num_prefill_tokens: int = 0
    num_decode_tokens: int = 0
    num_preempted: int = 0
    num_prefix_queries: int = 0
    num_prefix_hits: int = 0
    num_disk_hits: int = 0
    ttft_s: tuple[float, ...] = ()
    inter_token_s: tuple[float, ...] = ()
    queue_s: tuple[float, ...] = ()
    finished: tuple[FinishedStats, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationStatus:
    """How speculation fares.

    Attributes:
        counts: What drafts that were verified gave, since the start.
        gain: Estimated speed with speculation, by the speed without, for as many sequences as run
            now; ``None`` while unknown.
        is_on: Whether the next step verifies drafts, if there are any.
    """

    proposer: str
    counts: DraftCounts
    gain: float | None
    is_on: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A snapshot of the engine between two steps.

    Attributes:
        num_blocks: Blocks of the KV cache; each is free, evictable (reusable) or in use.
        kv_cache_bytes: Memory of the KV store.
        num_traces: Graphs of steps compiled so far.
        speculation: ``None`` if the engine has none.
        disk: The same of the disk tier.
        num_states: States of recurrent layers that are saved, of `max_states`.
    """

    num_running: int = 0
    num_waiting: int = 0
    num_blocks: int = 0
    num_free_blocks: int = 0
    num_evictable_blocks: int = 0
    block_size: int = 0
    kv_cache_bytes: int = 0
    active_memory_bytes: int = 0
    num_steps: int = 0
    num_traces: int = 0
    speculation: SpeculationStatus | None = None
    disk: DiskStats | None = None
    num_states: int = 0
    max_states: int = 0
    details: dict[str, str] = field(default_factory=dict)

    @property
    def kv_usage(self) -> float:
        """Share of the blocks that running sequences hold, 0 to 1."""
        if not self.num_blocks:
            return 0.0
        return 1.0 - (self.num_free_blocks + self.num_evictable_blocks) / self.num_blocks


StepObserver: TypeAlias = Callable[[StepStats], None]
