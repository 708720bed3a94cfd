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
from .head_part import Part, plain, write_parts


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
        # What shows that layers have been written in place: of each one what the write returned,
        # or, where keys and values went with the queries, those of the last such layer.
        self.writes: list[mx.array] = []
        self.queries: mx.array | None = None

    @property
    def written(self) -> list[mx.array]:
        """What must be evaluated for the store to hold the batch's tokens, if written in place."""
        return self.writes if self.queries is None else [*self.writes, self.queries]


class PagedLayerCache:
    """One layer's view of the KV store during one forward pass."""

    def __init__(self, forward: ForwardPass, layer: int) -> None:
        self._forward = forward
        self._store = forward.store
        self._layer = layer
        self._group_index = self._store.group_of_layer[layer]
        self._new: tuple[mx.array | Part, mx.array | Part] | None = None
        self._written: mx.array | None = None

    @property
    def offset(self) -> mx.array:
        """Position of each token, ``[tokens]``."""
        return self._forward.batch.positions

    @property
    def takes_parts(self) -> bool:
        """Whether queries, keys and values may be parts."""
        chunks = any(group.chunks for group in self._forward.batch.groups)
        return self._store.is_written_in_place and not chunks

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

    def update_and_fetch(self, keys: Any, values: Any) -> tuple[Any, Any]:
        """Store new keys and values, ``[tokens, num_kv_heads, 1, dim]``; parts, when they attend.

        Returns them unchanged: what a model passes on to attention must be what it got.
        """
        self._new = (keys, values)
        if not (isinstance(keys, Part) and isinstance(values, Part)):
            self._new = (plain(keys), plain(values))
            self._write(*self._new)
        return self._new

    def _write(self, keys: mx.array, values: mx.array) -> None:
        slots = self._forward.slots[self._group_index]
        self._written = self._store.write(self._layer, keys, values, slots)
        if self._written is not None:
            self._forward.writes.append(self._written)

    def attend(
        self,
        queries: Any,
        keys: Any,
        values: Any,
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
        queries, keys, values = self._arrays(queries, keys, values)
        group = self._group
        reads_store = group.rows is not None or any(
            chunk.blocks is not None for chunk in group.chunks
        )
        if not reads_store and self._written is None:
            # Nothing here reads the store, but the write must not be put off to a later pass.
            keys, values = mx.depends([keys, values], self._store.layer_arrays(self._layer))
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

    def _arrays(self, queries: Any, keys: Any, values: Any) -> tuple[mx.array, Any, Any]:
        """Make arrays of parts and write keys and values if that was put off.

        In a batch of rows attention has no use for keys and values beside those in the store.
        """
        if not isinstance(keys, Part):
            return plain(queries), keys, values
        if not self._store.layout.layers[self._layer].is_quantized:
            stores: Any = self._store.keys(self._layer), self._store.values(self._layer)
            made = write_parts(queries, keys, values, self.offset, self._group.slots, *stores)
            if made is not None:
                self._written = self._forward.queries = made
                return made, keys, values
        keys, values = plain(keys), plain(values)
        self._write(keys, values)
        return plain(queries), keys, values

    def _run(self, chunk: ChunkPlan, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Prefix and chunk in one run, ``[1, num_kv_heads, tokens, dim]``.

        Quantised or not, a chunk's own keys are what later tokens will find: else an answer would
        depend on how its prompt was cut.
        """
        if chunk.blocks is None:
            keys, values = self._store.as_read(self._layer, keys, values)
            return keys.swapaxes(0, 2), values.swapaxes(0, 2)
        count = chunk.num_prefix + chunk.length
        blocks = chunk.blocks if self._written is None else chunk.blocks + self._written
        gathered = self._store.gather(self._layer, blocks)
        run_keys, run_values = (array[:, :, :count] for array in gathered)
        return run_keys.astype(keys.dtype), run_values.astype(values.dtype)
