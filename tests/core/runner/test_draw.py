"""Truncated draws against one row at a time in float64 numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pippin.core.backend import mx
from pippin.core.runner import draw as draw_module
from pippin.core.runner.draw import SamplingArrays, draw, group_rows
from pippin.core.runner.noise import row_keys
from pippin.core.sampling_params import SamplingParams

Array = np.ndarray[Any, np.dtype[np.float64]]
SMALL, LARGE = 50, 5000  # sorted whole, and not

TRUNCATIONS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 2.0},
    {"top_k": 2},
    {"top_k": 5},
    {"top_k": 70, "temperature": 0.5},
    {"top_k": 2000},
    {"top_k": 2**31 - 1},
    {"top_p": 0.5},
    {"top_p": 0.3},
    {"top_p": 1e-6},
    {"top_p": 0.95},
    {"top_p": 0.999},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_k": 8, "top_p": 0.7},
    {"top_k": 8, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 0.3, "top_p": 0.9},
    {"temperature": 2.0, "top_p": 0.6, "top_k": 30},
    {"temperature": 0.7, "top_p": 0.9, "min_p": 0.02},
)


def draw_all(logits: Array, params: Sequence[SamplingParams], seeds: Sequence[int]) -> list[int]:
    """Draw every row by its own method."""
    out = np.zeros(len(params), dtype=np.int32)
    device_logits = mx.array(logits.astype(np.float32))
    keys = row_keys(seeds, [9] * len(seeds))
    for rows, method in group_rows(params, logits.shape[-1]):
        arrays = SamplingArrays.of([params[i] for i in rows], logits.shape[-1])
        index = mx.array(rows)
        out[rows] = np.array(draw(device_logits[index], keys[index], arrays, method))
    return out.tolist()


def kept(logits: Array, params: SamplingParams, *, slack: float = 0.0) -> set[int]:
    """Tokens that may be drawn; with slack, also those that may be by a sum's rounding."""
    logits = logits / params.temperature
    probs = np.exp(logits - logits.max())
    order = np.argsort(-logits, kind="stable")
    alive = probs >= min(1.0, params.min_p * (1 - slack)) * probs.max()
    if params.top_k:
        alive[order[params.top_k :]] = False
    alive &= probs > 0
    probs = np.where(alive, probs, 0.0) / probs[alive].sum()
    if params.top_p < 1.0:
        best_first = np.sort(probs)[::-1]
        needed = int((np.cumsum(best_first) - best_first < params.top_p * (1 + slack)).sum())
        alive &= probs >= best_first[max(needed, 1) - 1] * (1 - max(slack, 0.0))
    return set(np.flatnonzero(alive).tolist())


def log_probs(logits: Array, params: SamplingParams) -> Array:
    """Of the truncated distribution."""
    tempered = logits / params.temperature
    allowed = sorted(kept(logits, params))
    out = np.full(len(logits), -np.inf)
    out[allowed] = tempered[allowed] - tempered.max()
    out -= np.log(np.exp(out).sum())
    return out


def logits_of_kinds(vocab: int) -> dict[str, Array]:
    rng = np.random.default_rng(vocab)
    normal = rng.normal(0, 2, size=vocab)
    half_masked = np.where(rng.random(vocab) < 0.5, normal, -np.inf)
    return {
        "normal": normal,
        "peaked": normal * 3,
        "coarse": np.round(normal),
        "sixteen bits": np.round(normal * 8) / 8 + 20,
        "flat": np.zeros(vocab),
        "one-hot": np.where(np.arange(vocab) == vocab - 2, 0.0, -np.inf),
        "one high": np.where(np.arange(vocab) == vocab - 2, 30.0, 0.0),
        "masked": half_masked,
        "two levels": np.where(np.arange(vocab) % 3 == 1, 1.0, -1.0),
        "falling": -np.arange(vocab) / 40,
    }


def favour(logits: mx.array, keys: mx.array, token_ids: mx.array) -> mx.array:
    """Noise that puts the token named by a row's key before all others, and no other noise."""
    return logits + mx.where(token_ids == keys[:, :1], 1e6, 0.0)


@pytest.fixture
def rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw rows together, as on a GPU."""
    monkeypatch.setattr(draw_module, "device_kind", lambda: "cuda")


@pytest.mark.usefixtures("rows_at_once")
@pytest.mark.parametrize("vocab", [SMALL, LARGE])
@pytest.mark.parametrize("settings", TRUNCATIONS, ids=str)
def test_the_tokens_that_can_be_drawn_are_those_of_the_reference(
    settings: dict[str, Any], vocab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token can be drawn if it is drawn once noise favours it."""
    params = SamplingParams(**settings)
    ((_, method),) = group_rows([params], vocab)
    monkeypatch.setattr(draw_module, "add_gumbel", favour)
    for kind, logits in logits_of_kinds(vocab).items():
        certain = kept(logits, params, slack=-1e-5)
        possible = kept(logits, params, slack=1e-5)
        # Both sides of the edge, and its ties.
        order = np.argsort(-logits, kind="stable")
        edge = len(certain)
        probes = np.unique(np.concatenate([order[:4], order[max(0, edge - 20) : edge + 20]]))
        arrays = SamplingArrays.of([params] * len(probes), vocab)
        tiled = mx.array(np.tile(logits.astype(np.float32), (len(probes), 1)))
        keys = mx.array(np.stack([probes, probes], axis=1).astype(np.uint32))

        drawn = np.array(draw(tiled, keys, arrays, method))

        can = set(probes[drawn == probes].tolist())
        assert certain & set(probes.tolist()) <= can <= possible, kind
        assert set(drawn.tolist()) <= possible, kind


