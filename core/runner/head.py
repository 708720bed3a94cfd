"""A model's last layer, told to work out the logits of some rows only.

A step runs many tokens and draws few: without this, a prefill chunk multiplies every hidden state
with the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from ..backend import mx  # first: what is below loads mlx

# isort: split
from mlx.nn.layers.embedding import Embedding
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.quantized import QuantizedEmbedding, QuantizedLinear

from .model_adapter import Model

# Which layer it is if several are as wide as the vocabulary.
_LINEAR_NAME = "lm_head"
_EMBEDDING_NAME = "embed_tokens"


class Head:
    """The layer that makes logits. It works as before unless rows are selected.

    Attributes:
        path: Its place in the model.
    """

    def __init__(self, path: str, layer: Any, method: str) -> None:
        self.path = path
        self._index: mx.array | None = None
        self._seen: list[mx.array] | None = None
        stock = type(layer)
        multiply = getattr(stock, method)

        self._multiply = partial(multiply, layer)

        def multiply_selected(layer: Any, x: mx.array) -> Any:
            if self._seen is not None:
                self._seen.append(x)
            if self._index is not None:
                x = x.reshape(-1, x.shape[-1])[self._index][:, None]
            return multiply(layer, x)

        layer.__class__ = type(f"Selecting{stock.__name__}", (stock,), {method: multiply_selected})

    def logits(self, hidden: mx.array) -> mx.array:
        """Of hidden states, ``[..., dims]``."""
        out: mx.array = self._multiply(hidden)
        return out

    @contextmanager
    def watch(self) -> Iterator[list[mx.array]]:
        """Collect what the layer is given while a graph is built here, selected or not."""
        self._seen = []
        try:
            yield self._seen
        finally:
            self._seen = None

    @contextmanager
    def select(self, index: mx.array) -> Iterator[None]:
        """Have the model return logits ``[len(index), 1, vocab]`` while its graph is built here.

        Args:
            index: Rows, of the hidden states taken as ``[tokens, dims]``.
        """
        self._index = index
        try:
            yield
        finally:
            self._index = None


def find_head(model: Model, vocab_size: int) -> Head | None:
    """Find the head by its width, as an own layer or as the tied embedding.

    It is taken from what the model consists of, not from what it does: check that a call with
    rows selected returns these rows' logits. Call it after all other changes of layers' classes.

    Returns:
        ``None`` if no layer is that wide, or several are and none has the usual name.
    """
    for kinds, name, method in (
        ((Linear, QuantizedLinear), _LINEAR_NAME, "__call__"),
        ((Embedding, QuantizedEmbedding), _EMBEDDING_NAME, "as_linear"),
    ):
        found = {
            path: module
            for path, module in model.named_modules()
            if isinstance(module, kinds) and module.weight.shape[0] == vocab_size
        }
        if found:
            path = _only(list(found), name)
            return None if path is None else Head(path, found[path], method)
    return None


def find_embedding(model: Model, vocab_size: int) -> Callable[[mx.array], mx.array] | None:
    """The layer that embeds tokens; ``None`` if that is not clear."""
    found = [
        module
        for _, module in model.named_modules()
        if isinstance(module, (Embedding, QuantizedEmbedding))
        and module.weight.shape[0] == vocab_size
    ]
    return found[0] if len(found) == 1 else None


def _only(paths: Sequence[str], name: str) -> str | None:
    if len(paths) > 1:
        paths = [path for path in paths if path.rpartition(".")[2] == name]
    return paths[0] if len(paths) == 1 else None
