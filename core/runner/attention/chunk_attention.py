"""Causal attention of prefill chunks, where gathering the prefix once is small against the work.

MLX's fused attention does the rest where there is one.
"""

from __future__ import annotations

from ...backend import LOG2_E, device_kind, exp2, mx

# MLX's CPU attention computes masked scores too; tiles of queries skip most of the upper triangle.
_CPU_QUERY_TILE = 128
# On CUDA, cuDNN builds a plan for every new pair of lengths, 36 ms on the host of an H200. So
# lengths are rounded up to multiples of this, long ones to an eighth of their power of two.
_CUDA_LENGTH_STEP = 64


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
    kind = device_kind()
    on_cpu = kind == "cpu"
    tile = _CPU_QUERY_TILE if on_cpu else length
    outputs = []
    for start in range(0, length, tile):
        stop = min(start + tile, length)
        # Keys that no query of this tile attends to are left out on both ends.
        first = 0 if window is None else max(0, prefix_length + start - window + 1)
        last = prefix_length + stop
        attend = _ATTEND[kind]
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
        mask = causal_mask(num_queries, num_keys, window)
    return mx.fast.scaled_dot_product_attention(
        queries, keys, values, scale=scale, mask=mask, sinks=sinks
    )


def _attend_in_buckets(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    window: int | None,
    scale: float,
    sinks: mx.array | None,
) -> mx.array:
    """The same with lengths that repeat.

    Zeros behind the keys come after every query that counts. Queries must end where keys end, so
    they get as many, and some more in front to fill up a bucket of their own.
    """
    length, num_keys = queries.shape[2], keys.shape[2]
    all_keys = length_bucket(num_keys)
    behind = all_keys - num_keys
    all_queries = min(length_bucket(length + behind), all_keys)
    before = all_queries - length - behind
    out = _attend_fused(
        _pad(queries, before, behind),
        _pad(keys, 0, behind),
        _pad(values, 0, behind),
        window,
        scale,
        sinks,
    )
    return out[:, :, before : before + length]


def length_bucket(length: int) -> int:
    """The length that a shorter one is filled up to; at most an eighth more, or one step."""
    step = max(_CUDA_LENGTH_STEP, 1 << max(0, length.bit_length() - 4))
    return -(-length // step) * step


def _pad(array: mx.array, before: int, behind: int) -> mx.array:
    if not before and not behind:
        return array
    return mx.pad(array, [(0, 0), (0, 0), (before, behind), (0, 0)])


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
        scores = mx.where(causal_mask(num_queries, num_keys, window), scores, -mx.inf)
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


def causal_mask(num_queries: int, num_keys: int, window: int | None) -> mx.array:
    """``[num_queries, num_keys]``, bool, for queries that stand at the end of the keys."""
    at = mx.arange(num_keys - num_queries, num_keys)[:, None]
    keys = mx.arange(num_keys)[None]
    mask = keys <= at
    return mask if window is None else mask & (keys > at - window)


_ATTEND = {"cpu": _attend_unfused, "cuda": _attend_in_buckets, "metal": _attend_fused}
