"""MTP heads in the batch guess what they guess alone, on caches of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from engine_driver import EngineDriver, build, greedy, make_request
from reference import reference_tokens
from tiny_drafters import DRAFTERS, build_with_head, make_drafter, make_right_pair
from tiny_models import make_tiny_model

from pippin.core.backend import mx
from pippin.core.engine import device_plan
from pippin.core.models.mtp_head import MtpHead
from pippin.core.runner.attention.table_attention import TableAttention
from pippin.core.runner.head import find_embedding, find_head
from pippin.core.runner.model_adapter import new_prompt_cache
from pippin.core.runner.mtp_runner import MtpRunner
from pippin.core.runner.paged_model import PagedModel
from pippin.core.sampling_params import SamplingParams


def prompts(count: int, *, longest: int = 90) -> list[list[int]]:
    rng = np.random.default_rng(count)
    return [rng.integers(3, 260, size=rng.integers(1, longest)).tolist() for _ in range(count)]


class Plain:
    """A head on mlx-lm's caches, and the model that it goes with, one text at a time."""

    def __init__(self, name: str) -> None:
        loaded = make_tiny_model(name)
        self.model = loaded.model
        self.embed = find_embedding(self.model, loaded.vocab_size)
        self.head = find_head(self.model, loaded.vocab_size)
        assert self.embed is not None
        self.mtp = MtpHead(make_drafter(name), self.embed)

    def guess(self, tokens: Sequence[int], count: int) -> list[int]:
        assert self.head is not None
        with self.head.watch() as seen:
            self.model(mx.array([tokens[:-1]]), cache=new_prompt_cache(self.model))
        cache = self.mtp.make_cache()
        made = self.mtp(mx.array([tokens[1:]]), cache, seen[0])[:, -1:]
        guess: list[int] = []
        while len(guess) < count:
            guess.append(np.asarray(mx.argmax(self.head.logits(made)[0, -1])).item())
            made = self.mtp(mx.array([guess[-1:]]), cache, made)
        return guess


class Recorder:
    """Keeps what was proposed for which tokens."""

    def __init__(self, source: MtpRunner) -> None:
        self._propose = source.propose
        self.seen: list[tuple[list[int], list[int]]] = []
        source.propose = self  # type: ignore[method-assign]

    def __call__(self, wanted: Any) -> list[list[int]]:
        guesses = self._propose(wanted)
        for (sequence, _), guess in zip(wanted, guesses, strict=True):
            self.seen.append((list(sequence.token_ids), list(guess)))
        return guesses


def always_long(driver: EngineDriver, count: int) -> None:
    """Have every sequence ask for so many tokens, however its drafts fare."""
    speculator: Any = driver.engine._speculator
    of = speculator._of

    def long(sequence: Any) -> Any:
        drafts = of(sequence)
        drafts._length._tokens = count
        return drafts

    speculator._of = long


@pytest.mark.parametrize("name", DRAFTERS)
def test_guesses_are_those_of_the_head_alone(name: str) -> None:
    plain = Plain(name)
    texts = prompts(6)
    wanted = [reference_tokens(plain.model, prompt, num_tokens=20) for prompt in texts]
    built = build_with_head(make_tiny_model(name), make_drafter(name))
    driver = EngineDriver(built.engine)
    always_long(driver, 3)
    source: Any = built.engine._speculator._source  # type: ignore[union-attr]
    recorder = Recorder(source)

    driver.run_staggered(
        [make_request(str(i), prompt, greedy(20)) for i, prompt in enumerate(texts)]
    )

    assert [driver.answers[str(i), 0].token_ids for i in range(6)] == wanted
    made = [(tokens, guess) for tokens, guess in recorder.seen if guess]
    assert len(made) > 60
    for tokens, guess in made[::9]:
        assert guess == plain.guess(tokens, len(guess))
    assert max(len(guess) for _, guess in made) == 3
    recorder.seen.clear()
    driver.run([make_request("again", max(texts, key=len), greedy(20))])
    assert driver.answers["again", 0].num_cached_tokens >= 16
    made = [(tokens, guess) for tokens, guess in recorder.seen if guess]
    for tokens, guess in made[::4]:  # what it finds in the blocks is its own
        assert guess == plain.guess(tokens, len(guess))


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_a_head_that_is_right_saves_steps(temperature: float) -> None:
    target, _ = make_right_pair()
    params = SamplingParams(max_tokens=40, temperature=temperature, seed=3, ignore_eos=True)
    requests = [make_request(str(i), prompt, params) for i, prompt in enumerate(prompts(4))]
    plain = EngineDriver(build(target).engine)
    plain.run(requests)

    driver = EngineDriver(build_with_head(*make_right_pair()).engine)
    driver.run(requests)

    for key, answer in plain.answers.items():
        assert driver.answers[key].token_ids == answer.token_ids
    counts = driver.engine._speculator.counts  # type: ignore[union-attr]
    assert counts.num_accepted == counts.num_drafted > 60
    assert driver.num_steps < plain.num_steps * 0.5


