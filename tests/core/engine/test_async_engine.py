"""The engine on its own thread, used from event loops, with a model loaded from a folder."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import reference_tokens
from tiny_models import make_tiny_model, save_tiny_model

from pippin.core.cache.kv_store import KVStore
from pippin.core.config import CacheConfig, EngineConfig, SchedulerConfig
from pippin.core.engine import factory
from pippin.core.engine.async_engine import AsyncEngine
from pippin.core.engine.async_generation import AsyncGeneration
from pippin.core.engine.schedule import Schedule
from pippin.core.engine.stats import StepStats
from pippin.core.errors import (
    ContextLengthError,
    EngineStoppedError,
    InvalidRequestError,
    ModelLoadError,
    OverloadedError,
)
from pippin.core.messages import TextPrompt, TokensPrompt
from pippin.core.request import FinishReason, RequestOutput
from pippin.core.runner.paged_runner import PagedRunner
from pippin.core.runner.step_output import StepInFlight
from pippin.core.sampling_params import SamplingParams

TIMEOUT_S = 60
_ids = itertools.count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model("llama-tied", tmp_path_factory.mktemp("model"))


def start(
    folder: Path, *, max_num_seqs: int = 16, max_queue: int = 1024, max_bytes: int = 4 << 20
) -> AsyncEngine:
    config = EngineConfig(
        cache=CacheConfig(block_size=16, max_bytes=max_bytes),
        scheduler=SchedulerConfig(
            max_num_seqs=max_num_seqs,
            max_queue=max_queue,
            prefill_chunk=64,
            mixed_prefill_chunk=64,
        ),
    )
    return AsyncEngine.start(str(folder), config)


@pytest.fixture
def engine(folder: Path) -> Iterator[AsyncEngine]:
    started = start(folder)
    yield started
    started.close()


def greedy(num_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)


async def submit(
    engine: AsyncEngine, prompt: list[int], num_tokens: int, *, n: int = 1
) -> AsyncGeneration:
    return await engine.submit(
        TokensPrompt(prompt),
        greedy(num_tokens),
        request_id=f"r{next(_ids)}",
        num_sequences=n,
    )


async def token_ids(generation: AsyncGeneration) -> list[int]:
    return [token async for step in generation for output in step for token in output.token_ids]


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, TIMEOUT_S))


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        await asyncio.sleep(0.005)


def is_idle(engine: AsyncEngine) -> bool:
    stats = engine.stats()
    return (
        stats.num_running == stats.num_waiting == 0
        and stats.num_free_blocks + stats.num_evictable_blocks == stats.num_blocks
    )


def test_answers_are_those_of_the_reference(engine: AsyncEngine) -> None:
    model = make_tiny_model("llama-tied").model
    prompts = [[1, 2, 3], [200] * 70, [5]]

    async def work() -> None:
        generations = [await submit(engine, prompt, 20) for prompt in prompts]
        answers = await asyncio.gather(*map(token_ids, generations))
        for prompt, generation, answer in zip(prompts, generations, answers, strict=True):
            assert generation.is_done
            assert list(generation.prompt_token_ids) == prompt
            assert answer == reference_tokens(model, prompt, num_tokens=20)

    run(work())
    assert is_idle(engine)


@pytest.mark.parametrize("num_filled", [0, 1, 3])
def test_the_store_is_filled_while_nobody_asks(
    folder: Path, monkeypatch: pytest.MonkeyPatch, num_filled: int
) -> None:
    monkeypatch.setattr(factory, "_LEAD_TOKENS", 100)
    model, prompt = make_tiny_model("llama-tied").model, [3, 4] * 30
    want = reference_tokens(model, prompt, num_tokens=20)
    original, stores = KVStore.fill_more, list[KVStore]()
    may_go_on = threading.Event()

    def fill_more(store: KVStore) -> None:
        if len(stores) < num_filled or may_go_on.is_set():
            original(store)
            stores.append(store)
        else:
            time.sleep(0.002)

    monkeypatch.setattr(KVStore, "fill_more", fill_more)
    engine = start(folder)

    async def work() -> None:
        await until(lambda: len(stores) == num_filled)
        assert await token_ids(await submit(engine, prompt, 20)) == want
        assert len(stores) == num_filled
        may_go_on.set()
        await until(lambda: bool(stores) and not stores[-1].is_partial)
        assert len(stores) == len(stores[-1].arrays())
        assert await token_ids(await submit(engine, prompt, 20)) == want

    try:
        run(work())
    finally:
        engine.close()


def test_one_loop_after_another_may_use_it(engine: AsyncEngine) -> None:
    async def work() -> None:
        assert len(await token_ids(await submit(engine, [1, 2], 5))) == 5

    for _ in range(3):
        run(work())


def test_several_answers_of_one_request_arrive_with_their_index(engine: AsyncEngine) -> None:
    async def work() -> None:
        generation = await submit(engine, [1, 2, 3], 6, n=3)
        counts = [0, 0, 0]
        ended = []
        async for step in generation:
            for output in step:
                counts[output.index] += len(output.token_ids)
                if output.finish_reason is not None:
                    ended.append(output.index)
        assert counts == [6, 6, 6]
        assert sorted(ended) == [0, 1, 2]

    run(work())


def test_prompt_logprobs_are_there_with_the_first_output(engine: AsyncEngine) -> None:
    async def work() -> None:
        generation = await engine.submit(
            TextPrompt("the inn"),
            SamplingParams(max_tokens=2, num_prompt_logprobs=1),
            request_id="logprobs",
        )
        async for _ in generation:
            assert generation.prompt_logprobs is not None
            assert len(generation.prompt_logprobs) == len(generation.prompt_token_ids)

    run(work())


def test_the_model_card_and_the_tokenizer_calls(engine: AsyncEngine) -> None:
    async def work() -> None:
        ids = await engine.tokenize(TextPrompt("in the é"))
        assert await engine.detokenize(ids) == "in the é"
        assert "".join(await engine.token_strings(ids[:-2])) == "in the "
        with pytest.raises(InvalidRequestError):
            await engine.detokenize([5000])

    run(work())
    card = engine.model_card
    assert card.details["attention"] == "paged"
    assert card.details["paging_problem"] is None
    assert card.max_model_len == 4096
    assert engine.is_healthy()


def test_what_cannot_be_served_is_refused_at_once(engine: AsyncEngine) -> None:
    async def work() -> None:
        with pytest.raises(InvalidRequestError):
            await submit(engine, [], 5)
        with pytest.raises(InvalidRequestError):
            await submit(engine, [99999], 5)
        with pytest.raises(ContextLengthError):
            await submit(engine, [1] * 4096, 5)

    run(work())
    assert is_idle(engine)


@pytest.mark.parametrize("after", [0, 1, 5])
def test_an_abort_ends_the_iteration_and_frees_the_blocks(engine: AsyncEngine, after: int) -> None:
    async def work() -> None:
        generation = await submit(engine, [7] * 100, 2000)
        seen = 0
        if after:
            async for _ in generation:
                seen += 1
                if seen == after:
                    generation.abort()
        generation.abort()
        assert [step async for step in generation] == []
        await until(lambda: is_idle(engine))

    run(work())


def test_an_abort_after_the_end_is_harmless(engine: AsyncEngine) -> None:
    async def work() -> None:
        generation = await submit(engine, [1], 3)
        assert len(await token_ids(generation)) == 3
        generation.abort()
        assert len(await token_ids(await submit(engine, [1], 3))) == 3

    run(work())


def test_a_full_queue_refuses(folder: Path) -> None:
    engine = start(folder, max_num_seqs=1, max_queue=2)

    async def work() -> None:
        running = await submit(engine, [1, 2], 3000)
        await until(lambda: engine.stats().num_running == 1)
        waiting = [await submit(engine, [3], 2) for _ in range(2)]
        with pytest.raises(OverloadedError) as refusal:
            await submit(engine, [4], 2)
        assert refusal.value.retry_after_s >= 1
        running.abort()
        answers = await asyncio.gather(*map(token_ids, waiting))
        assert [len(answer) for answer in answers] == [2, 2]
        assert len(await token_ids(await submit(engine, [4], 2))) == 2

    try:
        run(work())
    finally:
        engine.close()


def test_300_requests_with_random_disconnects_leave_nothing_behind(folder: Path) -> None:
    engine = start(folder, max_bytes=1 << 20)
    rng = np.random.default_rng(0)

    async def client(prompt: list[int], num_tokens: int, leaves_after: int | None) -> int:
        generation = await submit(engine, prompt, num_tokens)
        count = 0
        try:
            if leaves_after == 0:
                return 0
            async for step in generation:
                count += sum(len(output.token_ids) for output in step)
                if leaves_after is not None and count >= leaves_after:
                    break
        finally:
            generation.abort()
        return count

    async def work() -> None:
        clients, expected = [], []
        for _ in range(300):
            prompt = rng.integers(0, 256, size=int(rng.integers(1, 120))).tolist()
            num_tokens = int(rng.integers(1, 24))
            leaves_after = int(rng.integers(0, 8)) if rng.random() < 0.5 else None
            clients.append(client(prompt, num_tokens, leaves_after))
            expected.append(num_tokens if leaves_after is None else None)
        counts = await asyncio.gather(*clients)
        for count, wanted in zip(counts, expected, strict=True):
            assert wanted is None or count == wanted
        await until(lambda: is_idle(engine))

    try:
        run(work())
    finally:
        engine.close()


def test_closing_ends_running_requests_with_an_error(folder: Path) -> None:
    engine = start(folder)

    async def work() -> None:
        generation = await submit(engine, [1, 2], 3000)
        steps: AsyncIterator[Any] = generation.__aiter__()
        await anext(steps)
        await asyncio.to_thread(engine.close)
        with pytest.raises(EngineStoppedError):
            async for _ in steps:
                pass
        with pytest.raises(EngineStoppedError):
            await submit(engine, [1], 1)

    run(work())
    assert not engine.is_healthy()
    engine.close()


def test_closing_ends_the_thread(folder: Path) -> None:
    engine = start(folder)
    assert any(thread.name == "pippin-engine" for thread in threading.enumerate())
    engine.close()

    assert not any(thread.name == "pippin-engine" for thread in threading.enumerate())


def test_a_model_that_cannot_be_loaded_raises_in_start(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError):
        start(tmp_path / "nothing here")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelLoadError):
        start(tmp_path)


def test_the_death_of_the_thread_is_told_to_everybody_who_waits(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = start(folder)
    cause = RuntimeError("an observer with a bug")

    def observer(stats: StepStats) -> None:
        if stats.num_decode_tokens:
            raise cause

    async def work() -> None:
        generations = [await submit(engine, [1, 2], 3000) for _ in range(3)]
        engine.observe(observer)
        for generation in generations:
            with pytest.raises(EngineStoppedError) as stopped:
                await token_ids(generation)
            assert stopped.value.__cause__ is cause
        with pytest.raises(EngineStoppedError):
            await submit(engine, [1], 1)

    with caplog.at_level(logging.CRITICAL):
        run(work())
    assert not engine.is_healthy()
    engine.close()


def test_a_fault_in_a_step_ends_its_requests_and_no_others(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer says so itself; the iteration ends as always."""
    execute = PagedRunner.execute
    breaks = threading.Event()

    def flaky(runner: PagedRunner, schedule: Schedule, masks: Any) -> StepInFlight:
        if breaks.is_set():
            breaks.clear()
            raise RuntimeError("device lost")
        return execute(runner, schedule, masks)

    monkeypatch.setattr(PagedRunner, "execute", flaky)

    async def work() -> None:
        generation = await submit(engine, [1, 2], 3000)
        outputs: list[RequestOutput] = []
        async for step in generation:
            if not outputs:
                breaks.set()
            outputs += step
        assert outputs[-1].finish_reason is FinishReason.ERROR
        assert outputs[-1].error == "RuntimeError: device lost"
        assert len(await token_ids(await submit(engine, [1, 2], 5))) == 5

    run(work())
