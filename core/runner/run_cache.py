"""What a model's layers are handed for one pass, whatever kind of layer they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..backend import mx  # first: what is below loads mlx

# isort: split
from mlx_lm.models.cache import ArraysCache, CacheList

from ..cache.kv_layout import LayerSpec
from ..errors import UnsupportedFeatureError
from .attention.chunk_attention import causal_mask
from .attention.table_attention import TablePlan
from .forward_batch import PassForm
from .layer_cache import ForwardPass, PagedLayerCache


class PassCaches:
    """The caches of one pass, in the model's own arrangement.

    Attributes:
        caches: What the model is called with.
    """

    def __init__(self, forward: ForwardPass, form: PassForm) -> None:
        layout = forward.store.layout
        states = iter(forward.batch.states)
        self._recurrent: list[tuple[Any, LayerSpec]] = []
        layers: list[Any] = []
        is_new = _first_position(forward, form) == 0
        for index, spec in enumerate(layout.layers):
            if spec.is_paged:
                layers.append(_paged_cache(forward, form, index))
                continue
            cache: Any = ArraysCache(len(spec.states))
            given = [next(states) for _ in spec.states]
            if not is_new:  # to some models, zeros are not the same as nothing
                cache.cache = given
            if forward.batch.run_lengths is not None:
                cache.lengths = forward.batch.run_lengths + 0  # models change it in place
            self._recurrent.append((cache, spec))
            layers.append(cache)
        composite: Any = CacheList
        self.caches = [
            layers[parts] if isinstance(parts, int) else composite(*(layers[i] for i in parts))
            for parts in layout.tree
        ]

    def states(self) -> list[mx.array]:
        """What recurrent layers have left behind, in the order of `ForwardBatch.states`."""
        return [
            _filled(array, state.shape)
            for cache, spec in self._recurrent
            for array, state in zip(cache.cache, spec.states, strict=True)
        ]


def _first_position(forward: ForwardPass, form: PassForm) -> int | None:
    """Position of the first token of the only sequence of a pass; ``None`` if there are more."""
    batch = forward.batch
    if form is PassForm.ALONE and batch.run_start is None:
        return _number(batch.positions)
    return batch.run_start


def _filled(state: mx.array, shape: tuple[int, ...]) -> mx.array:
    """Zeros before the last tokens that a state is made of, if there were fewer than it holds."""
    missing = [full - now for full, now in zip(shape[1:], state.shape[1:], strict=True)]
    return mx.pad(state, [(0, 0), *((count, 0) for count in missing)]) if any(missing) else state


def _paged_cache(forward: ForwardPass, form: PassForm, layer: int) -> PagedLayerCache:
    if form is PassForm.ALONE:
        return AloneLayerCache(forward, layer)
    if form is PassForm.GATHERED:
        return GatheredLayerCache(forward, layer)
    batch = forward.batch
    has_runs = batch.run_start is not None or batch.run_length > 1
    return (RunLayerCache if has_runs else PagedLayerCache)(forward, layer)


class RunLayerCache(PagedLayerCache):
    """For passes of runs, whose tokens the model has in one batch entry each."""

    _given: tuple[Any, Any]

    @property
    def offset(self) -> Any:
        """Position of each run's first token."""
        batch = self._forward.batch
        return batch.starts if batch.run_start is None else batch.run_start

    def update_and_fetch(self, keys: Any, values: Any) -> tuple[Any, Any]:
        """Store new keys and values, ``[runs, num_kv_heads, length, dim]``."""
        super().update_and_fetch(_tokens_first(keys), _tokens_first(values))
        self._given = (keys, values)
        return keys, values

    def attend(self, queries: Any, keys: Any, values: Any, **options: Any) -> mx.array:
        """Attention of ``[runs, num_heads, length, dim]`` queries over everything stored.

        Raises:
            UnsupportedFeatureError: See `PagedLayerCache.attend`.
        """
        assert self._new is not None
        if keys is self._given[0] and values is self._given[1]:
            keys, values = self._new
        attended = super().attend(_tokens_first(queries), keys, values, **options)
        runs, _, length, _ = queries.shape
        return attended.reshape(runs, length, *attended.shape[1::2]).swapaxes(1, 2)


