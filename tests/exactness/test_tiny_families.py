"""Tiny random models of many families answer as mlx-lm does alone, however they are run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from engine_driver import EngineDriver, build, greedy, make_request
from exactness_modes import Mode, answer_in_mode, random_prompts
from reference import Tally, compare, reference_rows, reference_tokens
from tiny_models import (
    FALLBACK,
    FAMILIES,
    PAGED,
    QUICK,
    RARE,
    RECURRENT,
    VOCAB_SIZE,
    TinyFamily,
    make_tiny_model,
)

from pippin.core.backend import mx
from pippin.core.engine import device_plan
from pippin.core.models.loader import LoadedModel
from pippin.core.runner.attention.table_attention import TableAttention
from pippin.core.runner.forward_batch import PassForm
from pippin.core.runner.paged_model import PagedModel

# The default run leaves out what the whole suite only adds numbers to.
_QUICK_MODES = (
    Mode.TOGETHER,
    Mode.PREEMPTED,
    Mode.WARM,
    Mode.SPECULATED,
    Mode.CHUNKS_16,
)


# What looks at numbers cannot be compiled.
COMPILED = [family for family in QUICK if family.form is not PassForm.ALONE][::3]


def _prompts(count: int, longest: int) -> list[Sequence[int]]:
    rng = np.random.default_rng([count, longest])
    return random_prompts(
        rng,
        lambda length: rng.integers(0, VOCAB_SIZE, size=length).tolist(),
        count=count,
        longest=longest,
    )


def _block_size(family: TinyFamily) -> int:
    return (8, 16, 32)[FAMILIES.index(family) % 3]


@cache
def _model(family: TinyFamily) -> LoadedModel:
    return make_tiny_model(family)


@cache
def _wanted(family: TinyFamily, count: int, longest: int, num_tokens: int) -> list[list[int]]:
    model = _model(family).model
    return [
        reference_tokens(model, prompt, num_tokens=num_tokens)
        for prompt in _prompts(count, longest)
    ]


def _check(
    family: TinyFamily, mode: Mode, tally: Tally, *, count: int, longest: int, num_tokens: int
) -> None:
    if family in RECURRENT and mode is Mode.DRAFTED:
        pytest.skip("a similar model has recurrent layers, too, and may not guess")
    if mode in (Mode.PREEMPTED, Mode.SPECULATED_TIGHT) and "full" not in family.layers:
        pytest.skip("there are no blocks to run out of")
    prompts = _prompts(count, longest)
    wanted = _wanted(family, count, longest, num_tokens)
    loaded = _model(family)
    got = answer_in_mode(
        loaded, mode, prompts, num_tokens=num_tokens, block_size=_block_size(family)
    )
    result = compare(loaded.model, prompts, wanted, got, label=f"{family.name}, {mode.value}")
    tally.add(result)
    result.check()


@pytest.mark.parametrize("family", QUICK, ids=lambda family: family.name)
@pytest.mark.parametrize("mode", _QUICK_MODES, ids=lambda mode: mode.name)
def test_answers_are_those_of_mlx_lm(family: TinyFamily, mode: Mode, session_tally: Tally) -> None:
    _check(family, mode, session_tally, count=20, longest=200, num_tokens=24)


@pytest.mark.exactness
@pytest.mark.parametrize("family", RARE, ids=lambda family: family.name)
@pytest.mark.parametrize("mode", _QUICK_MODES, ids=lambda mode: mode.name)
def test_answers_of_rarer_families_are_those_of_mlx_lm(
    family: TinyFamily, mode: Mode, session_tally: Tally
) -> None:
    _check(family, mode, session_tally, count=20, longest=200, num_tokens=24)


@pytest.mark.parametrize("name", ["lfm2", "falcon-h1", "kimi-linear"])
def test_answers_whose_states_are_taken_back_survive_preemption(
    name: str, session_tally: Tally
) -> None:
    family = next(family for family in RECURRENT if family.name == name)
    _check(family, Mode.SPECULATED_TIGHT, session_tally, count=20, longest=200, num_tokens=24)


@pytest.mark.parametrize("name", ["llama-tied", "gemma3", "gpt-oss", "qwen3-moe"])
def test_answers_with_a_draft_model_are_those_of_mlx_lm(name: str, session_tally: Tally) -> None:
    family = next(family for family in PAGED if family.name == name)
    _check(family, Mode.DRAFTED, session_tally, count=20, longest=200, num_tokens=24)


class TracedModel(PagedModel):
    """Notes for which shapes of batch and store it was compiled."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.shapes: list[tuple[tuple[int, ...], ...]] = []
        super().__init__(*args, **options | {"is_compiled": True})

    def _trace(
        self, batch_arrays: Sequence[mx.array], store_arrays: Sequence[mx.array]
    ) -> list[mx.array]:
        self.shapes.append(tuple(it.shape for it in (*batch_arrays, *store_arrays)))
        return super()._trace(batch_arrays, store_arrays)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[TracedModel]]:
    """Run as on a GPU, but for the kernels: tables, row buckets, and compiled steps."""
    models: list[TracedModel] = []

    def make(*args: Any, **options: Any) -> TracedModel:
        models.append(TracedModel(*args, **options))
        return models[-1]

    monkeypatch.setattr(device_plan, "PagedModel", make)
    monkeypatch.setattr(device_plan, "_choose_attention", lambda _: TableAttention())
    mx.enable_compile()
    yield models
    mx.disable_compile()


