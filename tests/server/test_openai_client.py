"""The official client against a real server."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from fake_engine import Fail, FakeEngine, Together
from live_server import LiveServer, serve
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam

from pippin.core.errors import (
    ContextLengthError,
    EngineStoppedError,
    GenerationError,
    OverloadedError,
)
from pippin.server.config import ServerConfig

KEY = "a-key"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[FakeEngine, LiveServer]]:
    engine = FakeEngine()
    with serve(engine, ServerConfig(port=0, api_keys=("another", KEY))) as server:
        yield engine, server


@pytest.fixture
def engine(shared: tuple[FakeEngine, LiveServer]) -> Iterator[FakeEngine]:
    engine = shared[0]
    yield engine
    engine.script = ("Hel", "lo")
    engine.submit_error = None


@pytest.fixture
def client(shared: tuple[FakeEngine, LiveServer]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{shared[1].url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def test_chat(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.num_cached_tokens = 4

    answer = client.chat.completions.create(model="tiny", messages=MESSAGES)

    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.model == "tiny/model"
    assert answer.choices[0].message.content == "Hello"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len("user: hi\n")
    assert answer.usage.completion_tokens == 2
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 2
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 4


def test_an_answer_can_be_sent_back_as_history(client: openai.OpenAI, engine: FakeEngine) -> None:
    first = client.chat.completions.create(model="tiny", messages=MESSAGES)

    client.chat.completions.create(
        model="tiny",
        messages=[*MESSAGES, first.choices[0].message, *MESSAGES],  # type: ignore[list-item]
    )

    prompt = engine.submissions[-1].prompt
    assert [message.text for message in prompt.messages] == ["hi", "Hello", "hi"]  # type: ignore[union-attr]


def test_chat_stream(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script = ("Hel", Together(("lo", "!")))

    with client.chat.completions.create(
        model="tiny", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)

    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].delta.content for chunk in chunks[:-1]] == [
        "", "Hel", "lo", "!", None,
    ]  # fmt: skip
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:-1]] == ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert all(chunk.usage is None for chunk in chunks[:-1])


@pytest.mark.parametrize("stream", [False, True])
def test_three_answers(client: openai.OpenAI, engine: FakeEngine, stream: bool) -> None:
    texts = ["", "", ""]
    if stream:
        with client.chat.completions.create(
            model="tiny", messages=MESSAGES, n=3, stream=True
        ) as chunks:
            for chunk in chunks:
                texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    else:
        answer = client.chat.completions.create(model="tiny", messages=MESSAGES, n=3)
        texts = [choice.message.content or "" for choice in answer.choices]
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 6
        assert answer.usage.prompt_tokens == len("user: hi\n")

    assert texts == ["Hello"] * 3
    assert engine.submissions[-1].num_sequences == 3


def test_chat_logprobs(client: openai.OpenAI, engine: FakeEngine) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, logprobs=True, top_logprobs=2
    )

    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [it.token for it in logprobs.content] == ["Hel", "lo"]
    assert logprobs.content[0].logprob == -0.5
    assert bytes(logprobs.content[0].bytes or []) == b"Hel"
    assert [it.token for it in logprobs.content[0].top_logprobs] == ["Hel", "alt0"]


def test_completions(client: openai.OpenAI, engine: FakeEngine) -> None:
    answer = client.completions.create(model="tiny", prompt=["ab", "c"], n=2, logprobs=1, echo=True)

    assert [choice.text for choice in answer.choices] == [
        "abHello", "abHello", "cHello", "cHello",
    ]  # fmt: skip
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.tokens == ["a", "b", "Hel", "lo"]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3
    assert answer.usage.completion_tokens == 8


def test_completions_stream(client: openai.OpenAI, engine: FakeEngine) -> None:
    texts = ["", ""]
    with client.completions.create(model="tiny", prompt=[[104], [105]], stream=True) as stream:
        for chunk in stream:
            texts[chunk.choices[0].index] += chunk.choices[0].text

    assert texts == ["Hello", "Hello"]


def test_models(client: openai.OpenAI, engine: FakeEngine) -> None:
    assert [model.id for model in client.models.list()] == ["tiny/model"]
    assert client.models.retrieve("tiny/model").created == 1_700_000_000
    assert client.models.retrieve("tiny").id == "tiny/model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("absent")


def test_bad_request(client: openai.OpenAI, engine: FakeEngine) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=9)

    assert caught.value.param == "temperature"
    assert caught.value.code == "invalid_value"
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id


def test_unknown_model(client: openai.OpenAI, engine: FakeEngine) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="absent", messages=MESSAGES)

    assert caught.value.code == "model_not_found"


def test_wrong_key(shared: tuple[FakeEngine, LiveServer]) -> None:
    with (
        openai.OpenAI(base_url=f"{shared[1].url}/v1", api_key="no", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.models.list()

    assert caught.value.code == "invalid_api_key"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OverloadedError("full"), 503),
        (EngineStoppedError("gone"), 503),
        (GenerationError("broken"), 500),
        (RuntimeError("a bug"), 500),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_failures_before_the_first_token(
    client: openai.OpenAI, engine: FakeEngine, error: Exception, status: int, stream: bool
) -> None:
    engine.submit_error = error

    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="tiny", messages=MESSAGES, stream=stream)

    assert caught.value.status_code == status


def test_a_prompt_that_is_too_long(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.submit_error = ContextLengthError(num_prompt_tokens=9, max_tokens=1, limit=8)

    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=MESSAGES)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


@pytest.mark.parametrize("end", [Fail("broken"), EngineStoppedError("broken")])
def test_an_error_in_mid_stream_is_raised(
    client: openai.OpenAI, engine: FakeEngine, end: Fail | Exception
) -> None:
    engine.script = ("Hel", end)
    received: list[str | None] = []

    def read(stream: openai.Stream[ChatCompletionChunk]) -> None:
        for chunk in stream:
            received.append(chunk.choices[0].delta.content)

    with (
        client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True) as stream,
        pytest.raises(openai.APIError, match="broken"),
    ):
        read(stream)

    assert received == ["", "Hel"]
