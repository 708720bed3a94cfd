"""What keys and values in fewer bits cost: bytes, and how far answers move.

    python tests/perf/kv_quantization.py MODEL [--prompts 8] [--tokens 256] [--answer 64]

Texts of English prose run through a paged model, in a chunk and then row by row. For each setting
of ``--kv-bits`` it prints the bytes of a token, how many tokens a GiB holds, and against full
precision the KL divergence of the next token and how often the likeliest one is the same; and the
perplexity.
"""

from __future__ import annotations

import argparse
from pydoc_data.topics import topics
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pippin.core.backend import mx
from pippin.core.cache.block_table import BlockTable
from pippin.core.cache.kv_layout import KVLayout
from pippin.core.cache.kv_quantization import quantize_layout
from pippin.core.cache.kv_store import KVStore
from pippin.core.config import KVBits
from pippin.core.engine.device_plan import DevicePlan, plan_for_device
from pippin.core.models.loader import LoadedModel, load_model
from pippin.core.models.progress import NullProgress
from pippin.core.runner.batch_builder import BatchBuilder, Run
from pippin.core.runner.state_store import StateStore

_BLOCK_SIZE = 32
_SETTINGS = ("off", "8", "8,4", "4,8", "4")


def main() -> None:
    """Measure and print."""
    options = _options()
    loaded = load_model(options.model, progress=NullProgress())
    plan = plan_for_device(loaded, block_size=_BLOCK_SIZE)
    texts = _texts(loaded, options.prompts, options.tokens + options.answer)
    rows: dict[str, NDArray[np.float64]] = {}
    print(f"{options.model}: {plan.layout.describe()}, {plan.dtype}")
    print("bits   bytes/token  tokens/GiB  mean KL    max KL     same token  perplexity")
    for setting in _SETTINGS:
        bits = KVBits.parse(setting)
        layout = plan.layout if bits is None else quantize_layout(plan.layout, bits)
        found = [_logprobs(plan, layout, text, options.answer) for text in texts]
        rows[setting] = np.concatenate(found)
        num_bytes = sum(layer.bytes_per_token for layer in layout.layers)
        print(
            f"{setting:6} {num_bytes:11,} {2**30 // num_bytes:11,}  "
            + _compare(rows["off"], rows[setting], _targets(texts, options.answer))
        )


def _options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256, help="in one chunk")
    parser.add_argument("--answer", type=int, default=64, help="rows after it, which are compared")
    return parser.parse_args()


def _texts(loaded: LoadedModel, count: int, length: int) -> list[list[int]]:
    prose = "\n".join(topics[name] for name in sorted(topics))
    ids: list[int] = loaded.tokenizer.encode(prose, add_special_tokens=False, verbose=False)
    step = (len(ids) - length) // count
    return [ids[i * step : i * step + length] for i in range(count)]


def _targets(texts: list[list[int]], num_rows: int) -> NDArray[np.int64]:
    """What came next, of the rows that know it."""
    return np.array([[*text[len(text) - num_rows + 1 :], -1] for text in texts]).ravel()


def _logprobs(
    plan: DevicePlan, layout: KVLayout, text: list[int], num_rows: int
) -> NDArray[np.float64]:
    """Of the last tokens of a text, each a row: ``[num_rows, vocab]``."""
    num_blocks = -(-len(text) // _BLOCK_SIZE)
    counts = [num_blocks] * len(layout.groups)
    store = KVStore(
        layout,
        counts,
        block_size=_BLOCK_SIZE,
        dtype=plan.dtype,
        write_in_place=plan.write_in_place,
    )
    states = StateStore(layout) if layout.recurrent else None
    tables = [BlockTable(_BLOCK_SIZE) for _ in layout.groups]
    for table in tables:
        table.append(list(range(num_blocks)))
    builder = BatchBuilder(layout.groups, plan.model.attention, form=plan.model.form)
    first = len(text) - num_rows
    out = []
    for start, stop in [(0, first), *((i, i + 1) for i in range(first, len(text)))]:
        run = Run(token_ids=text[start:stop], start=start, tables=tables, num_logits=1, key=0)
        logits, written = plan.model.run(store, builder.build([run]), states)
        mx.eval(logits, written)
        if stop > first:
            out.append(np.array(logits[-1].astype(mx.float32), np.float64))
    logits_by_row = np.stack(out)
    peak = logits_by_row.max(axis=-1, keepdims=True)
    total = np.log(np.exp(logits_by_row - peak).sum(axis=-1, keepdims=True))
    result: NDArray[np.float64] = logits_by_row - peak - total
    return result


def _compare(
    want: NDArray[np.float64], have: NDArray[np.float64], targets: NDArray[np.int64]
) -> str:
    divergence = (np.exp(want) * (want - have)).sum(axis=-1)
    same = float((want.argmax(axis=-1) == have.argmax(axis=-1)).mean())
    known = targets >= 0
    loss = -have[known, targets[known]].mean()
    return f"{divergence.mean():.2e}   {divergence.max():.2e}   {same:9.1%}   {np.exp(loss):9.3f}"


if __name__ == "__main__":
    main()