def test_guesses_survive_preemption() -> None:
    target, drafter = make_right_pair()
    requests = [make_request(str(i), prompt, greedy(60)) for i, prompt in enumerate(prompts(12))]
    plain = EngineDriver(build(target).engine)
    plain.run(requests)

    driver = EngineDriver(build_with_head(target, drafter, num_tokens=500).engine)
    driver.run(requests)

    assert driver.num_preempted > 0
    for key, answer in plain.answers.items():
        assert driver.answers[key].token_ids == answer.token_ids
    counts = driver.engine._speculator.counts  # type: ignore[union-attr]
    assert counts.num_accepted == counts.num_drafted > 0


def test_who_must_not_speculate_gets_no_guess() -> None:
    loaded, drafter = make_right_pair()
    driver = EngineDriver(build_with_head(loaded, drafter).engine)
    requests = [
        make_request(str(i), prompt, greedy(20, speculation=i > 0))
        for i, prompt in enumerate(prompts(3))
    ]
    recorder = Recorder(driver.engine._speculator._source)  # type: ignore

    driver.run(requests)

    first = list(requests[0].prompt_token_ids)
    assert any(guess for _, guess in recorder.seen)
    assert not any(tokens[: len(first)] == first for tokens, _ in recorder.seen)


def test_the_head_follows_while_speculation_is_off() -> None:
    plain = Plain("qwen3.5")
    (prompt,) = prompts(1)
    built = build_with_head(make_tiny_model("qwen3.5"), make_drafter("qwen3.5"))
    engine: Any = built.engine
    is_on = False
    engine._speculator.is_on = lambda num_sequences: is_on
    recorder = Recorder(engine._speculator._source)
    driver = EngineDriver(built.engine)
    driver.add(make_request("a", prompt, greedy(40)))
    for _ in range(15):
        driver.step()
    assert recorder.seen == []
    is_on = True

    driver.finish()

    assert driver.answers["a", 0].token_ids == reference_tokens(plain.model, prompt, num_tokens=40)
    first, *others = recorder.seen
    assert first[1] == []  # nothing to go by; the step before did not know
    made = [(tokens, guess) for tokens, guess in others if guess]
    for tokens, guess in made[::5]:
        assert guess == plain.guess(tokens, len(guess))


def test_compiled_steps_guess_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Plain("qwen3.5")
    texts = prompts(5)
    wanted = [reference_tokens(plain.model, prompt, num_tokens=20) for prompt in texts]
    models: list[PagedModel] = []

    def make(*args: Any, **options: Any) -> PagedModel:
        models.append(PagedModel(*args, **options | {"is_compiled": True}))
        return models[-1]

    monkeypatch.setattr(device_plan, "PagedModel", make)
    monkeypatch.setattr(device_plan, "_choose_attention", lambda _: TableAttention())
    mx.enable_compile()
    try:
        built = build_with_head(make_tiny_model("qwen3.5"), make_drafter("qwen3.5"))
        driver = EngineDriver(built.engine)
        always_long(driver, 2)
        recorder = Recorder(built.engine._speculator._source)  # type: ignore
        driver.run_staggered(
            [make_request(str(i), prompt, greedy(20)) for i, prompt in enumerate(texts)]
        )
    finally:
        mx.disable_compile()

    assert [driver.answers[str(i), 0].token_ids for i in range(5)] == wanted
    made = [(tokens, guess) for tokens, guess in recorder.seen if guess]
    for tokens, guess in made[::9]:
        assert guess == plain.guess(tokens, len(guess))
    assert all(model.is_compiled for model in models)


def test_numbers_that_are_none_spoil_no_answer() -> None:
    loaded, drafter = make_tiny_model("qwen3.5"), make_drafter("qwen3.5")
    (prompt,) = prompts(1)
    want = reference_tokens(make_tiny_model("qwen3.5").model, prompt, num_tokens=12)
    driver = EngineDriver(build_with_head(loaded, drafter).engine)
    drafter.norm.weight = drafter.norm.weight * float("nan")

    driver.run([make_request("a", prompt, greedy(12))])

    assert driver.answers["a", 0].token_ids == want
    assert driver.engine._speculator.counts.num_drafted == 0  # type: ignore[union-attr]
