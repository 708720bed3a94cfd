"""How a loaded model runs on this device: decided by trying, here and nowhere else."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..backend import device_kind, mx
from ..cache.kv_layout import KVLayout
from ..cache.kv_quantization import quantize_layout
from ..config import KVBits
from ..errors import ConfigError
from ..kernels.store_write import find_write_problem, write_store
from ..models.loader import LoadedModel
from ..runner.attention.kernel_attention import KernelAttention
from ..runner.attention.pair_attention import PairAttention
from ..runner.attention.row_attention import RowAttention
from ..runner.attention.table_attention import TableAttention
from ..runner.forward_batch import PassForm
from ..runner.fused_model import fuse
from ..runner.head import find_head
from ..runner.joined_linear import LinearGroup, find_linear_groups
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
# Of runs in compiled ragged passes: drafts grow by doubling.
_RUN_LENGTHS = (2, 3, 5, 9, 16)
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

    def ragged_bucket(self, num_runs: int, length: int) -> tuple[int, int]:
        """How many runs, and how long ones, a ragged pass is filled up to."""
        if not self.model.is_compiled:
            return num_runs, length
        if num_runs == 1:
            return 1, self.row_bucket(length)
        padded = next((size for size in _RUN_LENGTHS if size >= length), length)
        return self.row_bucket(num_runs), padded

    def describe_attention(self) -> str:
        """One line for people."""
        attention = self.model.attention
        return attention.describe() if isinstance(attention, KernelAttention) else "plain"


def plan_for_device(
    loaded: LoadedModel,
    *,
    block_size: int,
    kv_bits: KVBits | None = None,
    verifies: bool = False,
) -> DevicePlan:
    """Try a model: its layers' kinds, its linear layers, kernels, and the paged cache.

    Args:
        verifies: Whether it is going to verify guesses.

    Raises:
        ConfigError: The model's keys and values cannot have fewer bits.
    """
    model = loaded.model
    install_paged_attention(model)
    layout, dtype = describe_layout(model)
    # The second only where the first works: what is off by rounding hides other faults.
    layouts = [layout] if kv_bits is None else [layout, quantize_layout(layout, kv_bits)]
    groups = find_linear_groups(model)
    linear = tune_linear_layers(model, dtype, Measurements.of_this_machine(), groups)
    logger.debug("linear layers: %s", linear.describe())
    write_problem = find_write_problem(dtype)
    on_cpu = device_kind() == "cpu"
    if write_problem is not None and not on_cpu:
        logger.warning("the KV store is copied when it is written: %s", write_problem)
    write = write_store if write_problem is None else None
    for paged, in_place in _attempts(loaded, layout, _choose_attention(dtype), groups, write):
        probe = partial(
            find_paging_problem,
            model,
            paged,
            dtype=dtype,
            vocab=loaded.vocab_size,
            block_size=_CPU_PROBE_BLOCK_SIZE if on_cpu else block_size,
            write_in_place=in_place,
        )
        for tried in layouts:
            problem = probe(tried)
            if problem is not None:
                break
        if problem is None or not layout.is_understood:
            break
        logger.debug("form=%s %s", paged.form.value, problem)
    if problem is None and verifies and layout.recurrent and paged.form is not PassForm.ALONE:
        ragged_problem = probe(layouts[-1], with_ragged=True)
        paged.takes_ragged = ragged_problem is None
        logger.debug("ragged passes: %s", ragged_problem or "yes")
    if problem is not None and kv_bits is not None:
        raise ConfigError(f"kv-bits {kv_bits} cannot be used with this model: {problem}")
    return DevicePlan(
        model=paged,
        layout=layouts[-1],
        dtype=dtype,
        linear=linear,
        paging_problem=problem,
        write_in_place=in_place,
    )


def _attempts(
    loaded: LoadedModel,
    layout: KVLayout,
    attention: RowAttention[Any],
    groups: Sequence[LinearGroup],
    write: Callable[..., mx.array] | None,
) -> Iterator[tuple[PagedModel, Callable[..., mx.array] | None]]:
    """Ways to run a model, the fastest first, and what writes the KV store then.

    Whoever asks for a further one has no use for the one before.
    """
    model = loaded.model
    head = find_head(model, loaded.vocab_size)
    make = partial(PagedModel, head=head, is_compiled=write is not None)
    fused = model if write is None else fuse(model, groups)
    if layout.is_flat:
        if fused is not model:
            yield make(fused, attention), write
        yield make(model, attention), write
    if layout.groups:
        yield make(model, attention, form=PassForm.SPLIT), write
    for form in (PassForm.GATHERED, PassForm.ALONE):
        yield make(model, TableAttention(), form=form), write
    # Maybe it is one of the ways to be fast that this model cannot go.
    for group in groups:
        group.unjoin()
    logger.debug("try again without kernels and compiled steps")
    for form in list(PassForm)[0 if layout.is_flat else 1 :]:
        yield PagedModel(model, TableAttention(), form=form), None


def _choose_attention(dtype: mx.Dtype) -> RowAttention[Any]:
    if dtype == mx.float32 and device_kind() == "cpu":
        return PairAttention()
    return KernelAttention()
