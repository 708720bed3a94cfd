"""Whether a model gives the same answers on the paged cache as on mlx-lm's own.

Nothing is assumed from a model's name. A short text runs once each way, with a chunk boundary, a
prefix and two rows of unlike lengths, and the logits are compared.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as Seq

from ..backend import mx
from ..cache.block_table import BlockTable
from ..cache.kv_layout import KVLayout
from ..cache.kv_store import KVStore
from .batch_builder import BatchBuilder, Run
from .model_adapter import Model, reference_logits
from .paged_model import PagedModel

logger = logging.getLogger(__name__)

_BLOCK_SIZE = 8
# Two sequences: a chunk, a second chunk with a prefix, and a last token that runs as a row.
_LENGTHS = ((19, 6, 1), (5, 0, 1))
_TOLERANCE = {mx.float32: 2e-3, mx.float16: 4e-2, mx.bfloat16: 2e-1}


def find_paging_problem(
    model: Model, paged: PagedModel, layout: KVLayout, dtype: mx.Dtype, vocab: int
) -> str | None:
    """Try the model on a tiny paged store.

    Returns:
        ``None`` if the logits agree with mlx-lm's own caches, else what went wrong.
    """
    if not layout.is_paged:
        return f"its layers keep more than keys and values ({layout.describe()})"
    try:
        got = _paged_logits(paged, layout, dtype, vocab)
        mx.eval(got)
    # The model's code runs against an interface that it was not written for: anything may come.
    except Exception as error:
        logger.debug("probe failed", exc_info=True)
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    for index, lengths in enumerate(_LENGTHS):
        tokens = _tokens(index, sum(lengths), vocab)
        want = reference_logits(model, [tokens[:-1], tokens[-1:]]).astype(mx.float32)
        have = got[index].astype(mx.float32)
        scale = max(1.0, float(mx.abs(want).max()))
        error_size = float(mx.abs(have - want).max()) / scale
        logger.debug("probe: sequence %d differs by %.2e of the largest logit", index, error_size)
        if not error_size <= _TOLERANCE[dtype]:
            return f"paged logits differ by {error_size:.1e} of the largest logit"
    return None


def _paged_logits(
    model: PagedModel, layout: KVLayout, dtype: mx.Dtype, vocab: int
) -> list[mx.array]:
    per_sequence = -(-max(sum(lengths) for lengths in _LENGTHS) // _BLOCK_SIZE)
    num_blocks = per_sequence * len(_LENGTHS)
    counts = [num_blocks] * len(layout.groups)
    store = KVStore(layout, counts, block_size=_BLOCK_SIZE, dtype=dtype)
    # Blocks of the two sequences alternate, so that wrong ids cannot go unnoticed.
    tables = [_tables(layout, range(i, num_blocks, len(_LENGTHS))) for i in range(len(_LENGTHS))]
    builder = BatchBuilder(layout.groups, model.attention)
    texts = [_tokens(i, sum(lengths), vocab) for i, lengths in enumerate(_LENGTHS)]

    def run(index: int, start: int, stop: int) -> Run:
        return Run(
            token_ids=texts[index][start:stop], start=start, tables=tables[index], num_logits=1
        )

    def logits(runs: list[Run]) -> mx.array:
        batch = builder.build([runs[i] for i in builder.order(runs)])
        out, written = model.run(store, batch)
        mx.eval(out, written)
        return out

    (first, second, last), (short, _, _) = _LENGTHS
    logits([run(0, 0, first), run(1, 0, short)])
    # A row beside a chunk with a prefix, then rows alone.
    beside = logits([run(1, short, short + 1), run(0, first, first + second)])[0]
    alone = logits([run(0, first + second, first + second + last)])[0]
    return [alone, beside]


def _tables(layout: KVLayout, block_ids: Seq[int]) -> list[BlockTable]:
    tables = [BlockTable(_BLOCK_SIZE) for _ in layout.groups]
    for table in tables:
        table.append(list(block_ids))
    return tables


def _tokens(index: int, count: int, vocab: int) -> list[int]:
    return [(7919 * (index + 1) + 104729 * i) % vocab for i in range(count)]
