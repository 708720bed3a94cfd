"""Parts in place of queries, keys and values: the same logits, with the kernel and without."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tiny_models import VOCAB_SIZE, make_tiny_model

from pippin.core.backend import mx
from pippin.core.kernels.rope_write import RotaryShape, plain_heads
from pippin.core.runner import head_part, residual
from pippin.core.runner.attention.table_attention import TableAttention
from pippin.core.runner.fused_model import fuse
from pippin.core.runner.head_part import Part
from pippin.core.runner.joined_linear import find_linear_groups
from pippin.core.runner.model_adapter import describe_layout, install_paged_attention
from pippin.core.runner.paged_model import PagedModel
from pippin.core.runner.probe import find_paging_problem

# isort: split
from mlx.nn.layers.base import Module  # noqa: TID251
from mlx_lm.models.rope_utils import Llama3RoPE

FUSED = ("llama-tied", "llama-untied", "qwen2", "qwen3", "qwen3-moe", "llama3-rope")


def make_model(family: str) -> Any:
    model = make_tiny_model(family.replace("3-rope", "-tied")).model
    if family == "llama3-rope":
        for layer in model.layers:
            layer.self_attn.rope = Llama3RoPE(16, base=1e4, scaling_config={"factor": 8.0})
    install_paged_attention(model)
    return model


def put(tokens: mx.array, slots: mx.array, store: mx.array) -> None:
    """Write ``[tokens, heads, 1, dim]`` into the memory of a store, whoever else has it."""
    mx.eval(tokens, store)
    memory: np.ndarray[Any, Any] = np.asarray(memoryview(store))  # type: ignore[arg-type]
    size = store.shape[2]
    for token, slot in zip(np.array(tokens[:, :, 0]), np.array(slots), strict=True):
        memory[slot // size, :, slot % size] = token


def write_in_place(
    keys: mx.array,
    values: mx.array,
    slots: mx.array,
    key_store: mx.array,
    value_store: mx.array,
    *,
    block_size: int,
) -> mx.array:
    for tokens, store in ((keys, key_store), (values, value_store)):
        put(tokens, slots, store.reshape(-1, tokens.shape[1], block_size, tokens.shape[3]))
    return mx.zeros(1, mx.uint32)


class FakeKernel:
    """Does with MLX's own operations what the kernel does."""

    def __init__(self) -> None:
        self.shapes: list[RotaryShape] = []

    def __call__(self, shape: RotaryShape, *args: Any) -> mx.array:
        *inputs, slots, key_store, value_store = args
        self.shapes.append(shape)
        queries, keys, values = plain_heads(shape, *inputs)
        put(keys, slots, key_store)
        put(values, slots, value_store)
        return queries


@pytest.fixture
def num_sums(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each sum that was normed by a kernel, done with MLX's own operations."""
    rows: list[int] = []

    def add_norm(
        stream: mx.array, added: mx.array, weight: mx.array, eps: float
    ) -> tuple[mx.array, mx.array]:
        rows.append(stream.shape[0])
        return stream + added, mx.fast.rms_norm(stream + added, weight, eps)

    monkeypatch.setattr(residual, "add_norm", add_norm)
    return rows


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    fake = FakeKernel()
    monkeypatch.setattr(head_part, "find_problem", lambda _: None)
    monkeypatch.setattr(head_part, "rope_write", fake)
    return fake


def find_problem(model: Any) -> str | None:
    layout, dtype = describe_layout(model)
    groups = find_linear_groups(model)
    for group in groups:
        group.join(32)
    paged = PagedModel(fuse(model, groups), TableAttention())
    return find_paging_problem(
        model, paged, layout, dtype, VOCAB_SIZE, write_in_place=write_in_place
    )


@pytest.mark.parametrize("family", FUSED)
def test_the_kernel_stands_in_for_each_layer_of_a_step_of_rows(
    family: str, kernel: FakeKernel
) -> None:
    model = make_model(family)

    assert find_problem(model) is None

    assert len(kernel.shapes) == len(model.layers)  # of the probe's passes one is of rows alone
    (shape,) = set(kernel.shapes)
    assert (shape.eps is None) == (not family.startswith("qwen3"))
    assert (shape.base is None) == (family == "llama3-rope")


@pytest.mark.parametrize("family", [*FUSED, "gemma3", "gpt-oss"])
def test_without_the_kernel_parts_do_what_they_remember(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    array, made = Part.array, list[Part]()

    def count(part: Part) -> mx.array:
        made.append(part)
        return array(part)

    monkeypatch.setattr(Part, "array", count)
    model = make_model(family)

    assert find_problem(model) is None

    # gemma3 has norms of its own, so it is given no parts.
    assert len(made) == (0 if family == "gemma3" else 3 * len(model.layers))


# Norms of gemma3 are its own; its embedding is scaled.
@pytest.mark.parametrize(("family", "of_a_layer"), [*((it, 2) for it in FUSED), ("gemma3", 0)])
def test_sums_and_norms_of_a_step_of_rows_are_one(
    family: str, of_a_layer: int, num_sums: list[int]
) -> None:
    model = make_model(family)
    layout, dtype = describe_layout(model)
    fused = fuse(model, [])
    num_sums.clear()
    paged = PagedModel(fused, TableAttention())

    problem = find_paging_problem(
        model, paged, layout, dtype, VOCAB_SIZE, write_in_place=write_in_place
    )

    assert problem is None
    assert len(num_sums) == of_a_layer * len(model.layers)


class Last(Module):
    """A last norm that does something of its own."""

    def __call__(self, x: mx.array) -> mx.array:
        return mx.clip(x, -9, 9)


def test_a_model_that_cannot_go_on_with_a_stream_has_none(num_sums: list[int]) -> None:
    model = make_model("llama-tied")
    model.model.norm = Last()  # type: ignore[no-untyped-call]

    assert fuse(model, []) is model


class Clipping(Llama3RoPE):
    """Something between product and attention that no kernel knows."""

    def __call__(self, x: mx.array, offset: Any = 0) -> Any:
        return mx.clip(x, -1, 1)


def test_attention_with_other_modules_is_given_no_parts(kernel: FakeKernel) -> None:
    model = make_model("llama3-rope")
    for layer in model.layers:
        layer.self_attn.rope.__class__ = Clipping

    assert find_problem(model) is None
    assert kernel.shapes == []


def test_what_the_model_does_beside_is_a_problem_or_done(kernel: FakeKernel) -> None:
    model = make_model("qwen3")
    attention = type(model.layers[0].self_attn)

    def scaled(self: Any, x: mx.array, mask: Any = None, cache: Any = None) -> Any:
        stock, rope = attention.__call__, self.rope
        self.rope = lambda heads, offset=0: rope(heads.astype(mx.float32) * 0.5, offset=offset)
        try:
            return stock(self, x, mask, cache)
        finally:
            self.rope = rope

    for layer in model.layers:
        layer.self_attn.__class__ = type("Scaled", (attention,), {"__call__": scaled})

    assert find_problem(model) is None
    assert kernel.shapes == []
