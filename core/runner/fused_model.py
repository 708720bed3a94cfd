"""Has kernels do what MLX's operations do one by one in a model's steps of rows.

mlx-lm's code stays as it is. While the graph of such a step is built, joined layers give it parts
(`head_part`) and embeddings a stream (`residual`), and the modules that these pass through, norms
and rotary embeddings, get a subclass that knows them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from ..backend import mx  # first: what is below loads mlx

# isort: split
from mlx.nn.layers.base import Module
from mlx.nn.layers.embedding import Embedding
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.normalization import RMSNorm
from mlx.nn.layers.positional_encoding import RoPE
from mlx.nn.layers.quantized import QuantizedEmbedding, QuantizedLinear
from mlx_lm.models.rope_utils import Llama3RoPE

from .head_part import Part
from .joined_linear import LinearGroup
from .layer_cache import PagedLayerCache
from .model_adapter import Model, reference_logits
from .residual import Stream

logger = logging.getLogger(__name__)

_NAMES = ("q_proj", "k_proj", "v_proj")
# Of the largest number: some roundings.
_TOLERANCE = {mx.float32: 5e-3, mx.float16: 1e-2, mx.bfloat16: 5e-2}


class FusedModel:
    """Calls a model, with stand-ins from what gives them: joint products and embeddings."""

    def __init__(self, model: Model, givers: Sequence[Any]) -> None:
        self._model = model
        self._givers = givers

    def __call__(self, tokens: mx.array, *, cache: Sequence[Any]) -> mx.array:
        """As the model."""
        takes_parts = any(isinstance(it, PagedLayerCache) and it.takes_parts for it in cache)
        with _giving(self._givers if takes_parts else ()):
            logits: mx.array = self._model(tokens, cache=cache)
        return logits


@contextmanager
def _giving(givers: Sequence[Any]) -> Iterator[None]:
    for giver in givers:
        giver.gives_parts = True
    try:
        yield
    finally:
        for giver in givers:
            giver.gives_parts = False


def fuse(model: Model, groups: Sequence[LinearGroup]) -> Model:
    """Find what can stand in for arrays in a model's code.

    Attention is taken from what it consists of, not from what it does: check that steps of rows
    give the same logits.

    Returns:
        What is called in the model's place; the model itself if nothing was found.
    """
    modules = dict(model.named_modules())
    givers: list[Any] = [g.product for g in groups if _can_be_parts(g, modules)]
    for module in modules.values():
        module.__class__ = _KNOWING.get(type(module), type(module))
    embeddings = [it for it in modules.values() if isinstance(it, (Embedding, QuantizedEmbedding))]
    for embedding in embeddings:
        if not hasattr(embedding, "gives_parts"):
            embedding.__class__ = _giving_streams(type(embedding))
    if _can_stream(model, embeddings):
        givers += embeddings
    logger.debug("stand-ins from %d modules", len(givers))
    return FusedModel(model, givers) if givers else model


def _can_be_parts(group: LinearGroup, modules: Mapping[str, Any]) -> bool:
    """Whether these are the projections of an attention module whose other children know parts."""
    parents, names = zip(*(path.rpartition(".")[::2] for path in group.paths), strict=True)
    children = [it for it in modules[parents[0]].values() if isinstance(it, Module)]
    others = {type(it) for it in children if not isinstance(it, (Linear, QuantizedLinear))}
    return names == _NAMES and others <= {*_KNOWING, *_KNOWING.values()}


def _can_stream(model: Model, embeddings: Sequence[Any]) -> bool:
    """Try it on two tokens. Does not raise."""
    # The model's code runs with objects that it was not written for: anything may come.
    try:
        want = reference_logits(model, [[0, 1]])
        with _giving(embeddings):
            have = reference_logits(model, [[0, 1]])
        error = float(mx.abs(have.astype(mx.float32) - want.astype(mx.float32)).max())
        # Comparing this way round lets no NaN pass.
        if error <= _TOLERANCE[want.dtype] * float(mx.abs(want).max()):
            return True
        logger.warning("additions and norms are left to mlx: off by %.1e", error)
    except Exception as error:
        logger.debug("no stream: %s", error)
    return False


def _knowing(stock: Any) -> type:
    def call(module: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        run = partial(stock.__call__, module)
        if not isinstance(x, (Part, Stream)):
            return run(x, *args, **kwargs)
        if stock is RMSNorm:
            return x.normalised(module, run)
        positions = args[0] if args else kwargs.get("offset")
        return x.rotated(module, positions, lambda array: run(array, *args, **kwargs))

    return type(f"Fused{stock.__name__}", (stock,), {"__call__": call})


def _giving_streams(stock: Any) -> type:
    def call(module: Any, x: mx.array) -> Any:
        out = stock.__call__(module, x)
        return Stream(out) if module.gives_parts else out

    return type(f"Fused{stock.__name__}", (stock,), {"__call__": call, "gives_parts": False})


_KNOWING: dict[type, type] = {it: _knowing(it) for it in (RMSNorm, RoPE, Llama3RoPE)}
