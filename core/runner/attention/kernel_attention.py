"""Row attention by our own kernel, for shapes with which it was tried."""

from __future__ import annotations

import logging

from ...backend import mx
from ...cache.vector_format import Blocks, QuantizedBlocks
from ...kernels.kernel_shape import KernelShape
from ...kernels.paged_attention import RowTable, choose_num_splits, paged_decode_attention
from ...kernels.self_check import KernelReport, check
from .table_attention import TableAttention, TablePlan

logger = logging.getLogger(__name__)

# An H200's SMs. MLX does not say how many a device has; a wrong number costs some speed.
_NUM_PROCESSORS = 132


class KernelAttention(TableAttention):
    """Reads blocks where they lie; a shape that the kernel fails with goes the plain way.

    A shape is tried when it is first met, which the probe sees to at load.
    """

    def __init__(self) -> None:
        super().__init__()
        self._reports: dict[KernelShape, KernelReport] = {}

    def describe(self) -> str:
        """One line for people: what attends."""
        if not self._reports:
            return "plain"
        refused = [r.reason for r in self._reports.values() if r.verdict == "fallback"]
        if not refused:
            return "kernel"
        return f"plain: {refused[0]}" if len(refused) == len(self._reports) else "kernel and plain"

    def attend(
        self,
        queries: mx.array,
        keys: Blocks,
        values: Blocks,
        plan: TablePlan,
        *,
        scale: float,
        sinks: mx.array | None = None,
        written: mx.array | None = None,
    ) -> mx.array:
        """See `RowAttention.attend`."""
        num_rows, num_heads, _, key_dim = queries.shape
        _, num_kv_heads, block_size, value_dim = values.shape
        shape = KernelShape(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            key_dim=key_dim,
            value_dim=value_dim,
            block_size=block_size,
            dtype=queries.dtype,
            window=plan.window,
            has_sinks=sinks is not None,
            **_quantization(keys, values),
        )
        if queries.dtype != keys.dtype or self._report(shape).verdict == "fallback":
            return super().attend(
                queries, keys, values, plan, scale=scale, sinks=sinks, written=written
            )
        width = plan.table.shape[1] * block_size
        return paged_decode_attention(
            shape,
            queries,
            keys.parts if isinstance(keys, QuantizedBlocks) else keys,
            values.parts if isinstance(values, QuantizedBlocks) else values,
            RowTable(plan.table, plan.firsts, plan.lengths),
            scale=scale,
            sinks=sinks,
            num_splits=choose_num_splits(num_rows, num_kv_heads, width, _NUM_PROCESSORS),
            after=written,
        )

    def _report(self, shape: KernelShape) -> KernelReport:
        if shape not in self._reports:
            report = self._reports[shape] = check(shape)
            logger.debug("attention kernel: %s: %s", shape, report)
            if report.verdict == "fallback":
                logger.warning("attention runs without its kernel: %s", report.reason)
        return self._reports[shape]


def _quantization(keys: Blocks, values: Blocks) -> dict[str, int]:
    """What `KernelShape` has to say about it."""
    if not isinstance(keys, QuantizedBlocks) or not isinstance(values, QuantizedBlocks):
        return {}
    return {
        "key_bits": keys.bits,
        "value_bits": values.bits,
        "group_size": keys.group_size,
    }