@pytest.mark.parametrize("family", COMPILED, ids=lambda family: family.name)
@pytest.mark.parametrize("mode", [Mode.PREEMPTED, Mode.SPECULATED], ids=lambda mode: mode.name)
def test_compiled_steps_draw_the_same(
    family: TinyFamily,
    mode: Mode,
    compiled: list[TracedModel],
    session_tally: Tally,
) -> None:
    mx.disable_compile()
    _wanted(family, 10, 100, 24)  # as mlx-lm does it on this device
    mx.enable_compile()

    _check(family, mode, session_tally, count=10, longest=100, num_tokens=24)

    model = compiled[-1]  # the way that worked
    assert model.is_compiled
    # A few numbers of rows, of runs and of lengths of these, and tables of two widths.
    assert model.num_traces <= (24 if model.takes_ragged else 16)
    assert 0 < model.num_traces == len({*model.shapes}), "a shape was compiled twice"


@pytest.mark.parametrize("family", FALLBACK, ids=lambda family: family.name)
def test_answers_without_pages_are_those_of_mlx_lm(
    family: TinyFamily, session_tally: Tally
) -> None:
    _check(family, Mode.TOGETHER, session_tally, count=10, longest=100, num_tokens=16)


@pytest.mark.exactness
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("family", "mode"),
    [
        *itertools.product(QUICK, Mode),
        # Without pages there is nothing to preempt or to find again.
        *itertools.product(FALLBACK, (Mode.TOGETHER,)),
    ],
    ids=lambda value: value.name,
)
def test_64_answers_are_those_of_mlx_lm(
    family: TinyFamily, mode: Mode, session_tally: Tally
) -> None:
    _check(family, mode, session_tally, count=64, longest=1500, num_tokens=64)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["llama-tied", "qwen3", "gemma3", "cohere2", "phi3"])
def test_16_bit_models_stay_within_tolerance(name: str, dtype: mx.Dtype) -> None:
    """Log probabilities of a prompt in chunks, and of the answer to it, teacher-forced.

    No mixture of experts: on the CPU mlx has these in float32 only.
    """
    loaded = make_tiny_model(name)
    loaded.model.set_dtype(dtype)
    prompt = _prompts(1, 120)[0]
    driver = EngineDriver(build(loaded, block_size=16, prefill_chunk=32).engine)
    params = greedy(24, num_logprobs=0, num_prompt_logprobs=0)
    driver.run([make_request("r", prompt, params)])
    answer = driver.answers["r", 0]

    entries = [*driver.prompt_logprobs["r"][1:], *answer.logprobs]
    got = np.array([entry.chosen.logprob for entry in entries if entry is not None])
    tokens = [*prompt, *answer.token_ids]
    rows = reference_rows(loaded.model, tokens[:1], tokens[1:]).astype(np.float64)
    peak = rows.max(axis=-1, keepdims=True)
    logprobs = rows - peak - np.log(np.exp(rows - peak).sum(axis=-1, keepdims=True))
    want = logprobs[np.arange(len(rows)), tokens[1:]]
    # Of logits of width 2. bfloat16 has 8 bits, float16 has 11.
    limit = 0.15 if dtype == mx.bfloat16 else 0.02
    assert np.abs(got - want).max() < limit
    assert np.abs(got - want).mean() < limit / 5


@pytest.mark.parametrize("family", PAGED, ids=lambda family: family.name)
def test_the_models_are_worth_testing(family: TinyFamily) -> None:
    """Answers wander, choices are neither close calls nor foregone, and the past matters."""
    model = _model(family).model
    rng = np.random.default_rng(3)
    prompt = rng.integers(0, VOCAB_SIZE, size=60).tolist()
    answer = reference_tokens(model, prompt, num_tokens=40)
    best = np.sort(reference_rows(model, prompt, answer), axis=-1)
    margin = best[:, -1] - best[:, -2]

    assert len(set(answer)) >= 8
    assert 0.05 < np.median(margin) < 3.0
    # One other token at the window's far end is enough to change what comes out.
    far = 15 if family not in RECURRENT else 3  # these forget fast
    other = [*prompt[:-far], prompt[-far] ^ 1, *prompt[len(prompt) - far + 1 :]]
    changed = reference_rows(model, other, answer[:1])
    assert np.abs(changed - reference_rows(model, prompt, answer[:1])).max() > 1e-3
