"""Whether a model gives the same answers on the paged cache as on mlx-lm's own.

Nothing is assumed from a model's name. Short texts run once each way, with a chunk boundary, a
prefix, rows of unlike lengths, and a row that nothing lies before, and the logits are compared.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Seq

from ..backend import mx
from ..cache.block_table import BlockTable
from ..cache.kv_layout import KVLayout
from ..cache.kv_store import KVStore
from ..errors import UnsupportedFeatureError
from .batch_builder import BatchBuilder, Run
from .model_adapter import Model, reference_logits
from .paged_model import PagedModel
from .state_store import StateStore

logger = logging.getLogger(__name__)

_NUM_BLOCKS = 12
_NUM_TEXTS = 3
# Tokens that each adds to a ragged pass: more and fewer than a convolution looks back on.
_RAGGED = (5, 1, 2)
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
    with_ragged: bool = False,
) -> str | None:
    """Try the model on a tiny paged store.

    Args:
        layout: If it quantises keys and values, mlx-lm's caches are given what is left of them.
        write_in_place: As for `KVStore`.
        with_ragged: Also try ragged passes, and to go on from the states that these leave.

    Returns:
        ``None`` if the logits agree with mlx-lm's own caches, else what went wrong.
    """
    if not layout.is_understood:
        return f"its layers keep more than keys and values ({layout.describe()})"
    counts = [_NUM_BLOCKS] * len(layout.groups)
    store = KVStore(
        layout, counts, block_size=block_size, dtype=dtype, write_in_place=write_in_place
    )
    try:
        got = _paged_logits(paged, store, vocab, with_ragged=with_ragged)
        mx.eval(got)
    # The model's code runs against an interface that it was not written for: anything may come.
    except Exception as error:
        logger.debug("probe failed", exc_info=True)
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    plain = [reference_logits(model, [tokens[:-1], tokens[-1:]]) for tokens, _ in got]
    want, tolerance = plain, _TOLERANCE[dtype]
    if any(layer.is_quantized for layer in layout.layers):
        # The slightest difference decides now and then to which step a number is rounded. Then
        # answers differ by about as much as they do from those that nothing is rounded for.
        want = [reference_logits(model, [tokens[:-1], tokens[-1:]], layout) for tokens, _ in got]
        tolerance += 2 * max(map(_difference, want, plain))
    for (tokens, have), reference in zip(got, want, strict=True):
        error_size = _difference(have, reference)
        logger.debug(
            "probe: %d tokens differ by %.2e of the largest logit", len(tokens), error_size
        )
        if not error_size <= tolerance:
            return f"paged logits differ by {error_size:.1e} of the largest logit"
    return None


def _difference(have: mx.array, want: mx.array) -> float:
    """The largest one, of the largest logit."""
    have, want = have.astype(mx.float32), want.astype(mx.float32)
    return float(mx.abs(have - want).max()) / max(1.0, float(mx.abs(want).max()))


def _paged_logits(
    model: PagedModel, store: KVStore, vocab: int, *, with_ragged: bool
) -> list[tuple[list[int], mx.array]]:
    """Texts, and the logits of what follows."""
    groups, size = store.layout.groups, store.block_size
    states = StateStore(store.layout) if store.layout.recurrent else None
    # Blocks of the sequences alternate, so that wrong ids cannot go unnoticed.
    tables = [
        _tables(len(groups), size, range(i, _NUM_BLOCKS, _NUM_TEXTS)) for i in range(_NUM_TEXTS)
    ]
    builder = BatchBuilder(
        groups,
        model.attention,
        trash=_trash(store),
        form=model.form,
        ragged_bucket=(lambda *size: size) if with_ragged else None,
    )
    # One has two chunks before its row, one has one, and one is a row from the start.
    first, second, short = 2 * size + 3, size - 2, size // 2 + 1
    lengths = (first + second + 1, short + 2, 1)
    texts = [_tokens(i, length + _RAGGED[i] + 1, vocab) for i, length in enumerate(lengths)]

    def run(index: int, start: int, stop: int) -> Run:
        return Run(
            token_ids=texts[index][start:stop],
            start=start,
            tables=tables[index],
            num_logits=1,
            key=index,
            is_speculative=start > 0 and with_ragged,
        )

    def logits(runs: list[Run]) -> mx.array:
        order = builder.order(runs)
        out, written = model.run(store, builder.build([runs[i] for i in order]), states)
        mx.eval(out, written)
        if len(out) != len(runs):
            raise UnsupportedFeatureError("its last layer works out logits that nobody wants")
        return out[mx.array([order.index(i) for i in range(len(runs))])]

    logits([run(0, 0, first), run(1, 0, short)])
    # A row beside a chunk with a prefix, then rows alone.
    beside = logits([run(1, short, short + 1), run(0, first, first + second)])
    rows = logits([run(i, length - 1, length) for i, length in enumerate(lengths)])
    stops = [short + 1, *lengths]
    got = [beside[0], *rows]
    if with_ragged:
        ragged = [length + extra for length, extra in zip(lengths, _RAGGED, strict=True)]
        got.extend(logits([run(i, lengths[i], stop) for i, stop in enumerate(ragged)]))
        got.extend(logits([run(i, stop, stop + 1) for i, stop in enumerate(ragged)]))
        stops += [*ragged, *(stop + 1 for stop in ragged)]
    at = [1, *[*range(_NUM_TEXTS)] * 3]
    return [(texts[i][:stop], row) for i, stop, row in zip(at, stops, got, strict=False)]


def _trash(store: KVStore) -> list[BlockTable]:
    groups = range(len(store.layout.groups))
    return [_tables(1, store.block_size, [store.trash_block(group)])[0] for group in groups]


def _tables(num_groups: int, block_size: int, block_ids: Seq[int]) -> list[BlockTable]:
    tables = [BlockTable(block_size) for _ in range(num_groups)]
    for table in tables:
        table.append(list(block_ids))
    return tables


def _tokens(index: int, count: int, vocab: int) -> list[int]:
    return [(7919 * (index + 1) + 104729 * i) % vocab for i in range(count)]
