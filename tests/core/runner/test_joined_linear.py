"""Joined layers are found, give what they gave before, and keep nothing."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from tiny_families import ATTENTION_FAMILIES
from tiny_models import FAMILIES, VOCAB_SIZE, TinyFamily, make_tiny_model

from pippin.core.backend import mx
from pippin.core.runner.attention.pair_attention import PairAttention
from pippin.core.runner.head import find_head
from pippin.core.runner.joined_linear import LinearGroup, find_linear_groups
from pippin.core.runner.model_adapter import (
    describe_layout,
    install_paged_attention,
    reference_logits,
)
from pippin.core.runner.paged_model import PagedModel
from pippin.core.runner.probe import find_paging_problem

# isort: split
from mlx.nn.layers.base import Module  # noqa: TID251
from mlx.nn.layers.linear import Linear  # noqa: TID251
from mlx.nn.layers.quantized import QuantizedLinear, quantize  # noqa: TID251

QKV = "q_proj k_proj v_proj"
GATE_UP = "gate_proj up_proj"
# Of all layers, from the first to the last; layers of the same groups are named once.
GROUPS = {
    "llama-tied": [QKV, GATE_UP],
    "llama-untied": [QKV, GATE_UP],
    "qwen2": [QKV, GATE_UP],
    "qwen3": [QKV, GATE_UP],
    "qwen3-moe": [QKV, GATE_UP],
    "gemma3": [QKV, GATE_UP],
    "gemma4": [QKV, GATE_UP],
    "gpt-oss": [QKV],
    "phi3": [],
    "phi": [QKV],
    "deepseek-mla": ["q_a_proj kv_a_proj_with_mqa", GATE_UP],
    "mamba2": [],
    "lfm2": ["w1 w3", QKV],
}


def join(model: Any, max_rows: int = 1000) -> list[LinearGroup]:
    groups = find_linear_groups(model)
    for group in groups:
        group.join(max_rows)
    return groups


def names(groups: list[LinearGroup]) -> list[str]:
    """Last parts of the layers' names."""
    return [" ".join(path.rpartition(".")[2] for path in group.paths) for group in groups]


class Block(Module):
    """Two layers of one input, as a model that can be given tokens or hidden states."""

    layers = ()

    def __init__(
        self, dims: tuple[int, int, int] = (64, 48, 32), *, bias: bool = False, bits: int = 0
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        mx.random.seed(3)
        self.dims = dims[0]
        self.a: Any = Linear(dims[0], dims[1], bias)
        self.b: Any = Linear(dims[0], dims[2], bias)
        if bits:
            quantize(self, 32, bits)
        mx.eval(self.a, self.b)

    def __call__(self, x: mx.array, cache: Any = None) -> mx.array:
        if x.dtype == mx.int32:
            x = mx.sin(mx.arange(self.dims) + x[..., None])
        return self.run(x)

    def run(self, x: mx.array) -> mx.array:
        return mx.concatenate([self.a(x), self.b(x)], axis=-1)

    @property
    def pair(self) -> tuple[Any, Any]:
        return self.a, self.b


class WithC(Block):
    """A third layer comes between them."""

    def __init__(self) -> None:
        super().__init__()
        self.c: Any = QuantizedLinear(64, 32, False)

    def run(self, x: mx.array) -> mx.array:
        return mx.concatenate([self.c(x), super().run(x)], axis=-1)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_logits_are_what_they_were(family: TinyFamily) -> None:
    model = make_tiny_model(family).model
    texts = [[[5]], [[1, 2, 3, 4, 5], [6]], [list(range(40)), [3]]]
    want = [reference_logits(model, text) for text in texts]

    groups = join(model)

    found = names(groups)
    if family in ATTENTION_FAMILIES:
        assert sorted(set(found)) == sorted(GROUPS.get(family.name, [QKV, GATE_UP]))
    for text, expected in zip(texts, want, strict=True):
        have = reference_logits(model, text)
        if len(text[0]) < 10 and family in ATTENTION_FAMILIES:
            assert mx.array_equal(have, expected)
        else:  # a BLAS sums in another order where a product is large
            assert float(mx.abs(have - expected).max() / mx.abs(expected).max()) < 1e-5
    for group in groups:
        group.unjoin()
    assert {type(layer).__name__ for group in groups for layer in group.layers} <= {"Linear"}
    assert all(
        mx.array_equal(reference_logits(model, text), logits)
        for text, logits in zip(texts, want, strict=True)
    )


def test_each_layer_of_a_model_has_its_own_groups() -> None:
    paths = [group.paths for group in join(make_tiny_model("qwen3-moe").model)]

    layers = [f"model.layers.{i}" for i in range(3)]
    attention = [tuple(f"{it}.self_attn.{name}" for name in QKV.split()) for it in layers]
    dense = tuple(f"model.layers.1.mlp.{name}" for name in GATE_UP.split())
    assert paths == [attention[0], attention[1], dense, attention[2]]


def test_layers_without_keys_of_their_own_have_nothing_to_join_queries_with() -> None:
    paths = [path for group in join(make_tiny_model("gemma4").model) for path in group.paths]

    assert [path for path in paths if "q_proj" in path] == [
        f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)
    ]


def test_a_joined_model_is_paged() -> None:
    model = make_tiny_model("qwen3").model
    install_paged_attention(model)
    layout, dtype = describe_layout(model)
    join(model)

    paged = PagedModel(model, PairAttention(), head=find_head(model, VOCAB_SIZE))

    assert find_paging_problem(model, paged, layout, dtype, VOCAB_SIZE) is None


