"""Logits of some rows, without the others."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_models import FAMILIES, VOCAB_SIZE, TinyFamily, make_tiny_model

from pippin.core.backend import mx
from pippin.core.runner.head import find_head
from pippin.core.runner.linear import install_linear_plans
from pippin.core.runner.linear_plan import LinearTimings

# isort: split
from mlx.nn.layers.base import Module  # noqa: TID251
from mlx.nn.layers.embedding import Embedding  # noqa: TID251
from mlx.nn.layers.linear import Linear  # noqa: TID251
from mlx.nn.layers.quantized import quantize  # noqa: TID251

TOKENS = mx.array([[5, 6, 7, 8, 9]])


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_selected_rows_have_the_logits_that_they_have_among_all(family: TinyFamily) -> None:
    model = make_tiny_model(family).model
    want = model(TOKENS)
    mx.eval(want)
    head = find_head(model, VOCAB_SIZE)
    assert head is not None

    with head.select(mx.array([4, 1, 1])):
        some = model(TOKENS)

    assert some.shape == (3, 1, VOCAB_SIZE)
    assert mx.allclose(some[:, 0], want[0][mx.array([4, 1, 1])], atol=1e-4)
    assert mx.array_equal(model(TOKENS), want)


@pytest.mark.parametrize("family", ["llama-tied", "llama-untied"])
@pytest.mark.parametrize("rows_first", [True, False])
def test_quantised_heads_with_a_plan_select_too(family: str, rows_first: bool) -> None:
    model = make_tiny_model(family).model
    quantize(model, 32, 8)
    tokens = TOKENS.T if rows_first else TOKENS
    want = model(tokens).reshape(5, -1)
    install_linear_plans(
        model, mx.float32, lambda *_: LinearTimings({1: 9.0, 8: 1.0}, padded={1: (8, 1.0)})
    )
    head = find_head(model, VOCAB_SIZE)
    assert head is not None

    with head.select(mx.array([0, 3])):
        some = model(tokens)

    assert mx.allclose(some[:, 0], want[mx.array([0, 3])], atol=1e-4)


def test_a_selection_ends_when_building_the_graph_fails() -> None:
    model = make_tiny_model("qwen3").model
    head = find_head(model, VOCAB_SIZE)
    assert head is not None

    with pytest.raises(ZeroDivisionError), head.select(mx.array([0])):
        raise ZeroDivisionError

    assert model(TOKENS).shape == (1, 5, VOCAB_SIZE)


class Wrapper(Module):
    """Stands for a model with parts of a given width."""

    def __init__(self, **parts: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.language_model = Module()  # type: ignore[no-untyped-call]
        for name, part in parts.items():
            setattr(self.language_model, name, part)


@pytest.mark.parametrize(
    ("parts", "path"),
    [
        ({"lm_head": Linear(8, 50), "embed_tokens": Embedding(50, 8)}, "language_model.lm_head"),
        ({"output": Linear(8, 50)}, "language_model.output"),
        ({"lm_head": Linear(50, 50), "o_proj": Linear(50, 50)}, "language_model.lm_head"),
        ({"q_proj": Linear(50, 50), "o_proj": Linear(50, 50)}, None),
        ({"wte": Embedding(50, 8), "wpe": Embedding(60, 8)}, "language_model.wte"),
        (
            {"embed_tokens": Embedding(50, 8), "embed_tokens_per_layer": Embedding(50, 8)},
            "language_model.embed_tokens",
        ),
        ({"a": Embedding(50, 8), "b": Embedding(50, 8)}, None),
        ({"lm_head": Linear(50, 60)}, None),
    ],
)
def test_the_head_is_as_wide_as_the_vocabulary(parts: dict[str, Any], path: str | None) -> None:
    head = find_head(Wrapper(**parts), 50)

    assert (None if head is None else head.path) == path
