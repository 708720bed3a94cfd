"""The one place that touches what mlx-lm keeps to itself.

mlx-lm's model code runs unchanged, but its attention calls the module-level function
``scaled_dot_product_attention``. That name is swapped, in the modules that the loaded model's
classes come from, for one that sends paged layers to paged attention and everything else on to
the original. Beside it only one name of foreign code is replaced: `backend` explains ``nn.silu``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

from ..backend import mx  # first: mlx_lm below loads mlx

# isort: split
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    KVCache,
    RotatingKVCache,
    make_prompt_cache,
)

from ..cache.kv_layout import KVLayout, LayerKind, LayerSpec, PartTree, StateSpec
from ..cache.vector_format import layer_formats
from ..errors import UnsupportedFeatureError
from .layer_cache import PagedLayerCache, WindowMask

# An mlx-lm model: called with token ids ``[batch, length]`` and a list of caches.
Model: TypeAlias = Any

_NAME = "scaled_dot_product_attention"
_NUM_TRIED = 16
# A chunk's first token attends to itself alone, and its last one to a window of the chunk's size.
_WINDOWS = {RotatingKVCache: "max_size", ChunkedKVCache: "chunk_size"}


def new_prompt_cache(model: Model) -> list[Any]:
    """mlx-lm's own cache objects for one sequence."""
    return list(make_prompt_cache(model))


def describe_layout(model: Model) -> tuple[KVLayout, mx.Dtype]:
    """Find out what each layer keeps by running some tokens through mlx-lm's own caches.

    Returns:
        The layout, and the dtype of keys and values.
    """
    caches = new_prompt_cache(model)
    # The last tokens that a state is made of must all be there.
    mx.eval(model(mx.zeros((1, _NUM_TRIED), mx.int32), cache=caches))
    before, _ = _specs(caches)
    mx.eval(model(mx.array([[0]]), cache=caches))
    specs, tree = _specs(caches)
    # What grows as the text does is no state.
    for index, (spec, earlier) in enumerate(zip(specs, before, strict=True)):
        if [x.shape for x in spec.states] != [x.shape for x in earlier.states]:
            specs[index] = LayerSpec(kind=LayerKind.OPAQUE)
    parts = [part for cache in caches for part in _parts(cache)]
    dtypes = {part.keys.dtype for part in parts if _is_paged(part) and part.keys is not None}
    if len(dtypes) > 1:
        specs = [LayerSpec(kind=LayerKind.OPAQUE) for _ in specs]
    return KVLayout(specs, tree), dtypes.pop() if dtypes else mx.float32


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
    return type(cache) in (KVCache, ChunkedKVCache)


def _parts(cache: Any) -> list[Any]:
    return list(cache.caches) if type(cache) is CacheList else [cache]


def _specs(caches: Sequence[Any]) -> tuple[list[LayerSpec], list[PartTree]]:
    specs, tree = list[LayerSpec](), list[PartTree]()
    for cache in caches:
        first = len(specs)
        specs += map(_layer_spec, _parts(cache))
        is_composite = type(cache) is CacheList
        tree.append(tuple(range(first, len(specs))) if is_composite else first)
    return specs, tree


def _layer_spec(cache: Any) -> LayerSpec:
    if type(cache) is ArraysCache:
        arrays: list[Any] = cache.cache
        if not all(isinstance(array, mx.array) for array in arrays):
            return LayerSpec(kind=LayerKind.OPAQUE)
        states = [
            StateSpec(tuple(array.shape), str(array.dtype).rpartition(".")[2], array.dtype.size)
            for array in arrays
        ]
        return LayerSpec(kind=LayerKind.RECURRENT, states=tuple(states))
    if not _is_paged(cache) or cache.keys is None:
        return LayerSpec(kind=LayerKind.OPAQUE)
    _, heads, _, key_dim = cache.keys.shape
    window = getattr(cache, _WINDOWS[type(cache)]) if type(cache) in _WINDOWS else None
    return LayerSpec(
        kind=LayerKind.FULL if window is None else LayerKind.SLIDING,
        num_kv_heads=heads,
        key_dim=key_dim,
        value_dim=max(1, cache.values.shape[3]),  # the store has no arrays of nothing
        item_bytes=cache.keys.dtype.size,
        window=window,
    )


def reference_logits(
    model: Model, chunks: Sequence[Sequence[int]], layout: KVLayout | None = None
) -> mx.array:
    """Logits of the last token, computed with mlx-lm's own caches, chunk by chunk: ``[vocab]``.

    Where `layout` quantises keys and values, the caches are given what is left of them.
    """
    caches = new_prompt_cache(model)
    parts = [part for cache in caches for part in _parts(cache)]
    for part, spec in zip(parts, () if layout is None else layout.layers, strict=False):
        if spec.is_quantized:
            part.update_and_fetch = partial(_update_rounded, part.update_and_fetch, spec)
    logits = None
    for chunk in filter(None, chunks):
        logits = model(mx.array([list(chunk)]), cache=caches)
        mx.eval(logits)
    assert logits is not None, "no chunks given"
    last: mx.array = logits[0, -1]
    return last


def _update_rounded(
    update: Callable[..., Any], spec: LayerSpec, keys: mx.array, values: mx.array
) -> Any:
    key_format, value_format = layer_formats(spec, keys.dtype)
    return update(key_format.rounded(keys), value_format.rounded(values))
