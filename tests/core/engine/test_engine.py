"""The engine step by step on tiny models: neighbours, logprobs, stops, aborts, memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from engine_driver import Answer, EngineDriver, build, greedy, make_request
from reference import reference_rows, reference_tokens
from tiny_models import EOS_ID, VOCAB_SIZE, family_named, make_tiny_model

from pippin.core.backend import mx
from pippin.core.engine import factory
from pippin.core.errors import ConfigError, OverloadedError
from pippin.core.models.loader import LoadedModel
from pippin.core.request import FinishReason, PositionLogprobs, Request
from pippin.core.sampling_params import SamplingParams

NUM_TOKENS = 24
HOT: tuple[dict[str, Any], ...] = (
    {"temperature": 1.0},
    {"temperature": 2.0, "top_p": 0.9},
    {"temperature": 0.7, "top_k": 5, "repetition_penalty": 1.3},
    {"temperature": 1.3, "min_p": 0.1, "presence_penalty": 1.0},
    {"temperature": 0.0, "frequency_penalty": 1.0, "logit_bias": {65: 5.0}},
    {"temperature": 1.0, "num_logprobs": 5},
)


@pytest.fixture(scope="module")
def llama() -> LoadedModel:
    return make_tiny_model("llama-tied")


@pytest.fixture(scope="module")
def gemma() -> LoadedModel:
    return make_tiny_model("gemma3")


def make_prompts(count: int, *, shortest: int = 1, longest: int = 60, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(shortest, longest + 1, size=count)
    return [rng.integers(0, VOCAB_SIZE, size=int(length)).tolist() for length in lengths]


def hot(seed: int | None = None, **settings: Any) -> SamplingParams:
    return SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True, seed=seed, **settings)


def log_softmax(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    rows = rows.astype(np.float64)
    peak = rows.max(axis=-1, keepdims=True)
    out: np.ndarray[Any, Any] = (
        rows - peak - np.log(np.exp(rows - peak).sum(axis=-1, keepdims=True))
    )
    return out


def run_one(loaded: LoadedModel, request: Request, **settings: Any) -> tuple[Answer, EngineDriver]:
    driver = EngineDriver(build(loaded, block_size=8, **settings).engine)
    driver.run([request])
    return driver.answers[request.request_id, 0], driver


def test_greedy_answers_do_not_heed_their_neighbours(llama: LoadedModel) -> None:
    driver = EngineDriver(build(llama, block_size=8).engine)
    prompts = make_prompts(6)
    requests = []
    for index, prompt in enumerate(prompts):
        requests.append(make_request(f"greedy{index}", prompt, greedy(NUM_TOKENS)))
        requests.append(make_request(f"hot{index}", prompt, hot(**HOT[index])))

    driver.run_staggered(requests)

    for index, prompt in enumerate(prompts):
        want = reference_tokens(llama.model, prompt, num_tokens=NUM_TOKENS)
        assert driver.answers[f"greedy{index}", 0].token_ids == want


@pytest.mark.parametrize("lead", [8, 24, 200])
def test_a_store_of_which_little_is_there_at_first_answers_the_same(
    gemma: LoadedModel, monkeypatch: pytest.MonkeyPatch, lead: int
) -> None:
    monkeypatch.setattr(factory, "_LEAD_TOKENS", lead)
    driver = EngineDriver(build(gemma, block_size=8).engine)
    prompts = make_prompts(6)

    driver.run_staggered(
        [make_request(str(i), prompt, greedy(NUM_TOKENS)) for i, prompt in enumerate(prompts)]
    )

    for index, prompt in enumerate(prompts):
        want = reference_tokens(gemma.model, prompt, num_tokens=NUM_TOKENS)
        assert driver.answers[str(index), 0].token_ids == want


@pytest.mark.parametrize("num_tokens", [8192, 200], ids=["roomy", "preempted"])
def test_a_seed_draws_the_same_answer_alone_and_among_others(
    llama: LoadedModel, num_tokens: int
) -> None:
    prompts = make_prompts(15, seed=1)
    requests = [
        make_request(f"r{i}", prompt, hot(seed=i, **HOT[i % len(HOT)]))
        for i, prompt in enumerate(prompts)
    ]
    alone = [run_one(llama, request)[0].token_ids for request in requests]
    built = build(llama, block_size=8, num_tokens=num_tokens, prefill_chunk=64)
    driver = EngineDriver(built.engine)

    driver.run_staggered(requests, gaps=(0, 2, 1))

    assert (driver.num_preempted > 0) == (num_tokens == 200)
    assert [driver.answers[f"r{i}", 0].token_ids for i in range(15)] == alone
    assert len({tuple(answer) for answer in alone}) == 15


def test_answers_of_one_request_differ_and_repeat_with_the_seed(llama: LoadedModel) -> None:
    prompt = make_prompts(1, shortest=40)[0]
    request = make_request("n", prompt, hot(seed=7, temperature=1.0), n=4)
    driver = EngineDriver(build(llama, block_size=8).engine)
    driver.run([request])
    first = [driver.answers["n", index].token_ids for index in range(4)]
    again = EngineDriver(build(llama, block_size=8).engine)
    again.run([request])

    assert len({tuple(answer) for answer in first}) == 4
    assert [again.answers["n", index].token_ids for index in range(4)] == first
    # The prompt was computed once: the siblings waited for its blocks.
    whole = (len(prompt) - 1) // 8 * 8
    assert driver.num_prefill_tokens == len(prompt) - 1 + 3 * (len(prompt) - 1 - whole)


def test_without_a_seed_answers_differ_from_time_to_time(llama: LoadedModel) -> None:
    driver = EngineDriver(build(llama).engine)
    for index in range(3):
        driver.run([make_request(f"r{index}", [1, 2, 3], hot(temperature=1.0))])

    assert len({tuple(answer.token_ids) for answer in driver.answers.values()}) == 3


def check_prompt_logprobs(
    loaded: LoadedModel,
    prompt: Sequence[int],
    got: Sequence[PositionLogprobs | None],
    *,
    num_top: int,
) -> None:
    assert len(got) == len(prompt)
    assert got[0] is None
    want = log_softmax(reference_rows(loaded.model, prompt[:1], prompt[1:]))
    for position, entry in enumerate(got[1:], start=1):
        assert entry is not None
        row = want[position - 1]
        assert entry.chosen.token_id == prompt[position]
        assert entry.chosen.logprob == pytest.approx(row[prompt[position]], abs=1e-4)
        best = np.argsort(-row)[:num_top]
        assert [candidate.token_id for candidate in entry.top] == best.tolist()
        got_top = [candidate.logprob for candidate in entry.top]
        assert np.allclose(got_top, row[best], atol=1e-4)


@pytest.mark.parametrize("length", [2, 3, 17, 70, 300])
@pytest.mark.parametrize("max_tokens", [0, 5])
def test_prompt_logprobs_are_those_of_the_reference(
    gemma: LoadedModel, length: int, max_tokens: int
) -> None:
    prompt = make_prompts(1, shortest=length, longest=length)[0]
    params = greedy(max_tokens, num_prompt_logprobs=3)
    # Something runs beside it, and chunks of 16 cut the prompt.
    built = build(gemma, block_size=8, prefill_chunk=16)
    driver = EngineDriver(built.engine)
    driver.add(make_request("other", prompt, greedy(40)))
    for _ in range(3):
        driver.step()

    driver.run([make_request("asks", prompt, params)])

    answer = driver.answers["asks", 0]
    check_prompt_logprobs(gemma, prompt, driver.prompt_logprobs["asks"], num_top=3)
    assert answer.finish_reason is FinishReason.LENGTH
    assert answer.token_ids == (
        reference_tokens(gemma.model, prompt, num_tokens=max_tokens) if max_tokens else []
    )
    # What was found in the cache would have had no logits.
    assert answer.num_cached_tokens == 0
    assert list(driver.prompt_logprobs) == ["asks"]


def test_prompt_logprobs_survive_a_preemption(llama: LoadedModel) -> None:
    built = build(llama, block_size=8, num_tokens=136, prefill_chunk=16)
    driver = EngineDriver(built.engine)
    prompts = make_prompts(3, shortest=36, longest=40)
    for index, prompt in enumerate(prompts):
        params = greedy(60, num_prompt_logprobs=1)
        driver.add(make_request(f"r{index}", prompt, params))
    driver.finish()

    assert driver.num_preempted > 0
    for index, prompt in enumerate(prompts):
        check_prompt_logprobs(llama, prompt, driver.prompt_logprobs[f"r{index}"], num_top=1)
        want = reference_tokens(llama.model, prompt, num_tokens=60)
        assert driver.answers[f"r{index}", 0].token_ids == want


def test_prompt_logprobs_survive_a_preemption_in_mid_prompt(llama: LoadedModel) -> None:
    """The older sequence needs a block while the younger one is still at its prompt."""
    built = build(llama, block_size=8, num_tokens=72, prefill_chunk=64, mixed_prefill_chunk=3)
    driver = EngineDriver(built.engine)
    driver.add(make_request("old", [1, 2, 3, 4], greedy(40)))
    for _ in range(3):
        driver.step()
    prompt = make_prompts(1, shortest=54, longest=54)[0]
    driver.add(make_request("young", prompt, greedy(5, num_prompt_logprobs=1)))
    while not driver.num_preempted:
        driver.step()
    assert not driver.prompt_logprobs
    driver.finish()

    check_prompt_logprobs(llama, prompt, driver.prompt_logprobs["young"], num_top=1)
    want = reference_tokens(llama.model, prompt, num_tokens=5)
    assert driver.answers["young", 0].token_ids == want


def test_logprobs_of_an_answer_are_those_of_the_reference(llama: LoadedModel) -> None:
    prompt = make_prompts(1, shortest=20)[0]
    params = greedy(NUM_TOKENS, num_logprobs=4)

    answer, _ = run_one(llama, make_request("r", prompt, params))

    want = log_softmax(reference_rows(llama.model, prompt, answer.token_ids))
    assert [entry.chosen.token_id for entry in answer.logprobs] == answer.token_ids
    for entry, row in zip(answer.logprobs, want, strict=True):
        assert entry.chosen.logprob == pytest.approx(row.max(), abs=1e-4)
        assert [c.token_id for c in entry.top] == np.argsort(-row)[:4].tolist()
        assert sum(np.exp(c.logprob) for c in entry.top) <= 1.0 + 1e-6


def test_an_end_token_ends_the_answer_and_is_counted(llama: LoadedModel) -> None:
    prompt = [1, 2, 3]
    wanted = reference_tokens(llama.model, prompt, num_tokens=6)
    params = greedy(50, ignore_eos=False, logit_bias={EOS_ID: 100.0}, min_tokens=3)

    answer, _ = run_one(llama, make_request("r", prompt, params))

    assert answer.finish_reason is FinishReason.STOP
    assert answer.token_ids == [*wanted[:3], EOS_ID]
    assert answer.num_output_tokens == 4


def test_a_stop_token_of_the_caller_ends_the_answer(llama: LoadedModel) -> None:
    prompt = [9, 8, 7]
    wanted = reference_tokens(llama.model, prompt, num_tokens=20)
    stop = wanted[5]
    at = wanted.index(stop)

    answer, _ = run_one(llama, make_request("r", prompt, greedy(20, stop_token_ids=(stop,))))

    assert answer.token_ids == wanted[: at + 1]
    assert answer.finish_reason is FinishReason.STOP
    assert answer.stop_reason == stop


def letters(**settings: Any) -> SamplingParams:
    """Only small letters, so that the answer is text that can be searched."""
    bias = dict.fromkeys(range(ord("a"), ord("z") + 1), 60.0)
    return greedy(40, logit_bias=bias, **settings)


def test_a_stop_string_ends_the_answer_and_frees_its_blocks(llama: LoadedModel) -> None:
    prompt = [1, 2, 3]
    free, _ = run_one(llama, make_request("free", prompt, letters()))
    assert len(free.text) == 40
    stop = free.text[10:13]
    at = free.text.index(stop)
    driver = EngineDriver(build(llama, block_size=8).engine)

    driver.run([make_request("r", prompt, letters(stop=("never", stop)))])

    answer = driver.answers["r", 0]
    assert answer.text == free.text[:at]
    assert answer.finish_reason is FinishReason.STOP
    assert answer.stop_reason == stop
    assert answer.num_output_tokens == at + 3


def test_max_tokens_of_the_model_bound_the_answer(llama: LoadedModel) -> None:
    prompt = make_prompts(1, shortest=30, longest=30)[0]
    params = SamplingParams(temperature=0.0, ignore_eos=True)

    answer, _ = run_one(llama, make_request("r", prompt, params), max_model_len=50)

    assert answer.finish_reason is FinishReason.LENGTH
    assert answer.token_ids == reference_tokens(llama.model, prompt, num_tokens=20)


@pytest.mark.parametrize("family", ["llama-tied", "gemma3", "lfm2"])
@pytest.mark.parametrize("num_steps", [0, 1, 2, 9, 14])
def test_an_abort_frees_everything_at_once(family: str, num_steps: int) -> None:
    """Also in the middle of the prompt, which takes 13 chunks here."""
    driver = EngineDriver(build(make_tiny_model(family), block_size=8, prefill_chunk=16).engine)
    prompt = make_prompts(1, shortest=200, longest=200)[0]
    driver.engine.add(make_request("gone", prompt, greedy(100), n=2))
    driver.answers["gone", 0], driver.answers["gone", 1] = Answer(), Answer()
    for _ in range(num_steps):
        driver.step()

    ended = driver.engine.abort("gone")

    driver.check_idle()
    assert [entry.finish_reason for entry in ended] == [FinishReason.ABORT] * 2
    assert driver.engine.abort("gone") == []
    driver.finish()
    assert all(answer.finish_reason is None for answer in driver.answers.values())


def test_an_abort_harms_nobody_else(gemma: LoadedModel) -> None:
    driver = EngineDriver(build(gemma, block_size=8, num_tokens=1200, prefill_chunk=32).engine)
    prompts = make_prompts(12, longest=120, seed=3)
    rng = np.random.default_rng(0)
    gone = set(rng.choice(12, size=6, replace=False).tolist())
    for index, prompt in enumerate(prompts):
        driver.add(make_request(f"r{index}", prompt, greedy(NUM_TOKENS)))
        driver.step()
    for index in gone:
        driver.engine.abort(f"r{index}")
        driver.engine.scheduler.check_integrity()
        driver.step()
    driver.finish()

    for index in set(range(12)) - gone:
        want = reference_tokens(gemma.model, prompts[index], num_tokens=NUM_TOKENS)
        assert driver.answers[f"r{index}", 0].token_ids == want


def test_memory_follows_the_tokens_and_not_the_longest(llama: LoadedModel) -> None:
    driver = EngineDriver(build(llama, block_size=16, num_tokens=4096).engine)
    lengths = [1000, 10, 10, 10]
    for index, length in enumerate(lengths):
        prompt = make_prompts(1, shortest=length, longest=length, seed=index)[0]
        driver.add(make_request(f"r{index}", prompt, greedy(6)))
    most = 0
    while driver.engine.has_work:
        driver.step()
        stats = driver.engine.stats()
        held = stats.num_blocks - stats.num_free_blocks - stats.num_evictable_blocks
        most = max(most, held)

    needed = sum(-(-(length + 6) // 16) for length in lengths)
    assert most <= 1.1 * needed


@pytest.mark.parametrize("family", ["llama-tied", "gemma3"])
def test_a_step_writes_into_the_store_and_copies_none_of_it(family: str) -> None:
    driver = EngineDriver(build(make_tiny_model(family), num_tokens=65536, max_num_seqs=64).engine)
    for index, prompt in enumerate(make_prompts(4, shortest=30)):
        driver.add(make_request(f"r{index}", prompt, greedy(40)))
    driver.step()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    for _ in range(20):
        driver.step()

    stored = driver.engine.stats().kv_cache_bytes
    assert stored > 40 << 20
    # One of the 6 or 8 arrays would be 6 MiB or more.
    assert mx.get_peak_memory() - before < 4 << 20


def test_a_sliding_layer_holds_no_more_than_its_window(gemma: LoadedModel) -> None:
    driver = EngineDriver(build(gemma, block_size=8, prefill_chunk=16).engine)
    prompt = make_prompts(1, shortest=400, longest=400)[0]
    driver.add(make_request("r", prompt, greedy(30)))
    most = 0
    while driver.engine.has_work:
        driver.step()
        for sequence in driver.engine.scheduler.running:
            full, sliding = sequence.cache.tables
            most = max(most, sliding.num_held)
            assert full.num_held >= sliding.num_held

    # Window and chunk, and a block that both ends lie in.
    assert 3 <= most <= (24 + 16) // 8 + 1


def test_a_full_queue_refuses_and_forgets(llama: LoadedModel) -> None:
    driver = EngineDriver(build(llama, max_queue=3).engine)
    driver.add(make_request("a", [1], greedy(3), n=2))
    with pytest.raises(OverloadedError):
        driver.engine.add(make_request("b", [1], greedy(3), n=2))
    driver.add(make_request("c", [1], greedy(3)))
    driver.finish()

    assert set(driver.answers) == {("a", 0), ("a", 1), ("c", 0)}


def test_a_cache_that_is_too_small_is_refused(gemma: LoadedModel, llama: LoadedModel) -> None:
    with pytest.raises(ConfigError, match=r"kv.cache.memory"):
        build(gemma, num_tokens=40, prefill_chunk=64)
    with pytest.raises(ConfigError, match=r"max.model.len"):
        build(llama, num_tokens=256, max_model_len=1000)
    assert build(llama, num_tokens=256).max_model_len == 256


def test_step_stats_add_up(llama: LoadedModel) -> None:
    engine = build(llama, block_size=8).engine
    prompt = make_prompts(1, shortest=33, longest=33)[0]
    for turn in range(2):
        engine.add(make_request(f"r{turn}", prompt, greedy(10)))
        stats = []
        while engine.has_work:
            result = engine.step()
            if result.stats is not None:
                stats.append(result.stats)
        hits = 32 if turn else 0
        assert sum(s.num_prefill_tokens for s in stats) == 32 - hits
        assert sum(s.num_decode_tokens for s in stats) == 10
        assert sum(s.num_prefix_queries for s in stats) == 33
        assert sum(s.num_prefix_hits for s in stats) == hits
        assert sum(len(s.ttft_s) for s in stats) == 1
        assert sum(len(s.inter_token_s) for s in stats) == 9
        assert sum(len(s.queue_s) for s in stats) == 1
        (finished,) = [entry for s in stats for entry in s.finished]
        assert finished.num_cached_tokens == hits
        assert finished.num_output_tokens == 10


def test_a_hit_that_would_be_the_whole_prompt_leaves_one_token(llama: LoadedModel) -> None:
    prompt = make_prompts(1, shortest=32, longest=32)[0]
    driver = EngineDriver(build(llama, block_size=8).engine)
    driver.run([make_request("first", prompt, greedy(4))])

    driver.run([make_request("second", prompt, greedy(4))])

    assert driver.answers["second", 0].num_cached_tokens == 24
    assert driver.answers["second", 0].token_ids == driver.answers["first", 0].token_ids


def test_salts_keep_prefixes_apart(llama: LoadedModel) -> None:
    driver = EngineDriver(build(llama, block_size=8).engine)
    prompt = make_prompts(1, shortest=40, longest=40)[0]
    for index, salt in enumerate(["", "a", "b", "a"]):
        driver.run(
            [
                Request(
                    request_id=f"r{index}",
                    prompt_token_ids=tuple(prompt),
                    params=greedy(3),
                    cache_salt=salt,
                )
            ]
        )

    cached = [driver.answers[f"r{index}", 0].num_cached_tokens for index in range(4)]
    assert cached == [0, 0, 0, 32]


def test_the_answer_is_in_the_prefix_cache_too(llama: LoadedModel) -> None:
    """The next turn of a conversation begins with it."""
    driver = EngineDriver(build(llama, block_size=8).engine)
    prompt = make_prompts(1, shortest=20, longest=20)[0]
    driver.run([make_request("first", prompt, greedy(30))])
    follow_up = [*prompt, *driver.answers["first", 0].token_ids, 1, 2, 3]

    driver.run([make_request("second", follow_up, greedy(10))])

    # The last token of the answer was drawn but never computed.
    assert driver.answers["second", 0].num_cached_tokens == 48
    want = reference_tokens(llama.model, follow_up, num_tokens=10)
    assert driver.answers["second", 0].token_ids == want


def test_no_step_copies_the_kv_store() -> None:
    # Deep, because mlx's CPU stream holds on to what its newest ten operations read: in a model of
    # few layers these may be the same layer's of the pass before.
    family = family_named("llama-tied")
    deep = dataclasses.replace(family, settings={**family.settings, "num_hidden_layers": 16})
    engine = build(make_tiny_model(deep), block_size=8, num_tokens=65_536).engine
    driver = EngineDriver(engine)
    prompts = make_prompts(3, shortest=50, longest=60)
    driver.run([make_request("first", prompts[0], greedy(4))])
    before = mx.get_active_memory()
    mx.reset_peak_memory()

    # A repeat runs a chunk with a prefix and then a row in one step; the others a chunk each.
    driver.run(
        [
            make_request("repeat", prompts[0], greedy(8)),
            make_request("second", prompts[1], greedy(8)),
            make_request("longer", [*prompts[0], *prompts[2]], greedy(8)),
        ]
    )

    assert driver.answers["repeat", 0].num_cached_tokens > 0
    # The keys of one layer are a 32nd of the store.
    assert mx.get_peak_memory() - before < engine.stats().kv_cache_bytes // 40
