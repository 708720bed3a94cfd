"""Puts an engine together for a loaded model: layout, probe, memory budget, runner, scheduler."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..backend import device_kind, mx
from ..cache.disk.record import Namespace
from ..cache.disk.tier import DiskTier, default_disk_bytes
from ..cache.kv_cache_manager import KVCacheManager
from ..cache.kv_layout import KVLayout, blocks_for, split_blocks
from ..cache.kv_store import KVStore
from ..config import CacheConfig, EngineConfig, SchedulerConfig, Speculation
from ..errors import ConfigError
from ..models.loader import LoadedModel
from ..runner.model_runner import ModelRunner
from ..runner.paged_runner import PagedRunner
from ..runner.sampler import Sampler
from ..runner.sequential_runner import SequentialRunner
from ..speculation.ngram import NgramProposer
from ..text.tokenizer import Tokenizer
from .device_plan import DevicePlan, plan_for_device
from .disk_cache import DiskCache
from .draft_plan import DraftPlan
from .draft_source import DraftSource, HostSource
from .engine import Engine
from .mtp_plan import MtpPlan
from .read_costs import ReadCosts
from .scheduler import Scheduler
from .speculator import Speculator
from .step_costs import StepCosts
from .warm_up import WarmUp, learn_costs

logger = logging.getLogger(__name__)

# Share of a GPU's memory that weights, cache and activations together may take.
GPU_SHARE = 0.85
# A CPU serves small models to few people; more would only be page-faulted in for nothing.
CPU_SHARE = 0.25
CPU_MOST_BYTES = 1024**3
_LEAD_TOKENS = 1024  # of the first requests; a few hundredths of a second's work
_DEFAULT_MAX_MODEL_LEN = 32768
# Of the memory that running sequences leave, for saved states of recurrent layers.
_STATE_SHARE = 0.3
_MOST_STATES = 4096
_DISK_READY_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltEngine:
    """An engine and what was decided while it was put together.

    Attributes:
        paging_problem: Why the model runs on mlx-lm's own caches; ``None`` if it is paged.
        attention: ``kernel`` or ``plain`` with the reason: how rows attend.
        linear: How linear layers multiply, see `LinearReport.describe`.
    """

    engine: Engine
    tokenizer: Tokenizer
    max_model_len: int
    kv_capacity_tokens: int | None
    layout: KVLayout
    paging_problem: str | None
    attention: str
    linear: str


def build_engine(
    loaded: LoadedModel,
    config: EngineConfig,
    *,
    draft: LoadedModel | None = None,
    drafter: Any = None,
) -> BuiltEngine:
    """Make an engine. To be called on the thread that will run it.

    Args:
        draft: The model that guesses, for `Speculation.DRAFT`.
        drafter: The head that guesses, for `Speculation.MTP`, see `load_drafter`.

    Raises:
        ConfigError: The KV cache cannot hold even one short sequence, or the draft model does not
            go with the model.
    """
    tokenizer = Tokenizer(loaded.tokenizer, loaded.eos_token_ids)
    eos_token_ids = sorted(tokenizer.eos_token_ids)
    sampler = Sampler(eos_token_ids)
    plan = plan_for_device(
        loaded,
        block_size=config.cache.block_size,
        kv_bits=config.cache.kv_bits,
        verifies=config.speculation is not Speculation.OFF,
    )
    layout, dtype, problem = plan.layout, plan.dtype, plan.paging_problem
    assert (draft is not None) == (config.speculation is Speculation.DRAFT)
    assert (drafter is not None) == (config.speculation is Speculation.MTP)
    draft_plan = mtp_plan = None
    if drafter is not None:
        mtp_plan = MtpPlan(drafter, loaded, plan, block_size=config.cache.block_size)
    if draft is not None:
        draft_plan = DraftPlan(draft, loaded, plan, block_size=config.cache.block_size)
    draft_source: DraftSource = HostSource("ngram", NgramProposer)
    max_model_len = config.max_model_len or loaded.max_model_len or _DEFAULT_MAX_MODEL_LEN
    scheduler_config, capacity, costs = config.scheduler, None, StepCosts()
    runner: ModelRunner
    if problem is not None:
        logger.warning(
            "model runs one request at a time on mlx-lm's own cache, without prefix caching: %s",
            problem,
        )
        scheduler_config = dataclasses.replace(scheduler_config, max_num_seqs=1)
        manager = KVCacheManager((), (), block_size=config.cache.block_size)
        runner = SequentialRunner(loaded.model, sampler)
    else:
        guesser = draft_plan or mtp_plan
        shared = layout if guesser is None else guesser.shared_layout
        counts, num_states = _share_memory(plan, shared, config, max_model_len)
        manager = KVCacheManager(
            layout.groups,
            counts,
            block_size=config.cache.block_size,
            namespace=(loaded.fingerprint, str(dtype)),
            num_states=num_states,
        )
        store = KVStore(
            layout,
            counts,
            block_size=config.cache.block_size,
            dtype=dtype,
            write_in_place=plan.write_in_place,
            lead_blocks=_lead_blocks(counts, config.cache.block_size),
        )
        mtp = None
        if mtp_plan is not None:
            draft_source = mtp = mtp_plan.make_runner(counts[0], eos_token_ids)
        runner = PagedRunner(
            plan.model,
            sampler,
            store,
            row_bucket=plan.row_bucket,
            ragged_bucket=plan.ragged_bucket,
            mtp=mtp,
        )
        if plan.model.is_compiled:
            learn_costs(
                WarmUp(plan.model, store),
                costs,
                max_num_seqs=scheduler_config.max_num_seqs,
                prefill_chunk=scheduler_config.prefill_chunk,
                row_bucket=plan.row_bucket,
            )
        if draft_plan is not None:
            draft_source = draft_plan.make_runner(
                counts[0], eos_token_ids, max_num_seqs=scheduler_config.max_num_seqs
            )
        capacity = max(counts) * config.cache.block_size if counts else None
        max_model_len = _fit_model_len(config, max_model_len, manager)
    disk = None
    if config.cache.disk_folder is not None and problem is None:
        disk = _open_disk(config.cache, loaded, plan, manager, runner, costs)
    scheduler = Scheduler(
        scheduler_config,
        manager,
        max_model_len=max_model_len,
        eos_token_ids=eos_token_ids,
        chunk_limit=costs.chunk_limit,
        message_markers=tokenizer.special_ids,
        disk=disk,
    )
    speculator = None
    if config.speculation is not Speculation.OFF and problem is None:
        speculator = Speculator(draft_source, max_tokens=config.draft_tokens)
    return BuiltEngine(
        engine=Engine(scheduler, runner, tokenizer, costs=costs, speculator=speculator, disk=disk),
        tokenizer=tokenizer,
        max_model_len=max_model_len,
        kv_capacity_tokens=capacity,
        layout=layout,
        paging_problem=problem,
        attention=plan.describe_attention(),
        linear=plan.linear.describe(),
    )


def _lead_blocks(counts: Sequence[int], block_size: int) -> int | None:
    """Blocks to begin with, where it takes long to fill all."""
    lead = -(-_LEAD_TOKENS // block_size)
    return lead if device_kind() == "cpu" and max(counts, default=0) > 2 * lead else None


def _open_disk(
    config: CacheConfig,
    loaded: LoadedModel,
    plan: DevicePlan,
    manager: KVCacheManager,
    runner: ModelRunner,
    costs: StepCosts,
) -> DiskCache | None:
    assert config.disk_folder is not None
    assert isinstance(runner, PagedRunner)
    namespace = Namespace(
        model=loaded.model_id,
        fingerprint=loaded.fingerprint,
        layout=plan.layout.describe(),
        block_size=config.block_size,
        dtype=str(plan.dtype).rpartition(".")[2],
        model_path=str(loaded.path),
    )
    try:
        num_bytes = config.disk_bytes or default_disk_bytes(config.disk_folder)
        tier = DiskTier(config.disk_folder, namespace, max_bytes=num_bytes)
    except OSError as error:
        logger.warning("no disk cache: %s", error)
        return None
    # The first prompt may be one of those that are there. A large folder takes longer; then not.
    tier.wait_ready(_DISK_READY_S)
    return DiskCache(tier, manager, runner.block_copies(), ReadCosts(costs.chunk_seconds))


def _fit_model_len(config: EngineConfig, wanted: int, manager: KVCacheManager) -> int:
    held = manager.max_sequence_tokens
    if held is None or held >= wanted:
        return wanted
    if config.max_model_len is not None:
        raise ConfigError(
            f"max-model-len is {wanted}, but the KV cache holds {held} tokens; "
            "raise kv-cache-memory or lower max-model-len"
        )
    return held


def _share_memory(
    plan: DevicePlan, layout: KVLayout, config: EngineConfig, max_model_len: int
) -> tuple[list[int], int | None]:
    """Share the budget out: blocks of each layer group of `layout`, and states to be saved.

    Args:
        layout: The plan's and whatever else has its memory.
    """
    size, scheduler = config.cache.block_size, config.scheduler
    budget = config.cache.max_bytes
    if budget is None:
        budget = _measure_budget(plan, scheduler, size)
    num_states = None
    left = budget
    if layout.recurrent:
        # A running sequence has two, as one pass's states are made of the last one's.
        left -= 2 * scheduler.max_num_seqs * layout.state_bytes
        num_states = max(0, int(left * (_STATE_SHARE if layout.groups else 1.0)))
        num_states = min(num_states // layout.state_bytes, _MOST_STATES)
        left -= num_states * layout.state_bytes
        if left < 0:
            raise ConfigError(
                f"kv-cache-memory of {budget} bytes is not enough for {scheduler.max_num_seqs} "
                f"running sequences, whose recurrent layers take {2 * layout.state_bytes} bytes "
                "each; raise it or lower max-num-seqs"
            )
    return _count_blocks(layout, left, config, max_model_len), num_states


def _count_blocks(
    layout: KVLayout, budget: int, config: EngineConfig, max_model_len: int
) -> list[int]:
    size, scheduler = config.cache.block_size, config.scheduler
    counts = split_blocks(
        layout,
        max_bytes=budget,
        block_size=size,
        max_num_seqs=scheduler.max_num_seqs,
        prefill_chunk=scheduler.prefill_chunk,
    )
    # More than all running sequences can ever fill is of use to the prefix cache alone; a few
    # times the longest answer is plenty there.
    most = blocks_for(max_model_len, size) * max(scheduler.max_num_seqs, 4)
    counts = [min(count, most) for count in counts]
    for group, count in zip(layout.groups, counts, strict=True):
        needed = 2
        if group.window is not None:
            chunk = min(scheduler.prefill_chunk, max_model_len)
            needed = blocks_for(min(group.window, max_model_len) + chunk, size, slack=1)
        if count < needed:
            raise ConfigError(
                f"kv-cache-memory of {budget} bytes gives {count} blocks of {size} tokens where "
                f"at least {needed} are needed; raise it"
                + ("" if group.window is None else " or lower prefill-chunk")
            )
    return counts


def _measure_budget(plan: DevicePlan, scheduler: SchedulerConfig, block_size: int) -> int:
    """Bytes left for keys and values beside the weights and the largest step's activations."""
    if device_kind() == "cpu":
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return min(int(available * CPU_SHARE), CPU_MOST_BYTES)
    empty = [0] * len(plan.layout.groups)
    store = KVStore(
        plan.layout,
        empty,
        block_size=block_size,
        dtype=plan.dtype,
        write_in_place=plan.write_in_place,
    )
    activations = WarmUp(plan.model, store).chunk_bytes(scheduler.prefill_chunk)
    del store
    mx.clear_cache()
    limit, used = int(memory_limit() * GPU_SHARE), int(mx.get_active_memory())
    budget = limit - used - activations
    logger.debug(
        "memory model: limit=%d weights=%d activations=%d kv=%d", limit, used, activations, budget
    )
    return max(budget, 0)


def memory_limit() -> int:
    """Bytes that the device can use in all."""
    info = mx.device_info()
    for name in ("max_recommended_working_set_size", "total_memory", "memory_size"):
        if name in info:
            return int(info[name])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
