"""The sampler over mixed rows: penalties, bias, logprobs, and what keeps rows apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pippin.core.backend import mx
from pippin.core.runner.logits_processors import RowState
from pippin.core.runner.sampler import Sampler
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


HOT: tuple[dict[str, Any], ...] = (
    {},
    {"top_k": 5},
    {"top_k": 1500},
    {"top_p": 0.9},
    {"top_p": 0.2},
    {"min_p": 0.1},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.8},
    {"top_p": 0.9, "logit_bias": {3: 2.0, 4: -100.0}},
    {"temperature": 1.5, "min_tokens": 4, "stop_token_ids": (7,)},
    {"frequency_penalty": 0.5, "top_p": 0.9},
)


@pytest.mark.parametrize("vocab", [VOCAB, 6000])
def test_a_row_draws_the_same_in_any_company_and_order(vocab: int) -> None:
    rng = np.random.default_rng(6)
    hot_rows = [
        make_row(f"hot{i}", seed=1000 + i, output=[1] * i, **settings)
        for i, settings in enumerate(HOT)
    ]
    rows = [*mixed_rows(rng, 12), *hot_rows]
    logits = rng.normal(0, 2, size=(len(rows), vocab))
    alone = [sample(logits[i : i + 1], [row])[0] for i, row in enumerate(rows)]

    for _ in range(5):
        order = rng.permutation(len(rows))
        together = sample(logits[order], [rows[i] for i in order])
        assert together == [alone[i] for i in order]


def test_successive_positions_of_one_sequence_draw_as_if_alone() -> None:
    rng = np.random.default_rng(10)
    settings: dict[str, Any] = {"top_p": 0.9, "min_tokens": 3, "num_logprobs": 2}
    rows = [make_row("same", seed=5, output=[1] * n, **settings) for n in range(6)]
    rows.append(make_row("other", temperature=0.0))
    # Ends are likely, and forbidden to the first three rows only.
    logits = rng.normal(0, 1, size=(7, VOCAB))
    logits[:, EOS] = 9.0

    drawn, _ = Sampler(EOS).sample(mx.array(logits.astype(np.float32)), rows)

    tokens = np.array(drawn.token_ids).tolist()
    assert tokens == [sample(logits[i : i + 1], [row])[0] for i, row in enumerate(rows)]
    assert [token in EOS for token in tokens] == [False] * 3 + [True] * 4
    assert drawn.logprobs is not None
    assert [entry.token_id for entry in drawn.logprobs.read().values()] == tokens[:6]


def test_ends_are_forbidden_until_a_row_has_its_least_number_of_tokens() -> None:
    sampler = Sampler(EOS)
    logits = np.zeros((2, VOCAB))
    logits[:, [EOS[0], 7]] = 9.0, 8.0
    early: dict[str, Any] = {"temperature": 0.0, "min_tokens": 2, "stop_token_ids": (5,)}
    late: dict[str, Any] = {"temperature": 0.0, "min_tokens": 4, "logit_bias": {7: 0.5}}
    drawn = [
        sample(
            logits,
            [make_row("a", output=[1] * n, **early), make_row("b", output=[1] * n, **late)],
            sampler,
        )
        for n in range(6)
    ]

    assert [a for a, _ in drawn] == [7, 7, *[EOS[0]] * 4]
    assert [b for _, b in drawn] == [7, 7, 7, 7, EOS[0], EOS[0]]


def test_a_sampler_follows_its_changing_batch() -> None:
    """What is kept of the batch before must not show in the next."""
    rng = np.random.default_rng(11)
    sampler = Sampler(EOS)
    for step in range(30):
        chosen = rng.choice(len(HOT) - 1, size=rng.integers(1, 6))
        rows = [
            make_row(f"{step}-{i}", seed=int(i), output=[1] * int(rng.integers(0, 7)), **HOT[i])
            for i in chosen
        ]
        for _ in range(2):
            logits = rng.normal(0, 2, size=(len(rows), VOCAB))
            assert sample(logits, rows, sampler) == sample(logits, rows)


def test_seed_and_position_make_the_draw() -> None:
    logits = np.zeros((1, VOCAB))
    seeds = [0, 1, -1, 2**63, 2**64 - 1, 12345]
    drawn = {seed: sample(logits, [make_row(seed=seed)])[0] for seed in seeds}

    assert len(set(drawn.values())) > 2
    assert drawn == {seed: sample(logits, [make_row(seed=seed)])[0] for seed in seeds}
    later = [sample(logits, [make_row(seed=0, output=[1] * n)])[0] for n in range(6)]
    assert len(set(later)) > 2


@pytest.mark.parametrize("poison", [np.nan, "both infinities"])
@pytest.mark.parametrize("settings", [{}, {"top_k": 5}, {"top_p": 0.9}], ids=str)
def test_a_row_that_is_not_numbers_is_told_and_harms_nobody(
    poison: Any, settings: dict[str, Any]
) -> None:
    rng = np.random.default_rng(7)
    settings = {"num_logprobs": 2, "frequency_penalty": 0.5, **settings}
    rows = [make_row(str(i), seed=i, temperature=float(i % 2), **settings) for i in range(6)]
    logits = rng.normal(0, 2, size=(6, 5001))
    healthy = sample(logits, rows)
    logits[2, 9] = np.nan if poison is np.nan else np.inf
    if poison is not np.nan:
        logits[2, 10] = -np.inf
    logits[3, :] = np.nan

    drawn, _ = Sampler(EOS).sample(mx.array(logits.astype(np.float32)), rows)

    tokens = np.array(drawn.token_ids).tolist()
    read = [-1 if i in (2, 3) else token for i, token in enumerate(tokens)]
    assert np.array(drawn.read_ids).tolist() == read
    assert [tokens[i] for i in (0, 1, 4, 5)] == [healthy[i] for i in (0, 1, 4, 5)]
    assert all(0 <= token < 5001 for token in tokens)


def test_masked_logits_are_numbers() -> None:
    """Some models mask the end of their vocabulary themselves."""
    logits = np.random.default_rng(8).normal(size=(2, VOCAB))
    logits[:, 40:] = -np.inf

    drawn, _ = Sampler(EOS).sample(
        mx.array(logits.astype(np.float32)), [make_row(temperature=0.0), make_row(top_p=0.9)]
    )

    read = np.array(drawn.read_ids)
    assert ((read >= 0) & (read < 40)).all()


@pytest.mark.parametrize("vocab", [VOCAB, 5001])
@pytest.mark.parametrize("temperature", [1e-5, 1e-30, 1e-40, 5e-324])
def test_temperatures_near_zero_draw_the_likeliest_token(temperature: float, vocab: int) -> None:
    logits = np.random.default_rng(9).normal(20, 5, size=(30, vocab))
    cuts: list[dict[str, Any]] = [{}, {"top_p": 0.9}, {"top_k": 9}, {"min_p": 0.1, "top_p": 0.1}]
    rows = [
        make_row(str(i), seed=i, temperature=temperature, **cuts[i % len(cuts)]) for i in range(30)
    ]

    assert sample(logits, rows) == np.argmax(logits, axis=-1).tolist()


def pack(allowed: Sequence[Sequence[int] | None], vocab: int) -> np.ndarray[Any, Any]:
    """Masks of rows that may draw certain tokens, or any."""
    masks = np.full((len(allowed), -(-vocab // 32)), 0xFFFFFFFF, dtype=np.uint32)
    for row, tokens in zip(masks, allowed, strict=True):
        if tokens is not None:
            row[:] = 0
            for token in tokens:
                row[token // 32] |= np.uint32(1 << token % 32)
    return masks


@pytest.mark.parametrize("vocab", [VOCAB, 64, 5001])
def test_rows_keep_to_their_masks_and_others_draw_as_without(vocab: int) -> None:
    rng = np.random.default_rng(12)
    hot = [make_row(f"m{i}", seed=i, **settings) for i, settings in enumerate(HOT)]
    rows = [*mixed_rows(rng, 20), *hot]
    logits = rng.normal(0, 2, size=(len(rows), vocab))
    sizes = rng.integers(1, 9, size=len(rows))
    allowed = [
        None if i % 3 == 0 else rng.choice(vocab, size, replace=False).tolist()
        for i, size in enumerate(sizes)
    ]
    free = sample(logits, rows)

    drawn, _ = Sampler(EOS).sample(mx.array(logits.astype(np.float32)), rows, pack(allowed, vocab))

    for token, tokens, unmasked in zip(np.array(drawn.token_ids), allowed, free, strict=True):
        assert token == unmasked if tokens is None else token in tokens


def test_a_mask_wins_over_all_else_and_logprobs_are_of_what_it_leaves() -> None:
    """Neither bias nor ``min_tokens`` may leave a row without a token."""
    params: dict[str, Any] = {"min_tokens": 5, "stop_token_ids": (7,), "num_logprobs": 3}
    logits = np.zeros((3, VOCAB))
    rows = [
        make_row("end", **params, logit_bias={EOS[0]: -100.0}),
        make_row("stop", **params, temperature=0.0),
        make_row("choice", **params, logit_bias={3: 100.0}),
    ]

    drawn, _ = Sampler(EOS).sample(
        mx.array(logits.astype(np.float32)), rows, pack([[EOS[0]], [7], [7, 8, 9]], VOCAB)
    )

    assert np.array(drawn.token_ids)[:2].tolist() == [EOS[0], 7]
    assert drawn.logprobs is not None
    entries = drawn.logprobs.read()
    assert [entries[0].logprob, entries[1].logprob] == [0.0, 0.0]
    # What may not end the answer yet is drawn only where nothing else is allowed.
    assert entries[2].token_id in (8, 9)
    assert entries[2].logprob == pytest.approx(np.log(0.5))
