"""How a loaded model runs on this device: decided by trying, here and nowhere else."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..backend import device_kind, mx
from ..cache.kv_layout import KVLayout
from ..kernels.store_write import find_write_problem, write_store
from ..models.loader import LoadedModel
from ..runner.attention.kernel_attention import KernelAttention
from ..runner.attention.pair_attention import PairAttention
from ..runner.attention.row_attention import RowAttention
from ..runner.attention.table_attention import TableAttention
from ..runner.head import find_head
from ..runner.joined_linear import find_linear_groups
from ..runner.linear import LinearReport
from ..runner.linear_timing import tune_linear_layers
from ..runner.measurements import Measurements
from ..runner.model_adapter import describe_layout, install_paged_attention
from ..runner.paged_model import PagedModel
from ..runner.probe import find_paging_problem

logger = logging.getLogger(__name__)

# Rows of a compiled step. Between these, rows are added: a graph for every number would be too
# many, and quantised kernels take rows by eights.
_ROW_BUCKETS = (1, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
# On the CPU, where a probe of many tokens takes long and no kernel depends on it.
_CPU_PROBE_BLOCK_SIZE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePlan:
    """What was found out about a model on this device.

    Attributes:
        paging_problem: Why the model runs on mlx-lm's own caches; ``None`` if it is paged.
        write_in_place: The kernel that writes the KV store, if it works here.
    """

    model: PagedModel
    layout: KVLayout
    dtype: mx.Dtype
    linear: LinearReport
    paging_problem: str | None
    write_in_place: Callable[..., mx.array] | None

    def row_bucket(self, num_rows: int) -> int:
        """How many rows a step of rows alone is filled up to."""
        if not self.model.is_compiled:
            return num_rows
        bucket = next((size for size in _ROW_BUCKETS if size >= num_rows), num_rows)
        return max(bucket, self.linear.rows_to_run(num_rows))

    def describe_attention(self) -> str:
        """One line for people."""
        attention = self.model.attention
        return attention.describe() if isinstance(attention, KernelAttention) else "plain"


def plan_for_device(loaded: LoadedModel, *, block_size: int) -> DevicePlan:
    """Try a model: its layers' kinds, its linear layers, kernels, and the paged cache."""
    model = loaded.model
    install_paged_attention(model)
    layout, dtype = describe_layout(model)
    groups = find_linear_groups(model)
    linear = tune_linear_layers(model, dtype, Measurements.of_this_machine(), groups)
    logger.debug("linear layers: %s", linear.describe())
    write_problem = find_write_problem(dtype)
    on_cpu = device_kind() == "cpu"
    if write_problem is not None and not on_cpu:
        logger.warning("the KV store is copied when it is written: %s", write_problem)
    write = write_store if write_problem is None else None
    paged = PagedModel(
        model,
        _choose_attention(dtype),
        head=find_head(model, loaded.vocab_size),
        is_compiled=write is not None,
    )

    def find_problem() -> str | None:
        return find_paging_problem(
            model,
            paged,
            layout,
            dtype,
            loaded.vocab_size,
            block_size=_CPU_PROBE_BLOCK_SIZE if on_cpu else block_size,
            write_in_place=write,
        )

    problem = find_problem()
    if problem is not None and layout.is_paged:
        # Maybe it is one of the ways to be fast that this model cannot go.
        logger.debug("try again with nothing but paged attention: %s", problem)
        for group in groups:
            group.unjoin()
        write, paged = None, PagedModel(model, TableAttention())
        problem = find_problem()
        if problem is None:
            logger.warning("the model runs without kernels and compiled steps")
    return DevicePlan(
        model=paged,
        layout=layout,
        dtype=dtype,
        linear=linear,
        paging_problem=problem,
        write_in_place=write,
    )


def _choose_attention(dtype: mx.Dtype) -> RowAttention[Any]:
    if dtype == mx.float32 and device_kind() == "cpu":
        return PairAttention()
    return KernelAttention()
