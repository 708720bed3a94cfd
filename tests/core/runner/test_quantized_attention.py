"""Attention over a quantised store: over just what is stored, however a text was cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tiny_models import make_tiny_model

from pippin.core.backend import mx
from pippin.core.cache.block_table import BlockTable
from pippin.core.cache.kv_layout import KVLayout, LayerKind, LayerSpec
from pippin.core.cache.kv_quantization import quantize_layout
from pippin.core.cache.kv_store import KVStore
from pippin.core.cache.vector_format import QuantizedBlocks
from pippin.core.config import KVBits
from pippin.core.engine.device_plan import plan_for_device
from pippin.core.errors import ConfigError
from pippin.core.kernels.self_check import KernelReport
from pippin.core.runner.attention import kernel_attention
from pippin.core.runner.attention.kernel_attention import KernelAttention
from pippin.core.runner.attention.pair_attention import PairAttention
from pippin.core.runner.attention.row_attention import RowAttention
from pippin.core.runner.attention.table_attention import TableAttention
from pippin.core.runner.batch_builder import BatchBuilder, Run
from pippin.core.runner.forward_batch import PassForm
from pippin.core.runner.layer_cache import ForwardPass
from pippin.core.runner.run_cache import PassCaches

BLOCK_SIZE = 8
NUM_HEADS, NUM_KV_HEADS, KEY_DIM, VALUE_DIM = 6, 2, 32, 64
BITS = [KVBits(8, 8), KVBits(8, 4), KVBits(4, 4)]


def make_store(bits: KVBits | None, num_blocks: int = 12) -> KVStore:
    spec = LayerSpec(
        kind=LayerKind.FULL,
        num_kv_heads=NUM_KV_HEADS,
        key_dim=KEY_DIM,
        value_dim=VALUE_DIM,
        item_bytes=4,
    )
    layout = KVLayout([spec])
    return KVStore(
        layout if bits is None else quantize_layout(layout, bits),
        [num_blocks],
        block_size=BLOCK_SIZE,
        dtype=mx.float32,
    )


class Text:
    """The queries, keys and values of one layer and text."""

    def __init__(self, length: int) -> None:
        rng = np.random.default_rng(length)
        self.length = length
        self.queries, self.keys, self.values = (
            mx.array(rng.normal(size=(length, heads, 1, dim)).astype(np.float32))
            for heads, dim in (
                (NUM_HEADS, KEY_DIM),
                (NUM_KV_HEADS, KEY_DIM),
                (NUM_KV_HEADS, VALUE_DIM),
            )
        )

    def attend(
        self,
        store: KVStore,
        cuts: list[int],
        *,
        attention: RowAttention[Any],
        form: PassForm = PassForm.FLAT,
        rows: int = 1,
    ) -> mx.array:
        """Run it piece by piece; pieces of up to so many tokens are rows."""
        table = BlockTable(BLOCK_SIZE)
        table.append([7, 2, 9, 4, 0, 11, 1][: -(-self.length // BLOCK_SIZE)])
        builder = BatchBuilder(store.layout.groups, attention, longest_row_run=rows, form=form)
        parts = []
        for start, stop in zip([0, *cuts], [*cuts, self.length], strict=True):
            own = slice(start, stop)
            run = Run(
                token_ids=[0] * (stop - start), start=start, tables=[table], num_logits=1, key=0
            )
            for batch in builder.build([run]):
                forward = ForwardPass(store, attention, batch)
                (cache,) = PassCaches(forward, form).caches
                given = [self.queries[own], self.keys[own], self.values[own]]
                if batch.run_start is not None:
                    given = [array.swapaxes(0, 2) for array in given]
                queries, keys, values = given
                keys, values = cache.update_and_fetch(keys, values)
                mask = cache.make_mask(queries.shape[2])
                out = cache.attend(queries, keys, values, scale=0.2, mask=mask, sinks=None)
                out = out if batch.run_start is None else out.swapaxes(0, 2)
                mx.eval(out, store.arrays())
                parts.append(out)
        return mx.concatenate(parts)

    def rounded(self, store: KVStore) -> Text:
        """What is left of it in the store."""
        other = Text(self.length)
        other.keys, other.values = store.as_read(0, self.keys, self.values)
        return other


@pytest.mark.parametrize("bits", BITS, ids=str)
def test_what_attention_sees_does_not_depend_on_how_a_text_was_cut(bits: KVBits) -> None:
    text = Text(45)
    plain = text.rounded(make_store(bits)).attend(make_store(None), [], attention=PairAttention())
    wanted = make_store(bits)
    text.attend(wanted, [], attention=PairAttention())
    ways: list[tuple[list[int], RowAttention[Any], PassForm, int]] = [
        ([], PairAttention(), PassForm.FLAT, 1),
        ([5, 16, 17, 40], PairAttention(), PassForm.FLAT, 1),
        (list(range(1, 45)), PairAttention(), PassForm.FLAT, 1),
        ([30, 37, 41], PairAttention(), PassForm.FLAT, 8),
        (list(range(1, 45)), TableAttention(), PassForm.FLAT, 1),
        ([7, 20, 21], TableAttention(), PassForm.SPLIT, 1),
        ([16, 44], TableAttention(), PassForm.GATHERED, 1),
        ([9, 43, 44], TableAttention(), PassForm.ALONE, 1),
    ]
    for cuts, attention, form, rows in ways:
        store = make_store(bits)

        got = text.attend(store, cuts, attention=attention, form=form, rows=rows)

        assert float(mx.abs(got - plain).max()) < 1e-5, (cuts, form)
        for have, want in zip(store.arrays(), wanted.arrays(), strict=True):
            assert mx.array_equal(have, want)
    # The numbers before rounding give something else.
    exact = text.attend(make_store(None), [], attention=PairAttention())
    assert float(mx.abs(exact - plain).max()) > 1e-3


def test_the_kernel_is_told_of_bits_and_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def attend(shape: Any, queries: mx.array, keys: Any, values: Any, *_: Any, **__: Any) -> Any:
        calls.append((shape, keys, values))
        return mx.zeros((len(queries), NUM_HEADS, 1, VALUE_DIM))

    monkeypatch.setattr(kernel_attention, "paged_decode_attention", attend)
    monkeypatch.setattr(kernel_attention, "check", lambda _: KernelReport(verdict="kernel"))
    store = make_store(KVBits(8, 4))

    Text(9).attend(store, [8], attention=KernelAttention())

    ((shape, keys, values),) = calls
    assert (shape.key_bits, shape.value_bits, shape.group_size) == (8, 4, 32)
    assert (shape.key_dim, shape.value_dim, shape.block_size) == (KEY_DIM, VALUE_DIM, BLOCK_SIZE)
    assert shape.is_valid
    assert [part.shape[-1] for part in (*keys, *values)] == [8, 1, 1, 8, 2, 2]


@pytest.mark.parametrize("family", ["qwen3", "gemma4"])
@pytest.mark.parametrize("bits", BITS, ids=str)
def test_models_are_tried_with_it(family: str, bits: KVBits) -> None:
    plan = plan_for_device(make_tiny_model(family), block_size=8, kv_bits=bits)
    assert plan.paging_problem is None
    assert f"full(k{bits.keys} v{bits.values})" in plan.layout.describe()


def test_a_model_that_it_cannot_be_done_to_is_refused() -> None:
    with pytest.raises(ConfigError, match="kv-bits 8 cannot be used with this model: no layer"):
        plan_for_device(make_tiny_model("qwen2"), block_size=8, kv_bits=KVBits(8, 8))


@pytest.mark.parametrize("fault", ["biases", "scales", "heads"])
def test_the_probe_notices_what_is_wrong_with_quantised_stores_alone(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(blocks: QuantizedBlocks, index: Any) -> mx.array:
        packed, scales, biases = (part[index] for part in blocks.parts)
        if fault == "biases":
            biases = mx.zeros_like(biases)
        if fault == "scales":
            scales = scales[:, ::-1]
        if fault == "heads":
            packed = packed[:, ::-1]
        return mx.dequantize(packed, scales, biases, group_size=blocks.group_size, bits=blocks.bits)

    monkeypatch.setattr(QuantizedBlocks, "__getitem__", broken)
    with pytest.raises(ConfigError, match=r"kv-bits 8 cannot .*: paged logits differ"):
        plan_for_device(make_tiny_model("qwen3"), block_size=8, kv_bits=KVBits(8, 8))
