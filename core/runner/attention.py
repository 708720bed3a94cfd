"""Attention over the paged KV store, in plain MLX.

`paged_attention` is the seam for kernels: queries, one layer's store, and which blocks each row
attends to. `chunk_attention` serves prefill, where gathering the prefix once is small against the
work and MLX's fused attention does the rest.
"""

from __future__ import annotations

from ..backend import LOG2_E, device_kind, exp2, mx
from .forward_batch import PagedRows, PrefixRun

# MLX's CPU attention computes masked scores too; tiles of queries skip most of the upper triangle.
_CPU_QUERY_TILE = 128


def paged_attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    rows: PagedRows,
    *,
    scale: float,
    sinks: mx.array | None = None,
) -> mx.array:
    """Attention of decode rows, each over its own blocks.

    Args:
        queries: ``[rows, num_heads, 1, key_dim]``.
        keys: ``[num_blocks, num_kv_heads, block_size, key_dim]``.
        values: ``[num_blocks, num_kv_heads, block_size, value_dim]``.
        sinks: ``[num_heads]``, logits of a token that is attended to but has no value.

    Returns:
        ``[rows, num_heads, 1, value_dim]``, in the dtype of the queries.
    """
    # `gather_mm` sums in the dtype of its inputs: fine for float32, too coarse for 16 bits. And
    # MLX has no `segmented_mm` on CUDA.
    in_place = keys.dtype == mx.float32 and device_kind() == "cpu"
    attend = _by_pairs if in_place else _by_gather
    return attend(queries, keys, values, rows, scale, sinks)


def _by_pairs(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    rows: PagedRows,
    scale: float,
    sinks: mx.array | None,
) -> mx.array:
    """Multiply with blocks where they lie: work and memory follow the sum of the lengths.

    Scores are kept in powers of two: see `exp2`.
    """
    num_rows, num_heads, _, key_dim = queries.shape
    num_blocks, num_kv_heads, block_size, value_dim = values.shape
    group = num_heads // num_kv_heads
    index = rows.index(num_kv_heads)
    num_pairs = rows.blocks.shape[0]
    scores = mx.gather_mm(
        (queries.astype(mx.float32) * (scale * LOG2_E)).reshape(
            num_rows * num_kv_heads, group, key_dim
        ),
        keys.reshape(num_blocks * num_kv_heads, block_size, key_dim).swapaxes(-1, -2),
        lhs_indices=index.queries,
        rhs_indices=index.blocks,
    )  # [pairs, kv_heads, group, block_size]
    scores = mx.where(rows.valid[:, None, None], scores, -mx.inf)
    if sinks is not None:
        sinks = sinks.astype(mx.float32).reshape(num_kv_heads, group) * LOG2_E
    peak = _peak_by_row(scores, rows, sinks)  # [rows, kv_heads, group]
    weights = exp2(scores - (peak if num_rows == 1 else peak[rows.rows])[..., None])
    partial = mx.gather_mm(
        weights.reshape(num_pairs * num_kv_heads, group, block_size),
        values.reshape(num_blocks * num_kv_heads, block_size, value_dim),
        lhs_indices=index.pairs,
        rhs_indices=index.blocks,
    )  # [pairs, kv_heads, group, value_dim]
    total = _sum_by_row(weights.sum(axis=-1).reshape(num_pairs, -1), rows)
    if sinks is not None:
        total = total + exp2(sinks - peak).reshape(num_rows, -1)
    summed = _sum_by_row(partial.reshape(num_pairs, -1), rows)
    out = summed.reshape(num_rows, num_heads, value_dim) / total[..., None]
    return out[:, :, None].astype(queries.dtype)


def _peak_by_row(scores: mx.array, rows: PagedRows, sinks: mx.array | None) -> mx.array:
    """``[pairs, kv_heads, group, block_size]`` -> ``[rows, kv_heads, group]``."""
    if rows.num_rows == 1:
        peak = scores.max(axis=(0, 3))[None]
        return peak if sinks is None else mx.maximum(peak, sinks)
    shape = (rows.num_rows, *scores.shape[1:3])
    start = mx.full(shape, -mx.inf) if sinks is None else mx.broadcast_to(sinks, shape)
    return start.at[rows.rows].maximum(scores.max(axis=-1))


def _sum_by_row(pairs: mx.array, rows: PagedRows) -> mx.array:
    """``[pairs, n]`` -> ``[rows, n]``. What is not a number stays in its own row."""
    if rows.num_rows == 1:
        return pairs.sum(axis=0, keepdims=True)
    return mx.segmented_mm(mx.ones((1, pairs.shape[0])), pairs, rows.spans)[:, 0]