class GatheredLayerCache(PagedLayerCache):
    """Hands the model copies of all that a pass attends to; what it does with them is its own.

    Attributes:
        keys: What `update_and_fetch` returned last, for layers that share it; ``values`` with it.
    """

    keys: Any
    values: Any

    @property
    def offset(self) -> Any:
        """Position of each entry's first token."""
        batch = self._forward.batch
        return batch.starts if batch.run_start is None else batch.run_start

    def make_mask(
        self, length: int, window_size: int | None = None, return_array: bool = False
    ) -> Any:
        """A mask over what `update_and_fetch` is going to return."""
        group = self._group
        window = self._window(window_size)
        if group.rows is not None:
            mask = replace(_plan(group.rows), window=window).mask(self._store.block_size)
            return mask.reshape(-1, self._forward.batch.run_length, mask.shape[-1])[:, None]
        (chunk,) = group.chunks
        num_keys = chunk.num_prefix + chunk.length
        if return_array or (window is not None and num_keys > window):
            return causal_mask(chunk.length, num_keys, window)
        return "causal" if length > 1 else None

    def _window(self, asked: int | None) -> int | None:
        """What to mask; a model may ask for a window over layers that keep everything."""
        kept = self._store.layout.groups[self._group_index].window
        if kept is not None and asked not in (kept, None):
            raise UnsupportedFeatureError("the model's mask and cache disagree about the window")
        return asked if kept is None else kept

    def update_and_fetch(self, keys: Any, values: Any) -> tuple[Any, Any]:
        """Store new keys and values, and return these with all that was stored before."""
        group = self._group
        keys, values = self._after_earlier_layers(keys, values)
        if group.rows is not None:
            super().update_and_fetch(_tokens_first(keys), _tokens_first(values))
            table, length = _plan(group.rows).table, self._forward.batch.run_length
            if length > 1 and self._store.layout.groups[self._group_index].window is not None:
                raise UnsupportedFeatureError("a run's tokens have windows of their own")
            table = table[length - 1 :: length]  # that of a run's last token
            table = table if self._written is None else table + self._written
            rows, width = table.shape
            stored = self._store.keys(self._layer), self._store.values(self._layer)
            self.keys, self.values = (
                array[table]
                .swapaxes(1, 2)
                .reshape(rows, array.shape[1], width * self._store.block_size, array.shape[3])
                .astype(new.dtype)
                for array, new in zip(stored, (keys, values), strict=True)
            )
        else:
            (chunk,) = group.chunks
            mine = keys.swapaxes(0, 2), values.swapaxes(0, 2)
            super().update_and_fetch(*mine)
            self.keys, self.values = self._run(chunk, *mine)
        return self.keys, self.values

    def _after_earlier_layers(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Have the last layer's new arrays depend on all others'.

        A model need not make use of what it is given: an index of few tokens selects them all.
        """
        if values.shape[3] == 0:  # keys alone: an index of them
            if self._group.rows is not None and not isinstance(self, AloneLayerCache):
                raise UnsupportedFeatureError("an index of keys cannot be padded")
            values = keys[..., :1]
        earlier = self._layer - 1
        if self._store.is_written_in_place or earlier not in self._store.group_of_layer:
            return keys, values
        keys, values = mx.depends([keys, values], self._store.layer_arrays(earlier))
        return keys, values

    def keys_and_values(self) -> tuple[Any, Any]:
        """What `update_and_fetch` returned last."""
        return self.keys, self.values

    def attend(self, queries: Any, keys: Any, values: Any, **options: Any) -> mx.array:
        """MLX's own, of whatever the model made of keys and values."""
        return mx.fast.scaled_dot_product_attention(queries, keys, values, **options)


class AloneLayerCache(GatheredLayerCache):
    """The same to the letter as mlx-lm's own: a number for a position, and no padding."""

    @property
    def offset(self) -> Any:
        """Position of the first token."""
        position = _first_position(self._forward, PassForm.ALONE)
        assert position is not None
        return position

    @property
    def start_position(self) -> Any:
        """Position of the first key that is handed out."""
        rows = self._group.rows
        if rows is None:
            return self.offset - self._group.chunks[0].num_prefix
        window = self._store.layout.groups[self._group_index].window
        first = 0 if window is None else self.offset - window + 1
        return max(first, _number(_plan(rows).firsts))

    def maybe_trim_front(self) -> None:
        """What nobody attends to any more is not there."""

    def make_mask(
        self, length: int, window_size: int | None = None, return_array: bool = False
    ) -> Any:
        """See `GatheredLayerCache`; a single token mostly attends to all that it is given."""
        if self._group.rows is None:
            return super().make_mask(length, window_size, return_array)
        window = self._window(window_size)
        num_keys = self.offset + 1 - self.start_position
        return None if window is None or num_keys <= window else causal_mask(1, num_keys, window)

    def update_and_fetch(self, keys: Any, values: Any) -> tuple[Any, Any]:
        """See `GatheredLayerCache`."""
        super().update_and_fetch(keys, values)
        if (rows := self._group.rows) is not None:
            first = _number(_plan(rows).firsts)
            held = slice(self.start_position - first, self.offset + 1 - first)
            self.keys, self.values = self.keys[:, :, held], self.values[:, :, held]
        return self.keys, self.values


def _tokens_first(array: mx.array) -> mx.array:
    """``[tokens, heads, 1, dim]`` of ``[runs, heads, length, dim]``."""
    _, heads, _, dim = array.shape
    return array.swapaxes(1, 2).reshape(-1, heads, 1, dim)


def _number(array: mx.array) -> int:
    number: Any = array.item()
    return int(number)


def _plan(plan: Any) -> TablePlan:
    assert isinstance(plan, TablePlan)
    return plan
