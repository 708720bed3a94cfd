"""The per-layer object that a model's attention is handed in place of mlx-lm's own cache.

Models ask a cache three things: ``offset`` for their position encoding, ``update_and_fetch`` and
``make_mask``; then they call attention with it. The object lives for one forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..backend import mx
from ..cache.kv_store import KVStore
from ..errors import UnsupportedFeatureError
from .attention import chunk_attention, paged_attention, with_prefix
from .forward_batch import ForwardBatch


@dataclass(frozen=True, slots=True)
class WindowMask:
    """Stands for a sliding-window mask that a model asked for; attention applies it."""

    window: int


class PagedLayerCache:
    """One layer's view of the KV store during one forward pass."""

    def __init__(self, store: KVStore, layer: int, batch: ForwardBatch) -> None:
        self._store = store
        self._layer = layer
        self._batch = batch
        self._new: tuple[mx.array, mx.array] | None = None

    @property
    def offset(self) -> mx.array | int:
        """Position of the first new token: an int, or ``[rows]``."""
        return self._batch.offset

    def make_mask(
        self, length: int, window_size: int | None = None, return_array: bool = False
    ) -> WindowMask | None:
        """What attention must mask beyond causality.

        Raises:
            UnsupportedFeatureError: The model wants to work on the mask itself.
        """
        if return_array and length > 1:
            raise UnsupportedFeatureError("the model computes on its attention mask")
        return None if window_size is None else WindowMask(window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Store new keys and values, ``[batch, num_kv_heads, length, dim]``.

        Returns them unchanged: what a model passes on to attention must be what it got.
        """
        group = self._batch.groups[self._store.group_of_layer[self._layer]]
        self._store.write(self._layer, keys, values, group.slots)
        self._new = (keys, values)
        return keys, values

    def attend(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        *,
        scale: float,
        mask: object,
        sinks: mx.array | None,
    ) -> mx.array:
        """Attention of ``[batch, num_heads, length, dim]`` queries over everything stored.

        Raises:
            UnsupportedFeatureError: The model changed keys or values, or brought its own mask.
        """
        if self._new is None or keys is not self._new[0] or values is not self._new[1]:
            raise UnsupportedFeatureError("the model changes keys or values behind the cache")
        if not (mask is None or isinstance(mask, WindowMask)):
            raise UnsupportedFeatureError("the model brings its own attention mask")
        index = self._store.group_of_layer[self._layer]
        window = self._store.layout.groups[index].window
        if isinstance(mask, WindowMask) and mask.window != window:
            raise UnsupportedFeatureError("the model's mask and cache disagree about the window")
        group = self._batch.groups[index]
        if group.rows is not None:
            return paged_attention(
                queries,
                self._store.keys(self._layer),
                self._store.values(self._layer),
                group.rows,
                scale=scale,
                sinks=sinks,
            )
        assert group.prefix is not None
        if group.prefix.blocks is not None:
            gathered = self._store.gather(self._layer, group.prefix.blocks)
            keys, values = with_prefix(group.prefix, gathered, keys, values)
        else:
            # Nothing here reads the store, but the write must not be put off to a later pass.
            written = [self._store.keys(self._layer), self._store.values(self._layer)]
            keys, values = mx.depends([keys, values], written)
        return chunk_attention(
            queries,
            keys,
            values,
            prefix_length=group.prefix.num_tokens,
            window=window,
            scale=scale,
            sinks=sinks,
        )


def make_layer_caches(store: KVStore, batch: ForwardBatch) -> list[PagedLayerCache]:
    """One cache object per layer, for one forward pass."""
    return [PagedLayerCache(store, layer, batch) for layer in range(len(store.layout.layers))]
