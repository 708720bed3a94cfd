"""Whether a model gives the same answers on the paged cache as on mlx-lm's own.

Nothing is assumed from a model's name. A short text runs once each way, with a chunk boundary, a
prefix and two rows of unlike lengths, and the logits are compared.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Seq

from ..backend import mx
from ..cache.block_table import BlockTable
from ..cache.kv_layout import KVLayout
from ..cache.kv_store import KVStore
from .batch_builder import BatchBuilder, Run
from .model_adapter import Model, reference_logits
from .paged_model import PagedModel

logger = logging.getLogger(__name__)

_NUM_BLOCKS = 8
_TOLERANCE = {mx.float32: 2e-3, mx.float16: 4e-2, mx.bfloat16: 2e-1}


def find_paging_problem(
    model: Model,
    paged: PagedModel,
    layout: KVLayout,
    dtype: mx.Dtype,
    vocab: int,
    *,
    block_size: int = 8,
    write_in_place: Callable[..., mx.array] | None = None,
) -> str | None:
    """Try the model on a tiny paged store.

    Args:
        write_in_place: As for `KVStore`.

    Returns:
        ``None`` if the logits agree with mlx-lm's own caches, else what went wrong.
    """
    if not layout.is_paged:
        return f"its layers keep more than keys and values ({layout.describe()})"
    counts = [_NUM_BLOCKS] * len(layout.groups)
    store = KVStore(
        layout, counts, block_size=block_size, dtype=dtype, write_in_place=write_in_place
    )
    try:
        got = _paged_logits(paged, store, vocab)
        mx.eval(got)
    # The model's code runs against an interface that it was not written for: anything may come.
    except Exception as error:
        logger.debug("probe failed", exc_info=True)
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    for index, lengths in enumerate(_lengths(block_size)):
        tokens = _tokens(index, sum(lengths), vocab)
        want = reference_logits(model, [tokens[:-1], tokens[-1:]]).astype(mx.float32)
        have = got[index].astype(mx.float32)
        scale = max(1.0, float(mx.abs(want).max()))
        error_size = float(mx.abs(have - want).max()) / scale
        logger.debug("probe: sequence %d differs by %.2e of the largest logit", index, error_size)
        if not error_size <= _TOLERANCE[dtype]:
            return f"paged logits differ by {error_size:.1e} of the largest logit"
    return None


def _lengths(size: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Of two sequences: a chunk, a second chunk with a prefix, and a last token that is a row."""
    return (2 * size + 3, size - 2, 1), (size // 2 + 1, 0, 1)


def _paged_logits(model: PagedModel, store: KVStore, vocab: int) -> list[mx.array]:
    groups, size = store.layout.groups, store.block_size
    # Blocks of the two sequences alternate, so that wrong ids cannot go unnoticed.
    tables = [_tables(len(groups), size, range(i, _NUM_BLOCKS, 2)) for i in range(2)]
    builder = BatchBuilder(groups, model.attention)
    lengths = _lengths(size)
    texts = [_tokens(i, sum(lengths[i]), vocab) for i in range(2)]

    def run(index: int, start: int, stop: int) -> Run:
        return Run(
            token_ids=texts[index][start:stop], start=start, tables=tables[index], num_logits=1
        )

    def logits(runs: list[Run]) -> mx.array:
        batch = builder.build([runs[i] for i in builder.order(runs)])
        out, written = model.run(store, batch)
        mx.eval(out, written)
        return out

    (first, second, last), (short, _, _) = lengths
    logits([run(0, 0, first), run(1, 0, short)])
    # A row beside a chunk with a prefix, then rows alone.
    beside = logits([run(1, short, short + 1), run(0, first, first + second)])[0]
    alone = logits([run(0, first + second, first + second + last)])[0]
    return [alone, beside]


def _tables(num_groups: int, block_size: int, block_ids: Seq[int]) -> list[BlockTable]:
    tables = [BlockTable(block_size) for _ in range(num_groups)]
    for table in tables:
        table.append(list(block_ids))
    return tables


def _tokens(index: int, count: int, vocab: int) -> list[int]:
    return [(7919 * (index + 1) + 104729 * i) % vocab for i in range(count)]