def test_the_likeliest_token_wins_if_none_of_the_first_may_be_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def add(logits: mx.array, keys: mx.array, token_ids: mx.array) -> mx.array:
        return logits + mx.where(token_ids == 10, 0.0, 1e6)

    logits = np.linspace(0, 30, LARGE)
    logits[10] = 40.0
    monkeypatch.setattr(draw_module, "add_gumbel", add)

    assert draw_all(logits[None], [SamplingParams(top_p=0.9)], [0]) == [10]


@pytest.mark.parametrize(
    ("settings", "vocab"),
    [(settings, 12) for settings in TRUNCATIONS] + [({}, LARGE), ({"top_p": 0.5}, LARGE)],
    ids=str,
)
def test_draws_follow_the_distribution(settings: dict[str, Any], vocab: int) -> None:
    """Chi-square over 4,000 seeds; the limit is passed by chance once in some 10,000 runs."""
    rng = np.random.default_rng(5)
    logits = np.sort(rng.normal(0, 1.5, size=vocab))[::-1].copy()
    params = SamplingParams(**settings)
    probs = np.exp(log_probs(logits, params))
    # Twelve cells of tokens that are next to each other in rank.
    cells = np.minimum((np.cumsum(probs) - probs) * 12, 11).astype(int)
    cells = np.arange(12) if vocab == 12 else cells
    num_draws, batch = 4000, 500

    tokens = np.concatenate(
        [
            draw_all(np.tile(logits, (batch, 1)), [params] * batch, range(start, start + batch))
            for start in range(0, num_draws, batch)
        ]
    )

    assert (probs[tokens] > 0).all()
    counts = np.bincount(cells[tokens], minlength=12)
    expected = np.bincount(cells, weights=probs, minlength=12) * num_draws
    often = expected >= 5
    statistic = ((counts - expected)[often] ** 2 / expected[often]).sum()
    freedom = max(1, int(often.sum()) - 1)
    # Wilson and Hilferty's approximation of the 0.9999 quantile.
    limit = freedom * (1 - 2 / (9 * freedom) + 3.72 * np.sqrt(2 / (9 * freedom))) ** 3
    assert statistic <= limit


def test_improbable_tokens_keep_their_share() -> None:
    """Of 20,000 tokens at 1e-6 each: coarse noise would hardly ever let one win."""
    logits = np.full(20_000, np.log(1e-6))
    logits[7] = 0.0
    tokens = draw_all(np.tile(logits, (800, 1)), [SamplingParams()] * 800, range(800))

    others = [token for token in tokens if token != 7]
    assert 2 <= len(others) <= 36  # 15.7 expected
    assert len(set(others)) == len(others)


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("vocab", [SMALL, LARGE])
def test_a_row_draws_the_same_in_any_company_and_order(
    vocab: int, request: pytest.FixtureRequest, *, at_once: bool
) -> None:
    if at_once:
        request.getfixturevalue("rows_at_once")
    rng = np.random.default_rng(6)
    params = [SamplingParams(**settings) for settings in TRUNCATIONS * 3]
    logits = rng.normal(0, 2, size=(len(params), vocab))
    logits[::2] = np.round(logits[::2])
    seeds = list(range(len(params)))
    alone = [draw_all(logits[i : i + 1], [params[i]], [i])[0] for i in seeds]

    for _ in range(4):
        order = rng.permutation(len(params))[: rng.integers(2, len(params) + 1)].tolist()
        assert draw_all(logits[order], [params[i] for i in order], order) == [
            alone[i] for i in order
        ]


def test_all_methods_draw_by_the_same_noise() -> None:
    """Settings that cut nothing of weight draw what no cut draws, though by other ways."""
    rng = np.random.default_rng(7)
    logits = rng.normal(0, 4, size=(40, LARGE))
    seeds = range(40)
    plain = draw_all(logits, [SamplingParams()] * 40, seeds)

    for settings in (
        {"top_k": 1024},
        {"top_k": LARGE - 1},
        {"top_p": 1 - 1e-6},
        {"min_p": 1e-9},
        {"top_k": 1024, "min_p": 1e-9},
    ):
        assert draw_all(logits, [SamplingParams(**settings)] * 40, seeds) == plain, settings


def test_rows_share_a_method_only_if_they_need_the_same() -> None:
    params = [SamplingParams(**settings) for settings in TRUNCATIONS]

    groups = group_rows(params, 100_000)

    assert sorted(i for rows, _ in groups for i in rows) == list(range(len(params)))
    by_row = {i: method.num_ranked for rows, method in groups for i in rows}
    for i, settings in enumerate(TRUNCATIONS):
        k = settings.get("top_k", 0)
        size = 64 if k <= 64 else 1024 if k <= 1024 else 100_000
        if k in (0, 2**31 - 1):
            size = 100_000 if settings.get("top_p", 1.0) < 0.5 else 0
        assert by_row[i] == size, settings
