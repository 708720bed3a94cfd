"""What mlx-lm itself answers, one prompt at a time, and how close a call it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from pippin.core.backend import mx, nn, stock_silu

# At a first difference, two tokens whose reference logits lie this close are one choice.
TIE = 1e-4
_PREFILL_STEP = 2048


@contextmanager
def stock_mlx() -> Iterator[None]:
    """Without the one function of mlx that `core.backend` replaces on the CPU."""
    activations: Any = nn
    ours, activations.silu = activations.silu, stock_silu
    try:
        yield
    finally:
        activations.silu = ours


def reference_tokens(model: Any, prompt: Sequence[int], *, num_tokens: int) -> list[int]:
    """Greedy answer of ``mlx_lm.generate_step``."""
    from mlx_lm.generate import generate_step

    with stock_mlx():
        steps = generate_step(mx.array(list(prompt)), model, max_tokens=num_tokens)
        return [int(token) for token, _ in steps]


def reference_rows(
    model: Any, prompt: Sequence[int], answer: Sequence[int]
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Logits before each token of a given answer: ``[len(answer), vocab]``.

    Runs as ``generate_step`` does: the prompt but its last token, then one token at a time.
    """
    from mlx_lm.models.cache import make_prompt_cache

    cache = make_prompt_cache(model)
    head, last = list(prompt[:-1]), prompt[-1]
    rows = []
    with stock_mlx():
        for start in range(0, len(head), _PREFILL_STEP):
            model(mx.array([head[start : start + _PREFILL_STEP]]), cache=cache)
            mx.eval([layer.state for layer in cache])
        for token in [last, *answer][: len(answer)]:
            logits = model(mx.array([[token]]), cache=cache)[0, -1].astype(mx.float32)
            rows.append(np.array(logits))
    return np.stack(rows)


@dataclass
class Tally:
    """Sequences compared, and what became of them.

    Attributes:
        ties: Descriptions of sequences that part from the reference where it was undecided.
        failures: Descriptions of all other differences.
    """

    num_sequences: int
    ties: list[str]
    failures: list[str]

    def check(self) -> None:
        """Raise `AssertionError` on any difference that is no tie, or on too many ties."""
        assert not self.failures, "\n".join(self.failures)
        # One in 200; a handful of sequences may have one before that says anything.
        assert len(self.ties) <= max(1, self.num_sequences // 200), "\n".join(self.ties)

    def add(self, other: Tally) -> None:
        """Count another run too."""
        self.num_sequences += other.num_sequences
        self.ties += other.ties
        self.failures += other.failures


def compare(
    model: Any,
    prompts: Sequence[Sequence[int]],
    wanted: Sequence[Sequence[int]],
    got: Sequence[Sequence[int]],
    *,
    label: str,
) -> Tally:
    """Compare answers with the reference, token for token."""
    tally = Tally(len(prompts), [], [])
    for index, (prompt, want, have) in enumerate(zip(prompts, wanted, got, strict=True)):
        if list(want) == list(have):
            continue
        at = next(
            (i for i, (a, b) in enumerate(zip(want, have, strict=False)) if a != b),
            min(len(want), len(have)),
        )
        text = f"{label}: prompt {index} of {len(prompt)} tokens, token {at}"
        if at >= min(len(want), len(have)):
            tally.failures.append(f"{text}: {len(have)} tokens instead of {len(want)}")
            continue
        row = reference_rows(model, prompt, want[: at + 1])[at]
        gap = abs(float(row[want[at]]) - float(row[have[at]]))
        text += f": {have[at]} instead of {want[at]}, reference logits {gap:.2e} apart"
        (tally.ties if gap <= TIE else tally.failures).append(text)
    return tally
