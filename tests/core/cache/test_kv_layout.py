"""Layer groups, bytes, and how a memory budget is shared out."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pippin.core.cache.kv_layout import (
    KVLayout,
    LayerGroup,
    LayerKind,
    LayerSpec,
    blocks_for,
    split_blocks,
)


def make_layer(window: int | None = None, **changes: Any) -> LayerSpec:
    fields = {
        "kind": LayerKind.FULL if window is None else LayerKind.SLIDING,
        "num_kv_heads": 2,
        "key_dim": 8,
        "value_dim": 4,
        "item_bytes": 2,
        "window": window,
    }
    return LayerSpec(**{**fields, **changes})


def make_group(window: int | None) -> LayerGroup:
    return LayerGroup(layers=(0,), window=window, bytes_per_token=1)


def test_a_token_takes_its_keys_and_its_values() -> None:
    assert make_layer().bytes_per_token == 2 * (8 + 4) * 2


def test_layers_of_one_window_share_a_group_and_full_attention_comes_first() -> None:
    layout = KVLayout([make_layer(64), make_layer(), make_layer(16), make_layer(64), make_layer()])
    assert [(group.window, group.layers) for group in layout.groups] == [
        (None, (1, 4)),
        (16, (2,)),
        (64, (0, 3)),
    ]
    assert [group.bytes_per_token for group in layout.groups] == [96, 48, 96]
    assert [layout.group_of(layer) for layer in range(5)] == [2, 0, 1, 2, 0]
    assert layout.describe() == "2 sliding(64), 2 full, 1 sliding(16)"


@pytest.mark.parametrize("kind", [LayerKind.OPAQUE])
def test_one_layer_that_does_not_fit_into_blocks_keeps_the_model_off_them(kind: LayerKind) -> None:
    layout = KVLayout([make_layer(), make_layer(kind=kind)])
    assert not layout.is_understood
    assert layout.groups == ()


def test_a_model_without_layers_is_not_paged() -> None:
    assert not KVLayout([]).is_understood


@pytest.mark.parametrize(
    ("window", "position", "first"),
    [(None, 0, 0), (None, 99, 0), (1, 7, 7), (4, 0, 0), (4, 3, 0), (4, 4, 1), (4, 99, 96)],
)
def test_a_window_counts_the_token_itself(window: int | None, position: int, first: int) -> None:
    assert make_group(window).first_needed(position) == first


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)])
def test_a_begun_block_counts(tokens: int, blocks: int) -> None:
    assert blocks_for(tokens, 4) == blocks
    assert blocks_for(tokens, 4, slack=2) == blocks + 2


WINDOWS = st.lists(st.sampled_from([None, 1, 8, 100, 512]), min_size=1, max_size=6)


@given(
    windows=WINDOWS,
    heads=st.integers(1, 4),
    max_bytes=st.integers(0, 2_000_000),
    block_size=st.sampled_from([1, 4, 32]),
    max_num_seqs=st.integers(1, 8),
    prefill_chunk=st.integers(1, 256),
)
def test_the_budget_is_used_and_never_exceeded(
    windows: list[int | None],
    heads: int,
    max_bytes: int,
    block_size: int,
    max_num_seqs: int,
    prefill_chunk: int,
) -> None:
    layout = KVLayout([make_layer(w, num_kv_heads=heads + i % 2) for i, w in enumerate(windows)])
    counts = split_blocks(
        layout,
        max_bytes=max_bytes,
        block_size=block_size,
        max_num_seqs=max_num_seqs,
        prefill_chunk=prefill_chunk,
    )
    sizes = [group.bytes_per_token * block_size for group in layout.groups]
    used = sum(count * size for count, size in zip(counts, sizes, strict=True))
    assert used <= max_bytes
    assert max_bytes - used < sum(sizes), "another block for everybody would have fitted"
    unlimited = layout.groups[0].window is None or len(layout.groups) == 0
    for group, count in zip(layout.groups, counts, strict=True):
        assert 0 <= count <= max(counts)
        if unlimited and group.window is not None:
            span = blocks_for(group.window + prefill_chunk, block_size, slack=1)
            assert count <= max_num_seqs * span
    if unlimited:
        assert counts[0] == max(counts), "a sliding group has more than full attention"


def test_what_a_window_does_not_need_goes_to_full_attention() -> None:
    layout = KVLayout([make_layer(), make_layer(8)])
    counts = split_blocks(
        layout, max_bytes=48 * 4 * 100, block_size=4, max_num_seqs=2, prefill_chunk=8
    )
    assert counts == [90, 10]


def test_windows_alone_share_evenly() -> None:
    layout = KVLayout([make_layer(8), make_layer(16)])
    counts = split_blocks(
        layout, max_bytes=48 * 4 * 100, block_size=4, max_num_seqs=1, prefill_chunk=8
    )
    assert counts == [50, 50]


def test_a_budget_below_one_block_gives_none() -> None:
    layout = KVLayout([make_layer(), make_layer(8)])
    counts = split_blocks(layout, max_bytes=47, block_size=4, max_num_seqs=1, prefill_chunk=8)
    assert counts == [0, 0]
