"""The one place that touches what mlx-lm keeps to itself.

mlx-lm's model code runs unchanged, but its attention calls the module-level function
``scaled_dot_product_attention``. That name is swapped, in the modules that the loaded model's
classes come from, for one that sends paged layers to paged attention and everything else on to
the original. Beside it only one name of foreign code is replaced: `backend` explains ``nn.silu``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TypeAlias

from ..backend import mx  # first: mlx_lm below loads mlx

# isort: split
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

from ..cache.kv_layout import KVLayout, LayerKind, LayerSpec
from ..errors import UnsupportedFeatureError
from .layer_cache import PagedLayerCache, WindowMask

# An mlx-lm model: called with token ids ``[batch, length]`` and a list of caches.
Model: TypeAlias = Any

_NAME = "scaled_dot_product_attention"


def new_prompt_cache(model: Model) -> list[Any]:
    """mlx-lm's own cache objects for one sequence."""
    return list(make_prompt_cache(model))


def describe_layout(model: Model) -> tuple[KVLayout, mx.Dtype]:
    """Find out what each layer keeps by running two tokens through mlx-lm's own caches.

    Returns:
        The layout, and the dtype of keys and values.
    """
    caches = new_prompt_cache(model)
    mx.eval(model(mx.array([[0, 0]]), cache=caches))
    specs = [_layer_spec(cache) for cache in caches]
    dtypes = {cache.keys.dtype for cache in caches if _is_paged(cache) and cache.keys is not None}
    if len(dtypes) != 1:
        specs = [LayerSpec(kind=LayerKind.OPAQUE) for _ in specs]
    return KVLayout(specs), dtypes.pop() if dtypes else mx.float32


def install_paged_attention(model: Model) -> None:
    """Let the model's attention find paged layers. Harmless when called twice."""
    for name in {type(module).__module__ for module in model.modules()}:
        module = sys.modules[name]
        original = getattr(module, _NAME, None)
        if original is not None and not hasattr(original, "original"):
            setattr(module, _NAME, _Dispatch(original))


class _Dispatch:
    """Has mlx-lm's signature; adds the paged case."""

    def __init__(self, original: Any) -> None:
        self.original = original

    def __call__(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        cache: Any,
        scale: float,
        mask: Any,
        sinks: mx.array | None = None,
    ) -> mx.array:
        if isinstance(cache, PagedLayerCache):
            return cache.attend(queries, keys, values, scale=scale, mask=mask, sinks=sinks)
        if isinstance(mask, WindowMask):
            raise UnsupportedFeatureError("layers share the keys and values of another layer")
        out: mx.array = self.original(
            queries, keys, values, cache=cache, scale=scale, mask=mask, sinks=sinks
        )
        return out


def _is_paged(cache: Any) -> bool:
    # Exact types: a subclass may keep something else beside keys and values.
    if type(cache) is RotatingKVCache:
        return bool(cache.keep == 0)
    return type(cache) is KVCache


def _layer_spec(cache: Any) -> LayerSpec:
    if not _is_paged(cache) or cache.keys is None:
        return LayerSpec(kind=LayerKind.OPAQUE)
    _, heads, _, key_dim = cache.keys.shape
    rotating = type(cache) is RotatingKVCache
    return LayerSpec(
        kind=LayerKind.SLIDING if rotating else LayerKind.FULL,
        num_kv_heads=heads,
        key_dim=key_dim,
        value_dim=cache.values.shape[3],
        item_bytes=cache.keys.dtype.size,
        window=cache.max_size if rotating else None,
    )


def reference_logits(model: Model, chunks: Sequence[Sequence[int]]) -> mx.array:
    """Logits of the last token, computed with mlx-lm's own caches, chunk by chunk: ``[vocab]``."""
    caches = new_prompt_cache(model)
    logits = None
    for chunk in chunks:
        logits = model(mx.array([list(chunk)]), cache=caches)
        mx.eval(logits)
    assert logits is not None, "no chunks given"
    last: mx.array = logits[0, -1]
    return last