def _by_gather(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    rows: PagedRows,
    scale: float,
    sinks: mx.array | None,
) -> mx.array:
    """Copy every row's blocks side by side and call MLX's fused attention."""
    num_rows, width = rows.table.shape

    def run(store: mx.array) -> mx.array:
        _, heads, size, dim = store.shape
        return store[rows.table].swapaxes(1, 2).reshape(num_rows, heads, width * size, dim)

    return mx.fast.scaled_dot_product_attention(
        queries,
        run(keys),
        run(values),
        scale=scale,
        mask=rows.table_valid[:, None, None],
        sinks=sinks,
    )


def chunk_attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    *,
    prefix_length: int,
    window: int | None,
    scale: float,
    sinks: mx.array | None = None,
) -> mx.array:
    """Causal attention of a prefill chunk over its prefix and itself.

    Args:
        queries: ``[1, num_heads, length, key_dim]``.
        keys: ``[1, num_kv_heads, prefix_length + length, key_dim]``.
        values: The same with ``value_dim``.
        window: Tokens that each query attends to, itself included; ``None`` for all.

    Returns:
        ``[1, num_heads, length, value_dim]``.
    """
    length = queries.shape[2]
    on_cpu = device_kind() == "cpu"
    tile = _CPU_QUERY_TILE if on_cpu else length
    outputs = []
    for start in range(0, length, tile):
        stop = min(start + tile, length)
        # Keys that no query of this tile attends to are left out on both ends.
        first = 0 if window is None else max(0, prefix_length + start - window + 1)
        last = prefix_length + stop
        attend = _attend_unfused if on_cpu else _attend_fused
        outputs.append(
            attend(
                queries[:, :, start:stop],
                keys[:, :, first:last],
                values[:, :, first:last],
                window,
                scale,
                sinks,
            )
        )
    return outputs[0] if len(outputs) == 1 else mx.concatenate(outputs, axis=2)


def _attend_fused(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    window: int | None,
    scale: float,
    sinks: mx.array | None,
) -> mx.array:
    """Queries stand at the end of the keys; MLX aligns "causal" the same way."""
    num_queries, num_keys = queries.shape[2], keys.shape[2]
    mask: mx.array | str = "causal"
    if window is not None and num_keys > window:
        mask = _causal_mask(num_queries, num_keys, window)
    return mx.fast.scaled_dot_product_attention(
        queries, keys, values, scale=scale, mask=mask, sinks=sinks
    )


def _attend_unfused(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    window: int | None,
    scale: float,
    sinks: mx.array | None,
) -> mx.array:
    """The same in parts: MLX has no fused attention for the CPU, and these parts are faster.

    All heads of a group are rows of one product, and scores are kept in powers of two.
    """
    _, num_heads, num_queries, key_dim = queries.shape
    _, num_kv_heads, num_keys, value_dim = values.shape
    group = num_heads // num_kv_heads
    grouped = (queries.astype(mx.float32) * (scale * LOG2_E)).reshape(
        num_kv_heads, group * num_queries, key_dim
    )
    scores = grouped @ keys[0].astype(mx.float32).swapaxes(-1, -2)
    scores = scores.reshape(num_kv_heads, group, num_queries, num_keys)
    if num_queries > 1 or (window is not None and num_keys > window):
        scores = mx.where(_causal_mask(num_queries, num_keys, window), scores, -mx.inf)
    peak = scores.max(axis=-1, keepdims=True)
    if sinks is not None:
        sinks = sinks.astype(mx.float32).reshape(num_kv_heads, group, 1, 1) * LOG2_E
        peak = mx.maximum(peak, sinks)
    weights = exp2(scores - peak)
    total = weights.sum(axis=-1, keepdims=True)
    if sinks is not None:
        total = total + exp2(sinks - peak)
    summed = weights.reshape(num_kv_heads, -1, num_keys) @ values[0].astype(mx.float32)
    out = summed.reshape(num_kv_heads, group, num_queries, value_dim) / total
    return out.reshape(1, num_heads, num_queries, value_dim).astype(queries.dtype)


def _causal_mask(num_queries: int, num_keys: int, window: int | None) -> mx.array:
    """``[num_queries, num_keys]``, bool, for queries that stand at the end of the keys."""
    at = mx.arange(num_keys - num_queries, num_keys)[:, None]
    keys = mx.arange(num_keys)[None]
    mask = keys <= at
    return mask if window is None else mask & (keys > at - window)


def with_prefix(
    prefix: PrefixRun,
    gathered: tuple[mx.array, mx.array],
    keys: mx.array,
    values: mx.array,
) -> tuple[mx.array, mx.array]:
    """Put gathered prefix blocks, cut to their tokens, in front of a chunk's own keys and values.

    Args:
        gathered: Keys and values as `KVStore.gather` returns them.
        keys: ``[1, num_kv_heads, length, key_dim]``.
    """
    old_keys, old_values = (array[:, :, : prefix.num_tokens] for array in gathered)
    return (
        mx.concatenate([old_keys.astype(keys.dtype), keys], axis=2),
        mx.concatenate([old_values.astype(values.dtype), values], axis=2),
    )
