"""A real engine behind `AsyncLLM`: batches, streams, errors, ends."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from llm_checks import LONG, TIMEOUT_S, greedy, is_idle, small, until

from pippin.core.config import EngineConfig
from pippin.core.engine.prompt_builder import PromptBuilder
from pippin.core.errors import (
    ContextLengthError,
    EngineStoppedError,
    GenerationError,
    InvalidRequestError,
    ModelLoadError,
    OverloadedError,
    UnsupportedFeatureError,
)
from pippin.core.llm import (
    Answer,
    AsyncLLM,
    ContentDelta,
    Conversation,
    Sampling,
    SamplingParams,
    TextOrTokens,
)
from pippin.core.messages import TextPrompt, TokensPrompt
from pippin.core.request import Request
from pippin.core.runner.paged_runner import PagedRunner

PROMPTS: list[TextOrTokens] = [
    "The sea",
    [1, 2, 3],
    TextPrompt("x" * 70),
    TokensPrompt((200,)),
    "The sea",
]
TOO_LONG = [7] * 5000


def run(
    folder: str,
    work: Callable[[AsyncLLM], Awaitable[None]],
    config: EngineConfig | None = None,
) -> None:
    """Do the work on a fresh model, which it must leave idle."""

    async def main() -> None:
        async with await AsyncLLM.load(folder, config or small()) as llm:
            await work(llm)
            await until(lambda: is_idle(llm.stats()))

    asyncio.run(asyncio.wait_for(main(), TIMEOUT_S))


@pytest.mark.parametrize("params", [greedy(20), {**greedy(20), "temperature": 1.0, "seed": 7}])
def test_a_list_is_answered_as_its_prompts_alone_are(folder: str, params: Any) -> None:
    async def work(llm: AsyncLLM) -> None:
        together = await llm.generate(PROMPTS, params)
        alone = [answer for it in PROMPTS for answer in await llm.generate(it, params)]

        assert [it.token_ids for it in together] == [it.token_ids for it in alone]
        assert [it.text for it in together] == [it.text for it in alone]
        assert [len(it.token_ids) for it in together] == [20] * 5
        assert [it.finish_reason for it in together] == ["length"] * 5
        assert together[1].prompt_token_ids == (1, 2, 3)
        assert together[1].usage.prompt_tokens == 3
        assert alone[2].usage.cached_tokens == 64
        assert await llm.generate([]) == []

    run(folder, work)


def test_a_stream_is_the_whole_answer_in_parts(folder: str) -> None:
    async def work(llm: AsyncLLM) -> None:
        params: Sampling = {**greedy(30), "num_logprobs": 2}
        for stream, whole in (
            (llm.stream_generate("The sea", params), llm.generate("The sea", params)),
            (llm.stream_chat("Hello", params), llm.chat("Hello", params)),
        ):
            *deltas, last = [event async for event in stream]
            [answer] = await whole
            assert isinstance(last, Answer)
            assert (last.text, last.token_ids) == (answer.text, answer.token_ids)
            assert len(deltas) > 1
            assert "".join(it.text for it in deltas if isinstance(it, ContentDelta)) == answer.text
            assert last.logprobs is not None
            assert [it.chosen.token_id for it in last.logprobs] == list(last.token_ids)

    run(folder, work)


def test_a_chat_is_what_the_template_makes_of_it(folder: str) -> None:
    async def work(llm: AsyncLLM) -> None:
        turns: Conversation = [{"role": "user", "content": "Hello"}]
        rendered = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
        one, other, third = await llm.chat(["Hello", turns, "Ho"], greedy(8))
        [plain] = await llm.generate(one.prompt_token_ids, greedy(8))

        assert one.token_ids == other.token_ids == plain.token_ids
        assert third.prompt_token_ids != one.prompt_token_ids
        assert await llm.count_tokens(turns) == one.usage.prompt_tokens
        assert await llm.count_tokens(rendered) == one.usage.prompt_tokens
        assert await llm.count_tokens([1, 2, 3]) == 3

    run(folder, work)


def test_what_is_not_set_is_as_the_model_advises(folder: str, tmp_path: Path) -> None:
    advised = tmp_path / "advised"
    shutil.copytree(folder, advised)
    (advised / "generation_config.json").write_text(json.dumps({"do_sample": False}))

    async def work(llm: AsyncLLM) -> None:
        [by_default] = await llm.generate("The sea", {"max_tokens": 20, "temperature": None})
        [explicit] = await llm.generate("The sea", {"max_tokens": 20, "temperature": 0})
        [other] = await llm.generate("The sea", SamplingParams(max_tokens=20, seed=1))

        assert by_default.token_ids == explicit.token_ids != other.token_ids
        with pytest.raises(InvalidRequestError, match="'temprature'"):
            await llm.generate("The sea", {"temprature": 0})  # type: ignore[arg-type]
        with pytest.raises(InvalidRequestError, match="top_p"):
            await llm.generate("The sea", {"top_p": 3})

    run(str(advised), work)


def test_several_answers_and_what_is_said_of_them(folder: str) -> None:
    async def work(llm: AsyncLLM) -> None:
        params: Sampling = {**greedy(8), "temperature": 1.0, "seed": 3}
        answers = await llm.generate(PROMPTS[:2], params, n=3)
        assert [len(it.alternatives) for it in answers] == [2, 2]
        drawn = {it.token_ids for it in (answers[0], *answers[0].alternatives)}
        assert len(drawn) == 3

        [first] = await llm.generate("The sea", greedy(40))
        cut = first.text[5:8]
        [stopped] = await llm.generate("The sea", {**greedy(40), "stop": cut})
        assert (stopped.finish_reason, stopped.stop_reason) == ("stop", cut)
        assert stopped.text == first.text[: first.text.index(cut)]

        [scored] = await llm.generate([9, 8, 7], {"max_tokens": 0, "num_prompt_logprobs": 0})
        assert scored.prompt_logprobs is not None
        assert scored.prompt_logprobs[0] is None
        assert [it.chosen.token_id for it in scored.prompt_logprobs[1:] if it] == [8, 7]
        with pytest.raises(InvalidRequestError, match="n must"):
            await llm.generate("The sea", n=0)

    run(folder, work)


def test_an_answer_can_be_held_to_a_form(folder: str) -> None:
    form = {
        "type": "json_schema",
        "json_schema": {"name": "s", "schema": {"enum": ["yes", "no"]}},
    }

    async def work(llm: AsyncLLM) -> None:
        [plain] = await llm.generate("The sea", response_format=form)
        [said] = await llm.chat("The sea", response_format=form)
        assert {json.loads(plain.text), json.loads(said.text)} <= {"yes", "no"}

    run(folder, work)


def test_more_than_the_queue_holds_waits_for_its_turn(folder: str) -> None:
    async def work(llm: AsyncLLM) -> None:
        many = await asyncio.gather(
            llm.generate([[it] for it in range(20)], greedy(3)),
            llm.generate([[it] for it in range(20)], greedy(3), n=3),
        )
        assert [len(answers) for answers in many] == [20, 20]
        with pytest.raises(OverloadedError):
            await llm.generate("The sea", n=5)

    run(folder, work, small(max_queue=4))


def test_leaving_early_ends_what_runs(folder: str) -> None:
    async def work(llm: AsyncLLM) -> None:
        async with aclosing(llm.stream_generate("The sea", LONG)) as events:
            async for _ in events:
                break
        await until(lambda: is_idle(llm.stats()))

        call = asyncio.ensure_future(llm.generate([[1], [2], [3]], LONG))
        await until(lambda: llm.stats().num_running == 3)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    run(folder, work)


def test_the_first_error_ends_the_others_unless_errors_are_wanted(folder: str) -> None:
    image: Conversation = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    ]

    async def work(llm: AsyncLLM) -> None:
        with pytest.raises(ContextLengthError) as caught:
            await llm.generate([[1], TOO_LONG, [2]], LONG)
        assert "number 1 of 3" in caught.value.__notes__[0]
        await until(lambda: is_idle(llm.stats()))

        first, second, third = await llm.generate(
            [[1], TOO_LONG, []], greedy(4), return_errors=True
        )
        assert (first.error, len(first.token_ids)) == (None, 4)
        assert isinstance(second.error, ContextLengthError)
        assert (second.finish_reason, second.text) == ("error", "")
        assert isinstance(third.error, InvalidRequestError)

        said, refused = await llm.chat(["Hello", image], greedy(4), return_errors=True)
        assert len(said.token_ids) == 4
        assert isinstance(refused.error, UnsupportedFeatureError)
        with pytest.raises(UnsupportedFeatureError, match="image_url"):
            llm.stream_chat(image)
        with pytest.raises(TypeError, match="'tols'"):
            await llm.chat("Hello", tols=[])  # type: ignore[call-arg]
        with pytest.raises(UnsupportedFeatureError, match=r"tiny.*embeddings"):
            await llm.embed(["Hello"])

    run(folder, work)


def test_a_fault_of_the_engine_is_an_error_of_its_prompt(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("device lost")

    async def work(llm: AsyncLLM) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(PagedRunner, "execute", broken)
            with pytest.raises(GenerationError, match="device lost"):
                await llm.generate("The sea")
            with pytest.raises(GenerationError, match="device lost"):
                async for _ in llm.stream_chat("Hello"):
                    pass
            [answer] = await llm.generate("The sea", return_errors=True)
            assert isinstance(answer.error, GenerationError)
        assert (await llm.generate("The sea", greedy(2)))[0].error is None

    run(folder, work)


def test_closing_ends_what_runs_and_what_comes_later(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = PromptBuilder.build

    def slow(*args: Any, **kwargs: Any) -> Request:
        time.sleep(0.005)
        return build(*args, **kwargs)

    monkeypatch.setattr(PromptBuilder, "build", slow)

    async def work() -> None:
        llm = await AsyncLLM.load(folder, small())
        events = llm.stream_generate("The sea", LONG)
        await anext(events)
        # These are still being tokenized.
        many = asyncio.ensure_future(llm.generate(["The sea"] * 60, LONG, return_errors=True))
        await asyncio.sleep(0.001)
        await llm.close()
        await llm.close()
        with pytest.raises(EngineStoppedError):
            await many
        with pytest.raises(EngineStoppedError):
            async for _ in events:
                pass
        for late in (llm.generate("x"), llm.chat("x"), llm.count_tokens("x")):
            with pytest.raises(EngineStoppedError):
                await late

    asyncio.run(asyncio.wait_for(work(), TIMEOUT_S))


def test_a_load_that_fails_or_is_given_up_leaves_no_engine(folder: str, tmp_path: Path) -> None:
    async def work() -> None:
        with pytest.raises(ModelLoadError):
            await AsyncLLM.load(str(tmp_path / "nothing"))
        loading = asyncio.ensure_future(AsyncLLM.load(folder, small()))
        await asyncio.sleep(0)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        await until(lambda: not {"pippin-load", "pippin-engine"} & names_of_threads())

    asyncio.run(asyncio.wait_for(work(), TIMEOUT_S))


def names_of_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}
