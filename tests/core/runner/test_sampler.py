"""The vectorised sampler over mixed rows, against one row at a time in float64 numpy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pippin.core.backend import mx
from pippin.core.runner.logits_processors import RowState
from pippin.core.runner.sampler import Sampler, apply_min_p, apply_top_k_top_p, draw
from pippin.core.sampling_params import SamplingParams

Array = np.ndarray[Any, np.dtype[np.float64]]
VOCAB = 50
EOS = (48, 49)


def make_row(
    name: str = "row",
    *,
    prompt: Sequence[int] = (1, 2, 3),
    output: Sequence[int] = (),
    seed: int = 0,
    index: int = 0,
    **params: Any,
) -> RowState:
    return RowState(
        key=(name, index),
        params=SamplingParams(**params),
        seed=seed,
        position=len(prompt) + len(output),
        num_prompt_tokens=len(prompt),
        num_output_tokens=len(output),
        token_ids=[*prompt, *output],
    )


def sample(logits: Array, rows: Sequence[RowState], sampler: Sampler | None = None) -> list[int]:
    drawn, more = (sampler or Sampler(EOS)).sample(mx.array(logits.astype(np.float32)), rows)
    mx.eval(drawn.arrays(), more)
    return [int(token) for token in np.array(drawn.token_ids)]


def processed(logits: Array, row: RowState) -> Array:
    """Logits of one row after penalties, bias and ``min_tokens``."""
    out = logits.copy()
    params = row.params
    answer = Counter(row.token_ids[row.num_prompt_tokens :])
    for token in {*row.token_ids}:
        factor = params.repetition_penalty
        out[token] = out[token] / factor if out[token] > 0 else out[token] * factor
    for token, count in answer.items():
        out[token] -= count * params.frequency_penalty + params.presence_penalty
    for token, bias in params.logit_bias.items():
        out[token] += bias
    if row.num_output_tokens < params.min_tokens:
        out[[*EOS, *params.stop_token_ids]] = -np.inf
    return out


def kept(logits: Array, params: SamplingParams) -> set[int]:
    """Tokens that may be drawn, from processed logits."""
    logits = logits / params.temperature
    probs = np.exp(logits - logits.max())
    probs /= probs.sum()
    alive = probs >= params.min_p * probs.max()
    if params.top_k:
        alive &= probs >= np.sort(probs * alive)[::-1][min(params.top_k, len(probs)) - 1]
    probs = np.where(alive, probs, 0.0)
    probs /= probs.sum()
    if params.top_p < 1.0:
        best_first = np.sort(probs)[::-1]
        needed = int((np.cumsum(best_first) - best_first < params.top_p).sum())
        alive &= probs >= best_first[needed - 1]
    return set(np.flatnonzero(alive & (probs > 0)).tolist())


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max()
    out: Array = shifted - np.log(np.exp(shifted).sum())
    return out


def mixed_rows(rng: np.random.Generator, count: int) -> list[RowState]:
    rows = []
    for index in range(count):
        params: dict[str, Any] = {"temperature": 0.0}
        if index % 2:
            params |= {"repetition_penalty": float(rng.uniform(0.5, 2))}
        if index % 3 == 1:
            params |= {"presence_penalty": float(rng.uniform(-2, 2))}
        if index % 3 == 2:
            params |= {"frequency_penalty": float(rng.uniform(-2, 2))}
        if index % 4 == 3:
            tokens = rng.choice(VOCAB, 3, replace=False).tolist()
            params |= {"logit_bias": {t: float(rng.uniform(-9, 9)) for t in tokens}}
        if index % 5 == 0:
            params |= {"min_tokens": int(rng.integers(1, 6)), "stop_token_ids": (7,)}
        prompt = rng.integers(0, VOCAB, size=int(rng.integers(1, 9))).tolist()
        output = rng.integers(0, VOCAB, size=int(rng.integers(0, 6))).tolist()
        rows.append(make_row(f"mixed{index}", prompt=prompt, output=output, **params))
    return rows


def test_penalties_bias_and_min_tokens_are_those_of_the_reference() -> None:
    rng = np.random.default_rng(0)
    rows = mixed_rows(rng, 60)
    logits = rng.normal(0, 3, size=(60, VOCAB))
    asked = [
        RowState(
            key=row.key,
            params=SamplingParams(
                **{
                    name: getattr(row.params, name)
                    for name in SamplingParams.__slots__
                    if name != "num_logprobs"
                },
                num_logprobs=20,
            ),
            seed=0,
            position=row.position,
            num_prompt_tokens=row.num_prompt_tokens,
            num_output_tokens=row.num_output_tokens,
            token_ids=row.token_ids,
        )
        for row in rows
    ]

    drawn, _ = Sampler(EOS).sample(mx.array(logits.astype(np.float32)), asked)

    assert drawn.logprobs is not None
    entries = drawn.logprobs.read()
    for index, row in enumerate(asked):
        want = log_softmax(processed(logits[index], row))
        best = np.argsort(-want)[:20]
        assert int(np.array(drawn.token_ids)[index]) == best[0]
        assert [token for token, _ in entries[index].top] == best.tolist()
        got = [logprob for _, logprob in entries[index].top]
        assert np.allclose(got, want[best], atol=2e-5)
        assert entries[index].token_id == best[0]
        assert entries[index].logprob == pytest.approx(want[best[0]], abs=2e-5)


def test_logprobs_are_given_to_those_who_ask_and_as_many_as_they_ask_for() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(4, VOCAB))
    rows = [
        make_row("a", temperature=0.0),
        make_row("b", temperature=1.0, num_logprobs=0),
        make_row("c", temperature=0.0, num_logprobs=3),
        make_row("d", temperature=0.7, top_k=2, num_logprobs=1),
    ]

    drawn, _ = Sampler(EOS).sample(mx.array(logits.astype(np.float32)), rows)

    assert drawn.logprobs is not None
    entries = drawn.logprobs.read()
    assert {row: len(entry.top) for row, entry in entries.items()} == {1: 0, 2: 3, 3: 1}
    tokens = np.array(drawn.token_ids).tolist()
    for row, entry in entries.items():
        # Of the model's own distribution: neither temperature nor truncation shows.
        want = log_softmax(logits[row])
        assert entry.token_id == tokens[row]
        assert entry.logprob == pytest.approx(want[tokens[row]], abs=1e-5)


def test_counts_follow_the_drawn_tokens_from_step_to_step() -> None:
    rng = np.random.default_rng(2)
    sampler = Sampler(EOS)
    params: dict[str, Any] = {"temperature": 0.0, "frequency_penalty": 1.5}
    params["repetition_penalty"] = 1.3
    logits = rng.normal(0, 2, size=VOCAB)
    output: list[int] = []
    for _ in range(12):
        row = make_row("counting", output=output, **params)
        want = int(np.argmax(processed(logits, row)))
        # From the second step on the host need not know the newest tokens.
        blind = RowState(
            key=row.key,
            params=row.params,
            seed=0,
            position=row.position,
            num_prompt_tokens=3,
            num_output_tokens=row.num_output_tokens,
            token_ids=row.token_ids[:3],
        )

        (got,) = sample(logits[None], [blind], sampler)

        assert got == want
        output.append(got)
    assert len(set(output)) > 3
    sampler.forget(("counting", 0))
    fresh = make_row("counting", **params)
    assert sample(logits[None], [fresh], sampler) == [int(np.argmax(processed(logits, fresh)))]


TRUNCATIONS: tuple[dict[str, Any], ...] = (
    {},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": VOCAB + 10},
    {"top_p": 0.5},
    {"top_p": 1e-6},
    {"top_p": 0.999},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_k": 8, "top_p": 0.7},
    {"top_k": 8, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 0.3, "top_p": 0.9},
    {"temperature": 2.0, "top_p": 0.6, "top_k": 30},
)


@pytest.mark.parametrize("with_ties", [False, True])
def test_truncation_keeps_the_tokens_of_the_reference(*, with_ties: bool) -> None:
    rng = np.random.default_rng(3)
    rows = [make_row(str(i), **settings) for i, settings in enumerate(TRUNCATIONS)] * 6
    logits = rng.normal(0, 2, size=(len(rows), VOCAB))
    if with_ties:
        logits = np.round(logits)
    tempered = logits / np.array([[row.params.temperature] for row in rows])

    masked = apply_min_p(mx.array(tempered.astype(np.float32)), [row.params.min_p for row in rows])
    masked = apply_top_k_top_p(
        masked,
        [row.params.top_k for row in rows],
        [row.params.top_p for row in rows],
    )

    alive = np.isfinite(np.array(masked))
    for index, row in enumerate(rows):
        assert set(np.flatnonzero(alive[index]).tolist()) == kept(logits[index], row.params)
        survivors = np.array(masked)[index][alive[index]]
        assert np.allclose(survivors, tempered[index][alive[index]], atol=1e-5)


def test_truncation_leaves_other_rows_alone() -> None:
    logits = mx.array(np.random.default_rng(4).normal(size=(3, VOCAB)).astype(np.float32))
    before = np.array(logits)

    after = np.array(apply_top_k_top_p(apply_min_p(logits, [0.0, 0.5, 0.0]), [0, 0, 2], [1] * 3))

    assert np.array_equal(after[0], before[0])
    assert np.isfinite(after[2]).sum() == 2


@pytest.mark.parametrize("settings", TRUNCATIONS, ids=str)
def test_draws_follow_the_distribution(settings: dict[str, Any]) -> None:
    """Chi-square over 4,000 seeds; the limit is passed by chance once in some 10,000 runs."""
    rng = np.random.default_rng(5)
    logits = np.sort(rng.normal(0, 1.5, size=12))[::-1].copy()
    num_draws = 4000
    params = SamplingParams(**settings)
    allowed = kept(logits, params)
    tempered = logits / params.temperature
    probs = np.exp(tempered - tempered.max())
    probs[[i for i in range(12) if i not in allowed]] = 0.0
    probs /= probs.sum()
    rows = [make_row(seed=seed, **settings) for seed in range(num_draws)]

    tokens = np.array(draw(mx.array(np.tile(logits, (num_draws, 1)).astype(np.float32)), rows))

    counts = np.bincount(tokens, minlength=12)
    assert set(np.flatnonzero(counts).tolist()) <= allowed
    expected = probs * num_draws
    often = expected >= 5
    statistic = ((counts - expected)[often] ** 2 / expected[often]).sum()
    freedom = max(1, int(often.sum()) - 1)
    # Wilson and Hilferty's approximation of the 0.9999 quantile.
    limit = freedom * (1 - 2 / (9 * freedom) + 3.72 * np.sqrt(2 / (9 * freedom))) ** 3
    assert statistic <= limit


def test_draws_at_successive_positions_are_independent() -> None:
    """Of two fair tokens: pairs of neighbours are equally often alike and unlike."""
    logits = np.zeros((2000, 2))
    rows = [make_row(prompt=[0] * (1 + at), seed=99) for at in range(2000)]

    tokens = np.array(draw(mx.array(logits.astype(np.float32)), rows))

    assert abs(tokens.mean() - 0.5) < 0.05
    assert abs((tokens[1:] == tokens[:-1]).mean() - 0.5) < 0.05


def test_a_row_draws_the_same_in_any_company_and_order() -> None:
    rng = np.random.default_rng(6)
    greedy_rows = mixed_rows(rng, 12)
    hot_rows = [
        make_row(f"hot{i}", seed=1000 + i, output=[1] * i, **settings)
        for i, settings in enumerate(TRUNCATIONS)
    ]
    rows = [*greedy_rows, *hot_rows]
    logits = rng.normal(0, 2, size=(len(rows), VOCAB))
    alone = [sample(logits[i : i + 1], [row])[0] for i, row in enumerate(rows)]

    for _ in range(5):
        order = rng.permutation(len(rows))
        together = sample(logits[order], [rows[i] for i in order])
        assert together == [alone[i] for i in order]


def test_seed_and_position_make_the_draw() -> None:
    logits = np.zeros((1, VOCAB))
    seeds = [0, 1, -1, 2**63, 2**64 - 1, 12345]
    drawn = {seed: sample(logits, [make_row(seed=seed)])[0] for seed in seeds}

    assert len(set(drawn.values())) > 2
    assert drawn == {seed: sample(logits, [make_row(seed=seed)])[0] for seed in seeds}
    later = [sample(logits, [make_row(seed=0, output=[1] * n)])[0] for n in range(6)]
    assert len(set(later)) > 2


@pytest.mark.parametrize("poison", [np.nan, "both infinities"])
def test_a_row_that_is_not_numbers_is_told_and_harms_nobody(poison: Any) -> None:
    rng = np.random.default_rng(7)
    rows = [
        make_row(str(i), seed=i, num_logprobs=2, frequency_penalty=0.5, temperature=float(i % 2))
        for i in range(6)
    ]
    logits = rng.normal(0, 2, size=(6, VOCAB))
    healthy = sample(logits, rows)
    logits[2, 9] = np.nan if poison is np.nan else np.inf
    if poison is not np.nan:
        logits[2, 10] = -np.inf
    logits[3, :] = np.nan

    drawn, _ = Sampler(EOS).sample(mx.array(logits.astype(np.float32)), rows)

    assert np.array(drawn.is_valid).tolist() == [True, True, False, False, True, True]
    tokens = np.array(drawn.token_ids).tolist()
    assert [tokens[i] for i in (0, 1, 4, 5)] == [healthy[i] for i in (0, 1, 4, 5)]


def test_masked_logits_are_numbers() -> None:
    """Some models mask the end of their vocabulary themselves."""
    logits = np.random.default_rng(8).normal(size=(2, VOCAB))
    logits[:, 40:] = -np.inf

    drawn, _ = Sampler(EOS).sample(
        mx.array(logits.astype(np.float32)), [make_row(temperature=0.0), make_row(top_p=0.9)]
    )

    assert np.array(drawn.is_valid).all()
    assert (np.array(drawn.token_ids) < 40).all()


@pytest.mark.parametrize("temperature", [1e-5, 1e-30, 1e-40, 5e-324])
def test_temperatures_near_zero_draw_the_likeliest_token(temperature: float) -> None:
    logits = np.random.default_rng(9).normal(20, 5, size=(30, VOCAB))
    rows = [
        make_row(str(i), seed=i, temperature=temperature, top_p=(1.0, 0.9)[i % 2])
        for i in range(30)
    ]

    assert sample(logits, rows) == np.argmax(logits, axis=-1).tolist()
