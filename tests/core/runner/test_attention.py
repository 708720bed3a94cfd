"""Attention over the store against plain float64 numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest

from pippin.core.backend import mx
from pippin.core.cache.block_table import BlockTable
from pippin.core.cache.kv_layout import KVLayout, LayerGroup, LayerKind, LayerSpec
from pippin.core.cache.kv_store import KVStore, TokenSlots
from pippin.core.runner.attention import chunk_attention as chunk_module
from pippin.core.runner.attention.chunk_attention import chunk_attention, length_bucket
from pippin.core.runner.attention.pair_attention import PairAttention
from pippin.core.runner.attention.row_attention import RowAttention
from pippin.core.runner.attention.table_attention import TableAttention
from pippin.core.runner.batch_builder import BatchBuilder, Run

Array = np.ndarray[Any, np.dtype[np.float64]]
# Of values of width 1: the rounding of the result plus that of the weights.
_TOLERANCE = {mx.float32: 1e-5, mx.float16: 4e-3, mx.bfloat16: 3e-2}


def reference(
    queries: Array, keys: Array, values: Array, *, scale: float, sinks: Array | None
) -> Array:
    """One position: ``[heads, key_dim]`` over ``[kv_heads, n, dim]``, all of it visible."""
    group = len(queries) // len(keys)
    out = []
    for head, query in enumerate(queries):
        scores = keys[head // group] @ query * scale
        peak = scores.max() if sinks is None else max(scores.max(), sinks[head])
        weights = np.exp(scores - peak)
        total = weights.sum() + (0.0 if sinks is None else np.exp(sinks[head] - peak))
        out.append(weights @ values[head // group] / total)
    return np.stack(out)


class Shape(NamedTuple):
    """Sizes of one attention layer."""

    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    block_size: int


SHAPES = (
    Shape(4, 4, 16, 16, 8),
    Shape(8, 2, 32, 32, 16),
    Shape(6, 1, 24, 16, 4),
    Shape(4, 2, 16, 40, 32),
    Shape(3, 3, 80, 80, 1),
)


@dataclass
class Case:
    """A store with some sequences in it, each a run of tokens in scattered blocks."""

    keys: list[Array]  # per sequence, [kv_heads, tokens, dim]
    values: list[Array]
    store_keys: mx.array
    store_values: mx.array
    tables: list[BlockTable]
    group: LayerGroup

    def attend(
        self,
        attention: RowAttention[Any],
        queries: mx.array,
        *,
        values: mx.array | None = None,
        scale: float,
        sinks: mx.array | None = None,
    ) -> mx.array:
        """The newest token of every sequence."""
        positions = [keys.shape[1] - 1 for keys in self.keys]
        return attention.attend(
            queries,
            self.store_keys,
            self.store_values if values is None else values,
            attention.plan(self.tables, positions, self.group),
            scale=scale,
            sinks=sinks,
        )


def attentions(dtype: mx.Dtype) -> list[RowAttention[Any]]:
    """Those that serve a dtype."""
    return [TableAttention(), PairAttention()] if dtype == mx.float32 else [TableAttention()]


def make_case(
    rng: np.random.Generator,
    lengths: Sequence[int],
    shape: Shape,
    *,
    dtype: mx.Dtype,
    window: int | None = None,
    filler: float = 1e4,
) -> Case:
    """Slots that no token stands in hold ``filler``."""
    size = shape.block_size
    group = LayerGroup(layers=(0,), window=window, bytes_per_token=1)
    per_row = [-(-length // size) for length in lengths]
    num_blocks = sum(per_row) + 3
    order = rng.permutation(num_blocks).tolist()
    dims = (shape.key_dim, shape.value_dim)
    store = [np.full((num_blocks, shape.kv_heads, size, dim), filler) for dim in dims]
    case = Case([], [], mx.array(0), mx.array(0), [], group)
    for length, count in zip(lengths, per_row, strict=True):
        ids = [order.pop() for _ in range(count)]
        first = group.first_needed(length - 1) // size
        table = BlockTable(size)
        table.append(ids)
        table.drop_before(first)
        case.tables.append(table)
        for kept, target, dim in zip((case.keys, case.values), store, dims, strict=True):
            tokens = rounded(rng.normal(size=(shape.kv_heads, length, dim)), dtype)
            kept.append(tokens)
            for position in range(first * size, length):
                target[ids[position // size], :, position % size] = tokens[:, position]
    case.store_keys, case.store_values = (mx.array(array).astype(dtype) for array in store)
    return case


def rounded(array: Array, dtype: mx.Dtype) -> Array:
    """The nearest numbers that the dtype has."""
    return as_float64(mx.array(array.astype(np.float32)).astype(dtype))


def as_float64(array: mx.array) -> Array:
    return np.array(array.astype(mx.float32)).astype(np.float64)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("window", [None, 1, 5, 16, 17])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_rows_attend_to_their_own_tokens(
    dtype: mx.Dtype, window: int | None, *, with_sinks: bool
) -> None:
    rng = np.random.default_rng(0 if window is None else window)
    for shape in SHAPES:
        heads, _, key_dim, value_dim, size = shape
        lengths = [1, 70, *rng.integers(1, 60, size=5).tolist(), size, 2 * size + 1]
        case = make_case(rng, lengths, shape, dtype=dtype, window=window)
        queries = rounded(rng.normal(size=(len(lengths), heads, key_dim)), dtype)
        sinks = rng.normal(size=heads) if with_sinks else None
        scale = 1.5 / np.sqrt(key_dim)

        for attention in attentions(dtype):
            got = case.attend(
                attention,
                mx.array(queries[:, :, None].astype(np.float32)).astype(dtype),
                scale=scale,
                sinks=None if sinks is None else mx.array(sinks.astype(np.float32)).astype(dtype),
            )

            assert got.dtype == dtype
            assert got.shape == (len(lengths), heads, 1, value_dim)
            known_sinks = None if sinks is None else rounded(sinks, dtype)
            for row, length in enumerate(lengths):
                first = 0 if window is None else max(0, length - window)
                want = reference(
                    queries[row],
                    case.keys[row][:, first:],
                    case.values[row][:, first:],
                    scale=scale,
                    sinks=known_sinks,
                )
                error = np.abs(as_float64(got[row, :, 0]) - want).max()
                assert error < _TOLERANCE[dtype] * max(1.0, np.abs(want).max())


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_what_is_not_a_number_stays_in_its_own_row(dtype: mx.Dtype) -> None:
    rng = np.random.default_rng(5)
    lengths = [9, 30, 3, 17]
    case = make_case(rng, lengths, Shape(4, 2, 16, 16, 8), dtype=dtype, filler=0.0)
    queries = mx.array(rng.normal(size=(4, 4, 1, 16)).astype(np.float32)).astype(dtype)
    broken = np.array(case.store_values.astype(mx.float32))
    for block in case.tables[1].block_ids:
        broken[block] = np.nan
    unused = set(range(len(broken))) - {i for table in case.tables for i in table.block_ids}
    broken[list(unused)] = np.inf
    for attention in attentions(dtype):
        healthy = case.attend(attention, queries, scale=0.25)

        got = case.attend(attention, queries, values=mx.array(broken).astype(dtype), scale=0.25)

        assert np.isnan(as_float64(got[1])).all()
        others = [0, 2, 3]
        assert np.array_equal(as_float64(got)[others], as_float64(healthy)[others])


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("window", [None, 1, 7, 16, 150])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_a_chunk_attends_to_its_prefix_and_to_itself(
    dtype: mx.Dtype, window: int | None, *, with_sinks: bool
) -> None:
    rng = np.random.default_rng(1)
    for prefix, length in ((0, 1), (0, 20), (13, 1), (13, 20), (150, 40), (5, 300)):
        for heads, kv_heads, key_dim, value_dim, _ in SHAPES[:4]:
            # Keys before the window are not gathered; the prefix begins at what is needed.
            start = prefix if window is None else min(prefix, window - 1)
            keys = rounded(rng.normal(size=(kv_heads, start + length, key_dim)), dtype)
            values = rounded(rng.normal(size=(kv_heads, start + length, value_dim)), dtype)
            queries = rounded(rng.normal(size=(heads, length, key_dim)), dtype)
            sinks = rounded(rng.normal(size=heads), dtype) if with_sinks else None
            scale = 1.0 / np.sqrt(key_dim)

            got = chunk_attention(
                *(
                    mx.array(array[None].astype(np.float32)).astype(dtype)
                    for array in (queries, keys, values)
                ),
                prefix_length=start,
                window=window,
                scale=scale,
                sinks=None if sinks is None else mx.array(sinks.astype(np.float32)).astype(dtype),
            )

            assert got.shape == (1, heads, length, value_dim)
            assert got.dtype == dtype
            for at in {0, length // 3, length // 2, length - 1}:
                stop = start + at + 1
                first = 0 if window is None else max(0, stop - window)
                want = reference(
                    queries[:, at],
                    keys[:, first:stop],
                    values[:, first:stop],
                    scale=scale,
                    sinks=sinks,
                )
                error = np.abs(as_float64(got[0, :, at]) - want).max()
                assert error < _TOLERANCE[dtype] * max(1.0, np.abs(want).max())


@pytest.mark.parametrize("kind", ["cuda", "metal"])
@pytest.mark.parametrize("window", [None, 7, 150])
def test_a_chunk_on_a_gpu_has_the_same_attention(
    kind: str, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their ways, run by MLX's plain operations here; on CUDA, lengths are filled up."""
    rng = np.random.default_rng(3)
    for prefix, length in ((0, 1), (0, 64), (0, 65), (13, 20), (150, 40), (500, 129), (3, 600)):
        shape = (2, prefix + length, 32)
        queries, keys, values = (
            mx.array(rng.normal(size=(1, *sizes)).astype(np.float32))
            for sizes in ((4, length, 32), shape, shape)
        )
        options = {"prefix_length": prefix, "window": window, "scale": 0.2}
        want = chunk_attention(queries, keys, values, **options)  # type: ignore[arg-type]
        monkeypatch.setattr(chunk_module, "device_kind", lambda: kind)

        got = chunk_attention(queries, keys, values, **options)  # type: ignore[arg-type]

        monkeypatch.undo()
        assert got.shape == want.shape
        assert np.allclose(np.array(got), np.array(want), atol=1e-5)


