"""A draft model in the engine: answers stay, steps become fewer, blocks stay whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from engine_driver import AlwaysOn, EngineDriver, build, greedy, make_request
from exactness_modes import similar
from reference import reference_tokens
from tiny_models import VOCAB_SIZE, make_tiny_model

from pippin.core.backend import mx
from pippin.core.cache.kv_store import KVStore
from pippin.core.models.loader import LoadedModel
from pippin.core.request import FinishReason, Request
from pippin.core.runner.draft_runner import CATCH_UP_TOKENS, DraftRunner
from pippin.core.runner.forward_batch import ForwardBatch
from pippin.core.sampling_params import SamplingParams
from pippin.core.speculation.stats import DraftCounts

PROMPT = tuple(range(3, 40))
HOT = SamplingParams(max_tokens=40, seed=5, ignore_eos=True)


@cache
def tiny(name: str, seed: int = 0) -> LoadedModel:
    return make_tiny_model(name, seed=seed)


def runner_of(driver: EngineDriver) -> DraftRunner:
    assert driver.engine._speculator is not None
    source = driver.engine._speculator._source
    assert isinstance(source, DraftRunner)
    return source


def watch_passes(patch: pytest.MonkeyPatch, runner: DraftRunner) -> list[ForwardBatch]:
    """The batches that the draft model runs from now on."""
    batches, run_model = [], runner._model.run

    def watched(store: KVStore, passes: list[ForwardBatch]) -> Any:
        batches.extend(passes)
        return run_model(store, passes)

    patch.setattr(runner._model, "run", watched)
    return batches


def counts(driver: EngineDriver) -> DraftCounts:
    assert driver.engine._speculator is not None
    return driver.engine._speculator.counts


def run(
    requests: Sequence[Request], *, draft: LoadedModel | None = None, **settings: Any
) -> EngineDriver:
    driver = EngineDriver(build(tiny("qwen3"), draft=draft, **settings).engine)
    driver.run(requests)
    return driver


def tokens(driver: EngineDriver) -> dict[tuple[str, int], list[int]]:
    return {key: answer.token_ids for key, answer in driver.answers.items()}


@pytest.mark.parametrize(
    "params",
    [
        greedy(40),
        HOT,
        SamplingParams(max_tokens=40, seed=5, temperature=1.7, top_k=30, top_p=0.9, min_p=0.01),
        greedy(40, num_logprobs=3),
        greedy(40, logit_bias={7: 5.0}, min_tokens=9),
    ],
    ids=["greedy", "hot", "cut", "logprobs", "bias"],
)
def test_a_model_guesses_all_that_it_would_draw_itself(
    params: SamplingParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = make_request("a", PROMPT, params)
    plain = run([request])
    driver = EngineDriver(build(tiny("qwen3"), draft=tiny("qwen3")).engine)
    passes = watch_passes(monkeypatch, runner_of(driver))

    driver.run([request])

    assert tokens(driver) == tokens(plain)
    assert counts(driver).num_accepted == counts(driver).num_drafted > 25
    assert driver.num_steps < plain.num_steps / 3
    # Once the prompt is read, the newest token, and the last guess of before, which never ran.
    assert len(passes[0].token_ids) == len(PROMPT) + 1
    assert {len(batch.token_ids) for batch in passes[1:]} == {1, 2}


@pytest.mark.parametrize("params", [greedy(60), HOT], ids=["greedy", "hot"])
@pytest.mark.parametrize("name", ["llama-tied", "gemma3"])
def test_what_another_model_guesses_changes_nothing(name: str, params: SamplingParams) -> None:
    request = make_request("a", PROMPT, params)

    driver = run([request], draft=tiny(name))

    assert tokens(driver) == tokens(run([request]))
    assert counts(driver).num_accepted < 0.3 * counts(driver).num_drafted


def test_a_guess_depends_on_the_text_and_on_nothing_that_was_guessed_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target, draft = tiny("qwen3"), similar(tiny("qwen3"))
    driver = EngineDriver(build(target, draft=draft, block_size=8, num_tokens=200).engine)
    runner = runner_of(driver)
    guessed, propose = list[tuple[list[int], list[int]]](), runner.propose

    def watched(wanted: Any) -> list[list[int]]:
        guesses = propose(wanted)
        for (sequence, count), guess in zip(wanted, guesses, strict=True):
            assert len(guess) == count
            guessed.append((list(sequence.token_ids), guess))
        return guesses

    monkeypatch.setattr(runner, "propose", watched)
    # Now and then some tokens come without drafts.
    monkeypatch.setattr(AlwaysOn, "is_on", lambda *_: driver.num_steps % 12 < 8)
    requests = [make_request(name, PROMPT[i:], greedy(60)) for i, name in enumerate("abc")]
    driver.run(requests)

    assert driver.num_preempted > 0
    assert 0.3 < counts(driver).acceptance_rate < 0.95
    for text, guess in guessed:
        assert guess == reference_tokens(draft.model, text, num_tokens=len(guess))


def test_company_preemption_and_shared_prefixes_cost_no_right_guess() -> None:
    requests = [
        make_request("greedy", PROMPT * 2, greedy(50)),
        make_request("hot", PROMPT * 2, HOT),
        make_request("many", PROMPT * 3, SamplingParams(max_tokens=30, seed=9), n=3),
        make_request("alone", PROMPT[:1], greedy(45, speculation=False)),
        make_request("penalised", PROMPT, greedy(40, repetition_penalty=1.3)),
        make_request("again", PROMPT * 3, greedy(60)),
        make_request("short", PROMPT, greedy(1)),
    ]
    plain = run(requests)
    built = build(tiny("qwen3"), draft=tiny("qwen3"), block_size=8, num_tokens=256)
    driver = EngineDriver(built.engine)

    driver.run_staggered(requests)

    assert driver.num_preempted > 0
    assert tokens(driver) == tokens(plain)
    assert counts(driver).num_accepted == counts(driver).num_drafted > 100


def test_a_vanished_caller_leaves_the_others_guesses_alone() -> None:
    requests = [make_request(name, PROMPT, greedy(40)) for name in "abc"]
    plain = run(requests)
    driver = EngineDriver(build(tiny("qwen3"), draft=tiny("qwen3"), block_size=8).engine)
    for request in requests:
        driver.add(request)
    for _ in range(4):
        driver.step()
    driver.engine.abort("b")

    driver.finish()

    for name in "ac":
        assert driver.answers[name, 0].token_ids == plain.answers[name, 0].token_ids
    assert counts(driver).num_accepted == counts(driver).num_drafted > 0


def test_a_long_past_is_read_in_bounded_pieces_and_only_once() -> None:
    long = [i % VOCAB_SIZE for i in range(2 * CATCH_UP_TOKENS + 100)]
    driver = EngineDriver(build(tiny("qwen3"), draft=tiny("qwen3")).engine)
    runner = runner_of(driver)

    def steps_behind(name: str) -> int:
        driver.add(make_request(name, long, greedy(30)))
        count = 0
        while driver.engine.has_work:
            driver.step()
            count += runner.is_behind
        return count

    assert steps_behind("first") == 3
    assert steps_behind("second") == 0
    assert counts(driver).num_accepted == counts(driver).num_drafted > 0


def test_cached_blocks_that_the_draft_model_never_saw_are_read_first() -> None:
    request, again = (make_request(name, PROMPT * 3, greedy(30)) for name in "ab")
    driver = EngineDriver(build(tiny("qwen3"), draft=tiny("qwen3"), block_size=8).engine)
    speculator, driver.engine._speculator = driver.engine._speculator, None
    driver.run([request])
    driver.engine._speculator = speculator

    driver.run([again])

    assert driver.answers["b", 0].num_cached_tokens > 100
    assert counts(driver).num_accepted == counts(driver).num_drafted > 0


def with_vocab(size: int) -> LoadedModel:
    """A model whose last tokens, padding in real ones, are cut off."""
    loaded = make_tiny_model("qwen3")
    embedding = loaded.model.model.embed_tokens
    embedding.weight = embedding.weight[:size]
    return dataclasses.replace(loaded, vocab_size=size)


@pytest.mark.parametrize("params", [greedy(30), HOT], ids=["greedy", "hot"])
@pytest.mark.parametrize("sizes", [(272, 269), (269, 272)], ids=str)
def test_models_of_one_family_may_be_padded_differently(
    sizes: tuple[int, int], params: SamplingParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, draft = map(with_vocab, sizes)
    plain, drafted = (EngineDriver(build(target, draft=it).engine) for it in (None, draft))

    real = dataclasses.replace(
        params, logit_bias=dict.fromkeys(range(269, target.vocab_size), -100.0)
    )
    for driver in (plain, drafted):
        driver.run([make_request("a", PROMPT, real)])
    assert counts(drafted).num_accepted > 0.8 * counts(drafted).num_drafted > 0
    runner = runner_of(drafted)
    passes, widths, sample = watch_passes(monkeypatch, runner), set[int](), runner._sampler.sample

    def watched(logits: mx.array, rows: Any) -> Any:
        widths.add(logits.shape[-1])
        return sample(logits, rows)

    monkeypatch.setattr(runner._sampler, "sample", watched)
    for driver in (plain, drafted):
        driver.run([make_request("b", [*PROMPT, target.vocab_size - 1], params)])

    assert tokens(drafted) == tokens(plain)
    # Beyond its ends mlx reads and writes what is not the array's.
    assert max(int(batch.token_ids.max()) for batch in passes) < draft.vocab_size
    assert widths == {target.vocab_size}


def test_nothing_is_guessed_beyond_the_length_that_the_draft_model_was_made_for() -> None:
    draft = dataclasses.replace(tiny("qwen3"), max_model_len=len(PROMPT) + 20)
    request = make_request("a", PROMPT, greedy(60))

    driver = run([request], draft=draft)

    assert tokens(driver) == tokens(run([request]))
    assert 5 < counts(driver).num_accepted <= 20


def test_a_draft_model_without_numbers_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    built = build(tiny("qwen3"), draft=tiny("qwen3"), num_tokens=192)
    driver = EngineDriver(built.engine)
    runner = runner_of(driver)
    driver.run([make_request("before", PROMPT, greedy(30))])
    num_drafted = counts(driver).num_drafted

    broken = make_tiny_model("qwen3").model
    broken.model.layers[0].input_layernorm.weight = mx.full(64, float("nan"))
    with monkeypatch.context() as patch:
        patch.setattr(runner._model, "_model", broken)
        passes = watch_passes(patch, runner)
        driver.run([make_request("broken", PROMPT, greedy(30))])
    assert len(passes) == 2  # the first guess has two tokens
    assert counts(driver).num_drafted == num_drafted
    driver.run([make_request("after", PROMPT, greedy(140))])

    want = run([make_request("a", PROMPT, greedy(140))]).answers["a", 0].token_ids
    assert driver.answers["broken", 0].token_ids == want[:30]
    assert driver.answers["after", 0].token_ids == want
    assert counts(driver).num_accepted == counts(driver).num_drafted > num_drafted


def test_a_fault_of_the_draft_model_ends_what_runs_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = EngineDriver(build(tiny("qwen3"), draft=tiny("qwen3")).engine)

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(runner_of(driver)._model, "run", fail)
        driver.run([make_request("a", PROMPT, greedy(30))])
    assert driver.answers["a", 0].finish_reason is FinishReason.ERROR

    driver.run([make_request("b", PROMPT, greedy(30))])

    assert driver.answers["b", 0].num_output_tokens == 30
    assert counts(driver).num_accepted == counts(driver).num_drafted > 0
