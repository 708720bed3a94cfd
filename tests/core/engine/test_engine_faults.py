"""A fault belongs to the request that caused it; what others get stays exact."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from engine_driver import EngineDriver, build, greedy, make_request
from reference import reference_tokens
from tiny_models import make_tiny_model

from pippin.core.backend import mx
from pippin.core.cache.kv_store import KVStore
from pippin.core.engine.factory import BuiltEngine
from pippin.core.engine.schedule import Schedule
from pippin.core.models.loader import LoadedModel
from pippin.core.request import FinishReason
from pippin.core.runner.model_runner import MaskBuilder
from pippin.core.runner.step_output import StepInFlight

POISON = 271
NUM_TOKENS = 20


@pytest.fixture(scope="module")
def poisonable() -> LoadedModel:
    """A model that knows no numbers for one token: its keys, values and logits are NaN."""
    loaded = make_tiny_model("llama-untied")
    embedding = loaded.model.model.embed_tokens
    embedding.weight[POISON] = mx.nan
    loaded.model.lm_head.weight[POISON] = 0.0
    return loaded


def prompts(count: int, *, length: int = 30, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, size=int(rng.integers(1, length))).tolist() for _ in range(count)]


def answers_to(loaded: LoadedModel, given: Sequence[Sequence[int]]) -> list[list[int]]:
    return [reference_tokens(loaded.model, prompt, num_tokens=NUM_TOKENS) for prompt in given]


def check_serves(driver: EngineDriver, loaded: LoadedModel, *, tag: str, seed: int) -> None:
    given = prompts(8, seed=seed)
    driver.run([make_request(f"{tag}{i}", p, greedy(NUM_TOKENS)) for i, p in enumerate(given)])
    got = [driver.answers[f"{tag}{i}", 0].token_ids for i in range(len(given))]
    assert got == answers_to(loaded, given)


@pytest.mark.parametrize("at", ["start", "end", "whole first chunk"])
def test_logits_that_are_not_numbers_fail_their_own_request(
    poisonable: LoadedModel, at: str
) -> None:
    driver = EngineDriver(build(poisonable, block_size=8, num_tokens=600).engine)
    healthy = prompts(6)
    bad = {
        "start": [POISON, 1, 2, 3],
        "end": [*range(40), POISON],
        "whole first chunk": [POISON] * 20,
    }[at]
    for index, prompt in enumerate(healthy[:3]):
        driver.add(make_request(f"h{index}", prompt, greedy(NUM_TOKENS)))
    for _ in range(4):
        driver.step()
    driver.add(make_request("bad", bad, greedy(NUM_TOKENS)))
    for index, prompt in enumerate(healthy[3:], start=3):
        driver.add(make_request(f"h{index}", prompt, greedy(NUM_TOKENS)))
    driver.finish()

    failed = driver.answers["bad", 0]
    assert failed.finish_reason is FinishReason.ERROR
    assert failed.error
    assert failed.token_ids == []
    got = [driver.answers[f"h{i}", 0].token_ids for i in range(6)]
    assert got == answers_to(poisonable, healthy)


def test_blocks_that_held_no_numbers_harm_nobody_who_gets_them_later(
    poisonable: LoadedModel,
) -> None:
    """The pool is small, so every block of the failed request is handed out again."""
    built = build(poisonable, block_size=8, num_tokens=160, max_model_len=100)
    driver = EngineDriver(built.engine)
    for turn in range(3):
        bad = [POISON] * (70 + turn)
        driver.run([make_request(f"bad{turn}", bad, greedy(NUM_TOKENS))])
        assert driver.answers[f"bad{turn}", 0].finish_reason is FinishReason.ERROR
        check_serves(driver, poisonable, tag=f"t{turn}-", seed=turn)


def test_what_was_not_numbers_is_not_found_in_the_prefix_cache(poisonable: LoadedModel) -> None:
    """A fault that passes, such as a flipped bit, must not be served again from the cache."""
    driver = EngineDriver(build(poisonable, block_size=8).engine)
    prompt = [*range(30), 5]
    weight = poisonable.model.model.embed_tokens.weight
    sound = mx.array(weight[7])
    weight[7] = mx.nan
    mx.eval(weight)
    driver.run([make_request("during", prompt, greedy(NUM_TOKENS))])
    assert driver.answers["during", 0].finish_reason is FinishReason.ERROR

    weight[7] = sound
    mx.eval(weight)
    driver.run([make_request("after", prompt, greedy(NUM_TOKENS))])

    assert driver.answers["after", 0].token_ids == answers_to(poisonable, [prompt])[0]


@pytest.mark.parametrize("max_tokens", [0, 5])
def test_prompt_logprobs_that_are_not_numbers_fail_their_request(
    poisonable: LoadedModel, max_tokens: int
) -> None:
    driver = EngineDriver(build(poisonable, block_size=8, prefill_chunk=16).engine)
    params = greedy(max_tokens, num_prompt_logprobs=2)
    prompt = [*range(40), POISON, *range(40)]

    driver.run([make_request("bad", prompt, params), make_request("good", [1], params)])

    assert driver.answers["bad", 0].finish_reason is FinishReason.ERROR
    assert driver.answers["good", 0].finish_reason is FinishReason.LENGTH
    check_serves(driver, poisonable, tag="later", seed=9)


def test_a_failed_answer_is_counted_once(poisonable: LoadedModel) -> None:
    engine = build(poisonable).engine
    engine.add(make_request("bad", [POISON, 1], greedy(NUM_TOKENS)))
    engine.add(make_request("good", [1, 2], greedy(NUM_TOKENS)))
    finished = []
    while engine.has_work:
        result = engine.step()
        if result.stats is not None:
            finished += [entry.finish_reason for entry in result.stats.finished]

    assert sorted(reason.value for reason in finished) == ["error", "length"]


class Lost:
    """A step whose results cannot be read: where errors of a real device show."""

    def read(self) -> None:
        """Never comes back."""
        raise ValueError("device lost")


def break_step(built: BuiltEngine, number: int, *, in_read: bool = False) -> None:
    """Let the engine's n-th step fail, while it is built or when it is read back."""
    execute = built.engine._runner.execute
    calls = itertools.count(1)

    def broken(schedule: Schedule, masks: MaskBuilder | None = None) -> StepInFlight:
        breaks = next(calls) == number
        if breaks and not in_read:
            raise RuntimeError("[metal] out of memory\nand more lines")
        step = execute(schedule, masks)
        return Lost() if breaks else step  # type: ignore[return-value]

    built.engine._runner.execute = broken  # type: ignore[method-assign]