def test_lengths_come_in_few_buckets() -> None:
    buckets = {length_bucket(length) for length in range(1, 40_000)}

    assert len(buckets) < 80
    for length in range(1, 40_000, 37):
        bucket = length_bucket(length)
        assert length <= bucket <= max(length + 63, length * 1.125)
        assert length_bucket(bucket) == bucket


def make_store(*, num_blocks: int, block_size: int = 8, kv_heads: int = 2) -> KVStore:
    spec = LayerSpec(
        kind=LayerKind.FULL, num_kv_heads=kv_heads, key_dim=16, value_dim=24, item_bytes=4
    )
    return KVStore(KVLayout([spec]), [num_blocks], block_size=block_size, dtype=mx.float32)


@pytest.mark.parametrize("window", [None, 9])
def test_plans_of_one_object_are_those_of_fresh_ones(window: int | None) -> None:
    groups = [LayerGroup(layers=(i,), window=window, bytes_per_token=1) for i in range(2)]
    rng = np.random.default_rng(3)
    tables = [[BlockTable(4) for _ in range(5)] for _ in groups]
    kept = TableAttention()
    for step in range(120):
        # Rows that go on, rows that others take the place of, and tables that begin anew.
        rows = sorted(rng.choice(5, size=4 if step % 7 else 3, replace=False).tolist())
        positions = [step // 2 + row for row in rows]
        for group, of_group in zip(groups, tables, strict=True):
            if step % 5 == 0:
                of_group[step % 3].clear()
            for row, position in zip(rows, positions, strict=True):
                table = of_group[row]
                count = position // 4 + 1 - table.num_blocks
                table.append(rng.integers(1000, size=max(0, count)).tolist())
                table.drop_before(group.first_needed(position) // 4)
            chosen = [of_group[row] for row in rows]
            got = kept.plan(chosen, positions, group)
            want = TableAttention().plan(chosen, positions, group)
            for one, other in zip(got.arrays, want.arrays, strict=True):
                assert np.array_equal(np.array(one), np.array(other))


def test_rows_of_the_step_before_go_on_with_what_it_drew() -> None:
    drawn = mx.array([31, 32, 33], mx.int32)
    table = BlockTable(4)
    table.append([0])
    group = LayerGroup(layers=(0,), window=None, bytes_per_token=1)
    builder = BatchBuilder([group], TableAttention())

    def token_ids(sources: Sequence[int | None]) -> object:
        runs = [
            Run(token_ids=[place], start=2, tables=[table], num_logits=1, source=source)
            for place, source in enumerate(sources)
        ]
        (batch,) = builder.build(runs, drawn)
        return batch.token_ids.tolist()

    assert token_ids([0, 1, 2]) == [31, 32, 33]
    assert token_ids([0, 1]) == [31, 32]
    assert token_ids([2, 0, 1]) == [33, 31, 32]
    assert token_ids([0, None, 2]) == [31, 1, 33]
    assert token_ids([None, None, None]) == [0, 1, 2]


def test_a_chunk_finds_its_prefix_in_the_store() -> None:
    rng = np.random.default_rng(2)
    store = make_store(num_blocks=9)
    keys, values = rng.normal(size=(2, 30, 16)), rng.normal(size=(2, 30, 24))
    table = BlockTable(8)
    table.append([7, 2, 5, 0])
    builder = BatchBuilder(store.layout.groups, TableAttention())
    for start, stop in ((0, 11), (11, 12), (12, 19), (19, 30)):
        run = Run(token_ids=range(start, stop), start=start, tables=[table], num_logits=0)
        group = builder.build([run])[0].groups[0]
        store.write(
            0,
            mx.array(keys[:, start:stop, None].swapaxes(0, 1).astype(np.float32)),
            mx.array(values[:, start:stop, None].swapaxes(0, 1).astype(np.float32)),
            TokenSlots(group.slots, 8),
        )
    (plan,) = group.chunks
    assert (plan.start, plan.length, plan.num_prefix) == (0, 11, 19)
    assert plan.blocks is not None

    got_keys, got_values = store.gather(0, plan.blocks)

    assert np.array_equal(np.array(got_keys[0])[:, :30], keys.astype(np.float32))
    assert np.array_equal(np.array(got_values[0])[:, :30], values.astype(np.float32))


def test_writing_touches_the_given_slots_only() -> None:
    store = make_store(num_blocks=6)
    slots = [5 * 8 + 7, 3, 40]
    new = mx.arange(1, 1 + 3 * 2 * 16).reshape(3, 2, 1, 16).astype(mx.float32)
    values = mx.ones((3, 2, 1, 24))

    store.write(0, new, values, TokenSlots(mx.array(slots), 8))

    flat = np.array(store.keys(0)).swapaxes(1, 2).reshape(56, 2, 16)
    assert np.array_equal(flat[slots], np.array(new)[:, :, 0])
    assert np.count_nonzero(np.delete(flat, slots, axis=0)) == 0


def test_writing_happens_in_place() -> None:
    store = make_store(num_blocks=4096)  # 8 MiB of keys, 12 of values
    new_keys, new_values = mx.ones((3, 2, 1, 16)), mx.ones((3, 2, 1, 24))
    mx.eval(new_keys, new_values)
    for step in range(4):
        slots = TokenSlots(mx.array([step, step + 100, step + 32_000]), 8)
        mx.eval(slots.vectors(2))
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        store.write(0, new_keys, new_values, slots)
        mx.eval(store.arrays())
        # A copy of either array would take megabytes.
        assert mx.get_peak_memory() - before < 256 * 1024