@pytest.mark.parametrize("bits", [0, 4, 8])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(64,), (1, 1, 64), (7, 1, 64), (2, 3, 64)])
def test_plain_and_quantised_layers(shape: tuple[int, ...], bias: bool, bits: int) -> None:
    block = Block(bias=bias, bits=bits)
    x = mx.random.normal(shape)
    want = block(x)

    assert names(join(block)) == ["a b"]
    assert float(mx.abs(block(x) - want).max()) < 1e-6


def test_a_layer_of_another_format_keeps_to_itself() -> None:
    block = WithC()
    want = block(x := mx.random.normal((2, 64)))

    assert names(join(block)) == ["a b"]
    assert mx.array_equal(block(x), want)


def test_one_product_serves_all_layers_of_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    block = Block(bits=8)
    (group,) = join(block, max_rows=3)
    products: list[tuple[int, int]] = []
    stock = mx.quantized_matmul

    def count(x: mx.array, weight: mx.array, **options: Any) -> mx.array:
        products.append((x.shape[0], weight.shape[0]))
        return stock(x, weight, **options)

    monkeypatch.setattr(mx, "quantized_matmul", count)
    block(mx.zeros((3, 64)))
    block(mx.zeros((4, 64)))
    group.unjoin()
    block(mx.zeros((3, 64)))

    assert products == [(3, 80), (4, 48), (4, 32), (3, 48), (3, 32)]


def test_weights_move_into_one_buffer_and_stay_what_they_were() -> None:
    block = Block((512, 1024, 512), bias=True, bits=8)
    copies = [{name: array + 0 for name, array in it.items()} for it in block.pair]
    mx.eval(copies)
    active = mx.get_active_memory()

    join(block)
    gc.collect()

    assert mx.get_active_memory() - active < 32 * 1024 < block.b.weight.nbytes
    assert set(block) == {"a", "b"}
    for layer, parts in zip(block.pair, copies, strict=True):
        assert isinstance(layer, QuantizedLinear)
        assert set(layer) == set(parts) == {"weight", "scales", "biases", "bias"}
        assert all(mx.array_equal(layer[name], part) for name, part in parts.items())


def held(group: LinearGroup) -> int:
    return len(group.product._parts)


def test_nothing_is_kept_once_the_input_is_gone() -> None:
    block = Block()
    (group,) = join(block)
    x = mx.ones((2, 64))

    block.a(x)
    assert held(group) == 1
    block.b(x)
    assert held(group) == 0
    block.a(x)
    block.a(mx.ones((3, 64)))  # a new input takes the place of the old one, and dies
    assert held(group) == 0
    block.a(x)
    x = mx.zeros((2, 64))
    assert held(group) == 0


def test_layers_may_be_called_in_any_way() -> None:
    block = Block()
    x, y = mx.random.normal((2, 64)), mx.random.normal((2, 64))
    want = {(name, i): block[name](z) for name in "ab" for i, z in enumerate((x, y))}

    join(block)

    for calls in ("a0 b1 a1 b0", "b0 a0 b1 a1", "a0 a0 b0 b0", "b1 b1 a0 a1", "a0 a1 b0 b1"):
        for call in calls.split():
            name, i = call[0], int(call[1])
            assert mx.array_equal(block[name]((x, y)[i]), want[name, i]), calls


def test_arrays_of_one_trace_do_not_reach_the_next() -> None:
    block = Block()
    inputs = [mx.random.normal((2, 64)) for _ in range(3)]
    want = [(block.a(x), block(x)) for x in inputs]
    (group,) = join(block)
    mx.enable_compile()
    try:
        only_a, both = mx.compile(lambda x: block.a(x)), mx.compile(lambda x: block(x))
        have = [(only_a(x), both(x)) for x in inputs]
        assert held(group) == 0
        have += [(block.a(x), block(x)) for x in inputs]
        mx.eval(have)
    finally:
        mx.disable_compile()

    for found, expected in zip(have, want * 2, strict=True):
        for one, other in zip(found, expected, strict=True):
            assert float(mx.abs(one - other).max()) < 1e-6


class OwnLinear(Linear):
    """Some other project's layer."""


class Adapter(Module):
    """Wraps a layer, as a LoRA does."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.linear = linear

    def __call__(self, x: mx.array) -> Any:
        return self.linear(x) + 1


class InPlace(Block):
    def run(self, x: mx.array) -> mx.array:
        a = self.a(x)
        x += 1
        return mx.concatenate([a, self.b(x)], axis=-1)


class Twice(Block):
    def run(self, x: mx.array) -> mx.array:
        return mx.concatenate([self.a(x), self.b(x), self.b(x * 2)], axis=-1)


class Failing(Block):
    def run(self, x: mx.array) -> mx.array:
        self.b(self.a(x))
        raise RuntimeError("cannot run one token")


def replace_b(layer: Any) -> Block:
    block = Block()
    block.b = layer
    mx.eval(block)
    return block


@pytest.mark.parametrize(
    "block",
    [
        replace_b(OwnLinear(64, 32)),
        replace_b(Adapter(Linear(64, 32, False))),
        replace_b(Linear(64, 32, bias=True)),
        replace_b(QuantizedLinear(64, 32, False)),
        InPlace(),
        Twice(),
        Failing(),
    ],
    ids=["subclass", "adapter", "bias", "format", "in-place", "twice", "failing"],
)
def test_layers_that_are_left_alone(block: Block) -> None:
    kinds, weight = [type(layer) for layer in block.pair], block.a.weight

    assert find_linear_groups(block) == []

    assert [type(layer) for layer in block.pair] == kinds
    assert block.a.weight is weight
