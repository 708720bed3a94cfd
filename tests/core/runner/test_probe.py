"""Which models are paged, and that the probe notices when paging goes wrong."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_models import FAMILIES, VOCAB_SIZE, TinyFamily, make_tiny_model

from pippin.core.backend import mx
from pippin.core.cache.kv_layout import KVLayout, LayerGroup
from pippin.core.runner import layer_cache
from pippin.core.runner.attention.pair_attention import PairAttention, PairPlan
from pippin.core.runner.attention.table_attention import TableAttention
from pippin.core.runner.forward_batch import PassForm
from pippin.core.runner.head import find_head
from pippin.core.runner.layer_cache import ForwardPass, PagedLayerCache
from pippin.core.runner.model_adapter import describe_layout, install_paged_attention
from pippin.core.runner.paged_model import PagedModel
from pippin.core.runner.probe import find_paging_problem


def problem_on_pages(
    model: Any,
    layout: KVLayout,
    dtype: mx.Dtype,
    attention: PairAttention | TableAttention | None = None,
    form: PassForm = PassForm.FLAT,
) -> str | None:
    """What the probe says."""
    if attention is None:
        gathers = form in (PassForm.GATHERED, PassForm.ALONE)
        attention = TableAttention() if gathers else PairAttention()
    head = find_head(model, VOCAB_SIZE)
    paged = PagedModel(model, attention, head=head, form=form)
    return find_paging_problem(model, paged, layout, dtype, VOCAB_SIZE)


def problem_of(family: str) -> str | None:
    """What the probe says of a fresh model."""
    model = make_tiny_model(family).model
    install_paged_attention(model)
    layout, dtype = describe_layout(model)
    return problem_on_pages(model, layout, dtype)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_layout_and_verdict(family: TinyFamily) -> None:
    model = make_tiny_model(family).model
    install_paged_attention(model)
    layout, dtype = describe_layout(model)

    problem = problem_on_pages(model, layout, dtype, form=family.form)

    assert layout.describe() == family.layers
    if family.problem is None:
        assert problem is None
        for faster in list(PassForm)[: list(PassForm).index(family.form)]:
            if layout.is_flat or (faster is PassForm.SPLIT and layout.groups):
                assert problem_on_pages(model, layout, dtype, form=faster) is not None
    else:
        assert problem is not None
        assert family.problem in problem


def test_16_bit_models_are_paged_too() -> None:
    model = make_tiny_model("gemma3").model
    model.set_dtype(mx.bfloat16)
    install_paged_attention(model)
    layout, dtype = describe_layout(model)

    assert dtype == mx.bfloat16
    assert problem_on_pages(model, layout, dtype, TableAttention()) is None


def test_installing_twice_changes_nothing() -> None:
    for _ in range(3):
        assert problem_of("qwen3") is None


def test_a_prefix_that_is_cut_short_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_late(group: LayerGroup, position: int) -> int:
        return max(0, position - 8)

    monkeypatch.setattr(LayerGroup, "first_needed", too_late)

    assert problem_of("llama-tied") is not None


@pytest.mark.parametrize("family", ["gemma3", "gpt-oss", "cohere2", "mimo-v2"])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_window_that_is_off_by_one_is_noticed(family: str, change: int) -> None:
    model = make_tiny_model(family).model
    install_paged_attention(model)
    layout, dtype = describe_layout(model)
    wrong = [
        type(layer)(
            kind=layer.kind,
            num_kv_heads=layer.num_kv_heads,
            key_dim=layer.key_dim,
            value_dim=layer.value_dim,
            item_bytes=layer.item_bytes,
            window=None if layer.window is None else layer.window + change,
        )
        for layer in layout.layers
    ]

    problem = problem_on_pages(model, KVLayout(wrong), dtype)

    assert problem is not None


def test_a_model_that_is_masked_as_if_it_had_no_window_is_noticed() -> None:
    """Some families mask with a window but keep a plain cache."""
    loaded = make_tiny_model("olmo3")
    caches = loaded.model.make_cache()
    full = next(type(cache) for cache in caches if not hasattr(cache, "max_size"))
    loaded.model.make_cache = lambda: [full() for _ in caches]
    install_paged_attention(loaded.model)
    layout, dtype = describe_layout(loaded.model)

    problem = problem_on_pages(loaded.model, layout, dtype)

    assert layout.describe() == "3 full"
    assert problem is not None
    assert "window" in problem


@pytest.mark.parametrize("family", ["llama-tied", "gpt-oss"])
def test_attention_that_reads_wrong_blocks_is_noticed(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = PairAttention.attend

    def wrong(
        self: PairAttention,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        plan: PairPlan,
        **options: Any,
    ) -> mx.array:
        return right(self, queries, mx.concatenate([keys[1:], keys[:1]]), values, plan, **options)

    monkeypatch.setattr(PairAttention, "attend", wrong)

    problem = problem_of(family)

    assert problem is not None
    assert "differ" in problem


def test_attention_without_sinks_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name in ((PairAttention, "attend"), (layer_cache, "chunk_attention")):
        right = getattr(owner, name)
        monkeypatch.setattr(
            owner,
            name,
            lambda *args, _right=right, **kw: _right(*args, **kw | {"sinks": None}),
        )

    assert problem_of("gpt-oss") is not None


@pytest.mark.parametrize("shift", [-1, 1])
def test_positions_that_are_off_by_one_are_noticed(
    shift: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tokens shifted alike cancel out in rotary embeddings; rows alone do not."""
    right: Any = PagedLayerCache.offset

    def wrong(cache: PagedLayerCache) -> mx.array:
        is_row = mx.arange(right.fget(cache).shape[0]) < cache._forward.batch.num_rows
        shifted: mx.array = right.fget(cache) + shift * is_row
        return shifted

    monkeypatch.setattr(PagedLayerCache, "offset", property(wrong))

    assert problem_of("llama-tied") is not None


def test_a_model_that_breaks_is_a_problem_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(ForwardPass, "__init__", explode)

    assert problem_of("llama-tied") == "first line"
