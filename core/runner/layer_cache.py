"""The per-layer object that a model's attention is handed in place of mlx-lm's own cache.

Models ask a cache three things: ``offset`` for their position encoding, ``update_and_fetch`` and
``make_mask``; then they call attention with it. The object lives for one forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..backend import mx
from ..cache.kv_store import KVStore, TokenSlots
from ..errors import UnsupportedFeatureError
from .attention.chunk_attention import chunk_attention
from .attention.row_attention import RowAttention
from .forward_batch import ChunkPlan, ForwardBatch, GroupBatch


@dataclass(frozen=True, slots=True)
class WindowMask:
    """Stands for a sliding-window mask that a model asked for; attention applies it."""

    window: int


class ForwardPass:
    """What the layers of one forward pass share."""

    def __init__(self, store: KVStore, attention: RowAttention[Any], batch: ForwardBatch) -> None:
        self.store = store
        self.attention = attention
        self.batch = batch
        self.slots = [TokenSlots(group.slots, store.block_size) for group in batch.groups]
        # Of layers that are written in place, what shows that they have been.
        self.written: list[mx.array] = []

    def layer_caches(self) -> list[PagedLayerCache]:
        """One cache object per layer."""
        return [PagedLayerCache(self, layer) for layer in range(len(self.store.layout.layers))]


class PagedLayerCache:
    """One layer's view of the KV store during one forward pass."""

    def __init__(self, forward: ForwardPass, layer: int) -> None:
        self._forward = forward
        self._store = forward.store
        self._layer = layer
        self._group_index = self._store.group_of_layer[layer]
        self._new: tuple[mx.array, mx.array] | None = None
        self._written: mx.array | None = None

    @property
    def offset(self) -> mx.array:
        """Position of each token, ``[tokens]``."""
        return self._forward.batch.positions

    @property
    def _group(self) -> GroupBatch:
        return self._forward.batch.groups[self._group_index]

    def make_mask(
        self, length: int, window_size: int | None = None, return_array: bool = False
    ) -> WindowMask | None:
        """What attention must mask beyond causality.

        Raises:
            UnsupportedFeatureError: The model wants to work on the mask itself.
        """
        if return_array:
            raise UnsupportedFeatureError("the model computes on its attention mask")
        return None if window_size is None else WindowMask(window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Store new keys and values, ``[tokens, num_kv_heads, 1, dim]``.

        Returns them unchanged: what a model passes on to attention must be what it got.
        """
        slots = self._forward.slots[self._group_index]
        self._written = self._store.write(self._layer, keys, values, slots)
        if self._written is not None:
            self._forward.written.append(self._written)
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
        """Attention of ``[tokens, num_heads, 1, dim]`` queries over everything stored.

        Raises:
            UnsupportedFeatureError: The model changed keys or values, or brought its own mask.
        """
        if self._new is None or keys is not self._new[0] or values is not self._new[1]:
            raise UnsupportedFeatureError("the model changes keys or values behind the cache")
        if not (mask is None or isinstance(mask, WindowMask)):
            raise UnsupportedFeatureError("the model brings its own attention mask")
        window = self._store.layout.groups[self._group_index].window
        if isinstance(mask, WindowMask) and mask.window != window:
            raise UnsupportedFeatureError("the model's mask and cache disagree about the window")
        group = self._group
        reads_store = group.rows is not None or any(
            chunk.blocks is not None for chunk in group.chunks
        )
        if not reads_store and self._written is None:
            # Nothing here reads the store, but the write must not be put off to a later pass.
            written = [self._store.keys(self._layer), self._store.values(self._layer)]
            keys, values = mx.depends([keys, values], written)
        parts = []
        num_rows = self._forward.batch.num_rows
        if group.rows is not None:
            attended = self._forward.attention.attend(
                queries[:num_rows] if group.chunks else queries,
                self._store.keys(self._layer),
                self._store.values(self._layer),
                group.rows,
                scale=scale,
                sinks=sinks,
                written=self._written,
            )
            parts.append(attended)
        for chunk in group.chunks:
            own = slice(chunk.start, chunk.start + chunk.length)
            run_keys, run_values = self._run(chunk, keys[own], values[own])
            attended = chunk_attention(
                queries[own].swapaxes(0, 2),
                run_keys,
                run_values,
                prefix_length=chunk.num_prefix,
                window=window,
                scale=scale,
                sinks=sinks,
            )
            parts.append(attended.swapaxes(0, 2))
        return parts[0] if len(parts) == 1 else mx.concatenate(parts)

    def _run(self, chunk: ChunkPlan, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Prefix and chunk in one run, ``[1, num_kv_heads, tokens, dim]``."""
        if chunk.blocks is None:
            return keys.swapaxes(0, 2), values.swapaxes(0, 2)
        count = chunk.num_prefix + chunk.length
        blocks = chunk.blocks if self._written is None else chunk.blocks + self._written
        gathered = self._store.gather(self._layer, blocks)
        run_keys, run_values = (array[:, :, :count] for array in gathered)
        return run_keys.astype(keys.dtype), run_values.astype(values.dtype)