@pytest.mark.parametrize("family", ["llama-tied", "gemma3", "lfm2"])
@pytest.mark.parametrize("breaks_at", [1, 2, 7])
def test_a_step_that_breaks_fails_what_runs_and_the_engine_serves_on(
    family: str, breaks_at: int
) -> None:
    loaded = make_tiny_model(family)
    built = build(loaded, block_size=8, num_tokens=4000, max_num_seqs=4)
    break_step(built, breaks_at)
    driver = EngineDriver(built.engine)
    given = prompts(8, length=60)
    for index, prompt in enumerate(given):
        driver.add(make_request(f"r{index}", prompt, greedy(NUM_TOKENS)))
    driver.finish()

    wanted = answers_to(loaded, given)
    failed = 0
    for index, want in enumerate(wanted):
        answer = driver.answers[f"r{index}", 0]
        if answer.finish_reason is FinishReason.ERROR:
            failed += 1
            assert answer.error is not None
            assert "out of memory" in answer.error
            assert "\n" not in answer.error
            assert answer.token_ids == want[: len(answer.token_ids)]
        else:
            assert answer.token_ids == want
    assert failed >= 1
    # Who still waited had no part in it.
    assert failed <= 4
    check_serves(driver, loaded, tag="later", seed=5)


def test_a_step_that_cannot_be_read_back_fails_what_runs() -> None:
    loaded = make_tiny_model("qwen3")
    built = build(loaded, block_size=8)
    break_step(built, 5, in_read=True)
    driver = EngineDriver(built.engine)
    for index, prompt in enumerate(prompts(5)):
        driver.add(make_request(f"r{index}", prompt, greedy(NUM_TOKENS)))
    for _ in range(6):
        driver.step()
    # Nobody knows what such a step has written, so nothing that is stored may be used again.
    store: KVStore = built.engine._runner._store  # type: ignore[attr-defined]
    assert all(not np.array(array).any() for array in store.arrays())
    driver.finish()

    reasons = {answer.finish_reason for answer in driver.answers.values()}
    assert reasons == {FinishReason.ERROR}
    check_serves(driver, loaded, tag="later", seed=6)
