"""Speculation in the engine, with a real model: answers stay, steps become fewer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from engine_driver import AlwaysOn, EngineDriver, build, greedy, make_request
from tiny_models import make_tiny_model

from pippin.core.engine.draft_source import HostSource
from pippin.core.engine.speculator import Speculator
from pippin.core.request import FinishReason
from pippin.core.sampling_params import SamplingParams
from pippin.core.speculation.governor import DecodeStep


class KnowsTheAnswer:
    """A proposer that is always right."""

    def __init__(self, text: Sequence[int]) -> None:
        self._text = text

    def propose(self, token_ids: Sequence[int], max_tokens: int) -> list[int]:
        return list(self._text[len(token_ids) : len(token_ids) + max_tokens])


PROMPT = tuple(range(3, 40))


def run(params: SamplingParams, text: Sequence[int] | None = None) -> tuple[EngineDriver, Any]:
    """The answer without drafts, or with drafts out of ``text``."""
    driver = EngineDriver(build(make_tiny_model("qwen3")).engine)
    if text is not None:
        driver.engine._speculator = AlwaysOn(
            HostSource("known", lambda: KnowsTheAnswer(text)), max_tokens=7
        )
    driver.run([make_request("a", PROMPT, params)])
    return driver, driver.answers["a", 0]


@pytest.mark.parametrize(
    "params",
    [
        greedy(40),
        SamplingParams(max_tokens=40, seed=5, ignore_eos=True),
        SamplingParams(max_tokens=40, seed=5, temperature=1.7, top_k=30, top_p=0.9, min_p=0.01),
        greedy(40, num_logprobs=3),
        greedy(40, logit_bias={7: 5.0}, min_tokens=9),
    ],
    ids=["greedy", "hot", "cut", "logprobs", "bias"],
)
def test_right_guesses_save_steps_and_change_nothing(params: SamplingParams) -> None:
    plain, want = run(params)

    driver, got = run(params, [*PROMPT, *want.token_ids])

    assert got.token_ids == want.token_ids
    assert (got.text, got.finish_reason) == (want.text, want.finish_reason)
    assert len(got.logprobs) == len(want.logprobs)
    for one, other in zip(got.logprobs, want.logprobs, strict=True):
        assert one.chosen.token_id == other.chosen.token_id
        assert one.chosen.logprob == pytest.approx(other.chosen.logprob, abs=1e-4)
        assert one.text_offset == other.text_offset
    assert driver.num_steps < plain.num_steps / 2
    counts = driver.engine._speculator.counts  # type: ignore[union-attr]
    assert counts.num_accepted == counts.num_drafted > 0


def test_wrong_guesses_change_nothing() -> None:
    _, want = run(greedy(40))
    wrong = [*PROMPT, *((token + 1) % 90 for token in want.token_ids)]

    driver, got = run(greedy(40), wrong)

    assert got.token_ids == want.token_ids
    assert driver.engine._speculator.counts.num_accepted == 0  # type: ignore[union-attr]


def test_a_stop_in_the_middle_of_right_guesses_ends_the_answer_there() -> None:
    _, whole = run(greedy(40))
    stop = whole.token_ids[17]
    first = whole.token_ids.index(stop)

    _, got = run(greedy(40, stop_token_ids=(stop,)), [*PROMPT, *whole.token_ids])

    assert got.finish_reason is FinishReason.STOP
    assert got.token_ids == whole.token_ids[: first + 1]
    assert got.num_output_tokens == first + 1


def test_a_stop_string_in_the_middle_of_right_guesses_ends_the_answer_there() -> None:
    _, whole = run(greedy(40))
    stop = whole.text[10:13]
    params = greedy(40, stop=(stop,))
    _, want = run(params)

    _, got = run(params, [*PROMPT, *whole.token_ids])

    assert (got.text, got.token_ids) == (want.text, want.token_ids)
    assert got.num_output_tokens == want.num_output_tokens
    assert got.finish_reason is FinishReason.STOP


class ErrsAt:
    """Right but for every ``period``-th position."""

    def __init__(self, text: Sequence[int], period: int) -> None:
        self._text = text
        self._period = period

    def propose(self, token_ids: Sequence[int], max_tokens: int) -> list[int]:
        places = range(len(token_ids), min(len(token_ids) + max_tokens, len(self._text)))
        return [self._text[p] ^ (p % self._period == 0) for p in places]


@pytest.mark.parametrize("name", ["lfm2", "jamba"])  # the second takes no ragged passes
@pytest.mark.parametrize("period", [1, 3, 5, 1000])
def test_states_behind_wrong_guesses_are_taken_back(name: str, period: int) -> None:
    loaded = make_tiny_model(name)
    params = SamplingParams(max_tokens=60, temperature=1.2, seed=5, ignore_eos=True)
    prompts = {"a": PROMPT, "b": PROMPT[3:], "c": PROMPT[5:20]}
    plain = EngineDriver(build(loaded).engine)
    plain.run([make_request(key, prompt, params) for key, prompt in prompts.items()])
    texts = iter([[*prompts[key], *plain.answers[key, 0].token_ids] for key in "abc"])
    driver = EngineDriver(build(loaded, verifies=True).engine)
    assert driver.engine._runner._model.takes_ragged == (name == "lfm2")  # type: ignore[attr-defined]
    source = HostSource("errs", lambda: ErrsAt(next(texts), period))
    speculator = driver.engine._speculator = AlwaysOn(source, max_tokens=7)
    speculator._governor = heard = Recorder()  # type: ignore[assignment]
    longest, chunks = 0, 0
    execute = driver.engine._runner.execute

    def watch(schedule: Any, masks: Any = None) -> Any:
        nonlocal longest, chunks
        longest = max([longest, *(it.stop - it.start for it in schedule.rows if it.decodes)])
        chunks += schedule.num_prefill_tokens
        return execute(schedule, masks)

    driver.engine._runner.execute = watch  # type: ignore[method-assign]
    driver.run([make_request(key, prompt, params) for key, prompt in prompts.items()])

    for key in prompts:
        assert driver.answers[key, 0].token_ids == plain.answers[key, 0].token_ids
    assert chunks == sum(len(prompt) - 1 for prompt in prompts.values())
    assert longest <= 8
    counts = speculator.counts
    assert (counts.num_accepted < counts.num_drafted) == (period < 1000)
    assert driver.num_steps < plain.num_steps or period == 1
    # Replays are part of what speculation costs; only what ran beside prompts is left out.
    assert sum(step.num_tokens for step in heard.steps) > 3 * 60 - 9


def test_states_at_the_ends_of_blocks_are_saved_in_spite_of_guesses() -> None:
    loaded = make_tiny_model("lfm2")
    plain = EngineDriver(build(loaded).engine)
    plain.run([make_request("a", PROMPT, greedy(60))])
    text = [*PROMPT, *plain.answers["a", 0].token_ids]

    driver = EngineDriver(build(loaded, verifies=True).engine)
    source = HostSource("errs", lambda: ErrsAt(text, 3))
    driver.engine._speculator = AlwaysOn(source, max_tokens=7)
    driver.run([make_request("a", PROMPT, greedy(60))])
    driver.run([make_request("b", [*text, 7, 8], greedy(20))])
    plain.run([make_request("b", [*text, 7, 8], greedy(20))])

    want, got = plain.answers["b", 0], driver.answers["b", 0]
    assert got.num_cached_tokens == want.num_cached_tokens == len(text) // 16 * 16
    assert got.token_ids == want.token_ids


@pytest.mark.parametrize(
    "params", [greedy(30, speculation=False), greedy(30, repetition_penalty=1.3)], ids=str
)
def test_who_must_not_speculate_gets_no_drafts(params: SamplingParams) -> None:
    _, want = run(params)

    driver, got = run(params, [*PROMPT, *want.token_ids])

    assert got.token_ids == want.token_ids
    assert driver.engine._speculator.counts.num_drafted == 0  # type: ignore[union-attr]


class Recorder:
    """A governor that only writes down what it is told."""

    def __init__(self) -> None:
        self.steps: list[DecodeStep] = []

    def observe(self, step: DecodeStep) -> None:
        self.steps.append(step)


class Dear(HostSource):
    """Guesses that cost something, after a step of reading."""

    is_free = False
    num_calls = 0

    def propose(self, wanted: Any) -> list[list[int]]:
        self.num_calls += 1
        self.is_behind = bool(wanted) and not self._proposers
        return super().propose(wanted)


def test_the_governor_hears_of_no_step_in_which_the_drafter_was_reading() -> None:
    _, want = run(greedy(20))
    driver = EngineDriver(build(make_tiny_model("qwen3")).engine)
    source = Dear("dear", lambda: KnowsTheAnswer([*PROMPT, *want.token_ids]))
    speculator = driver.engine._speculator = AlwaysOn(source, max_tokens=7)
    speculator._governor = heard = Recorder()  # type: ignore[assignment]

    driver.run([make_request("a", PROMPT, greedy(20))])

    # The prompt's step draws one token. The next brings three, while the drafter reads.
    assert speculator.counts.num_emitted == 19
    assert sum(step.num_tokens for step in heard.steps) == 16


def test_the_governor_hears_of_no_step_that_was_compiled_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, want = run(greedy(20))
    driver = EngineDriver(build(make_tiny_model("qwen3")).engine)
    source = HostSource("known", lambda: KnowsTheAnswer([*PROMPT, *want.token_ids]))
    speculator = driver.engine._speculator = AlwaysOn(source, max_tokens=7)
    speculator._governor = heard = Recorder()  # type: ignore[assignment]
    runner = driver.engine._runner
    times = iter(range(1000))  # more with every look
    monkeypatch.setattr(type(runner), "num_traces", property(lambda _: next(times)))

    driver.run([make_request("a", PROMPT, greedy(20))])

    assert heard.steps == []
    assert speculator.counts.num_emitted == 19


def test_guesses_that_cost_something_are_not_made_while_speculation_is_off() -> None:
    driver = EngineDriver(build(make_tiny_model("qwen3")).engine)
    source = Dear("dear", lambda: KnowsTheAnswer(()))
    driver.engine._speculator = Speculator(source, max_tokens=7)

    driver.run([make_request("a", PROMPT, greedy(20))])

    assert source.num_calls == 0


def test_a_fault_does_not_swallow_what_the_step_before_had_to_tell() -> None:
    """With drafts a step is told before the next one starts, and that one may fail."""
    driver = EngineDriver(build(make_tiny_model("qwen3")).engine)
    text = [*PROMPT, *run(greedy(40))[1].token_ids]
    source = HostSource("known", lambda: KnowsTheAnswer(text))
    driver.engine._speculator = AlwaysOn(source, max_tokens=3)
    driver.add(make_request("short", PROMPT, greedy(6)))
    driver.add(make_request("long", PROMPT, greedy(40)))
    (short,) = driver.engine._sequences["short"]
    execute = driver.engine._runner.execute

    def break_once(schedule: Any, masks: Any = None) -> Any:
        if short.is_finished:
            raise RuntimeError("device lost")
        return execute(schedule, masks)

    driver.engine._runner.execute = break_once  # type: ignore[method-assign]

    driver.finish()

    assert driver.answers["short", 0].finish_reason is FinishReason.LENGTH
    assert driver.answers["short", 0].num_output_tokens == 6
    assert driver.answers["long", 0].finish_reason is FinishReason.ERROR
