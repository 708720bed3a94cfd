"""Ollama's API, as its own client and raw HTTP see it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import ollama
import pytest
from fake_engine import Fail, FakeEngine, make_card
from live_server import LiveServer, serve
from pydantic import BaseModel
from starlette.testclient import TestClient

from pippin.core.messages import ChatPrompt, Message, TextPart, TextPrompt, ToolCall, ToolSpec
from pippin.core.parsing.events import (
    ReasoningDelta,
    ReplyEvent,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)
from pippin.core.reply_rules import ReplyRules, ResponseFormat, ToolChoice
from pippin.core.request import FinishReason
from pippin.core.sampling_params import SamplingParams
from pippin.server.config import ServerConfig

from .conftest import MakeClient

HI = [{"role": "user", "content": "hi"}]
CALLS: tuple[str | ReplyEvent, ...] = (
    *(ReasoningDelta("h"), ReasoningDelta("m"), "I ", "ask."),
    *(ToolCallStart(0, "call_a", "f"), ToolCallDelta(0, '{"x":'), ToolCallDelta(0, " 1}")),
    *(ToolCallEnd(0), ToolCallStart(1, "call_b", "g"), ToolCallDelta(1, "{}"), ToolCallEnd(1)),
)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CARD = make_card(details={"device": "cuda", "model_type": "llama", "num_parameters": 135_000_000})


def chat(client: TestClient, **changes: object) -> Any:
    return client.post("/api/chat", json={"model": "tiny", "messages": HI, **changes})


def validate(model: type[BaseModel], data: object) -> None:
    """Against the client's own type, with no field that it does not know."""
    strict: Any = type(model.__name__, (model,), {"model_config": {"extra": "forbid"}})
    strict.model_validate(data)


def test_a_stream_line_for_line(make_client: MakeClient) -> None:
    answer = chat(make_client(FakeEngine(CALLS)), model="tiny:latest")

    text = re.sub(r'"created_at":"[0-9T:.-]+Z"', '"created_at":"T"', answer.text)
    text = re.sub(r'_duration":\d+', '_duration":0', text)
    messages = [
        '"","thinking":"h"',
        '"","thinking":"m"',
        '"I "',
        '"ask."',
        '"","tool_calls":[{"id":"call_a","function":{"index":0,"name":"f","arguments":{"x":1}}}]',
        '"","tool_calls":[{"id":"call_b","function":{"index":1,"name":"g","arguments":{}}}]',
        '""',
    ]
    heads = [
        '{"model":"tiny:latest","created_at":"T","message":{"role":"assistant","content":' + it
        for it in messages
    ]
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert text == (
        '},"done":false}\n'.join(heads)
        + '},"done":true,"done_reason":"stop","total_duration":0,"load_duration":0,'
        '"prompt_eval_count":9,"prompt_eval_duration":0,"eval_count":11,"eval_duration":0}\n'
    )


def test_a_call_that_breaks_off_is_left_out(make_client: MakeClient) -> None:
    message = chat(make_client(FakeEngine((*CALLS[4:6], "no", *CALLS[8:]))), stream=False).json()

    assert message["message"]["content"] == "no"
    assert [it["function"]["name"] for it in message["message"]["tool_calls"]] == ["g"]


@pytest.mark.parametrize("script", [("Hel", "lo"), CALLS, ()])
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
@pytest.mark.parametrize("logprobs", [{}, {"logprobs": True, "top_logprobs": 2}])
def test_a_stream_tells_the_same_as_an_object(
    make_client: MakeClient, path: str, script: tuple[str, ...], logprobs: dict[str, object]
) -> None:
    client = make_client(FakeEngine(script, finish_reason=FinishReason.LENGTH))
    body = {"model": "tiny", **logprobs}
    body |= {"messages": HI} if path == "/api/chat" else {"prompt": "hi"}

    whole = client.post(path, json={**body, "stream": False}).json()
    lines = [json.loads(line) for line in client.post(path, json=body).text.splitlines()]

    joined: dict[str, Any] = {}
    for line in (*lines, whole):
        # Calls outside of messages are newer than the client's type.
        known = {name: value for name, value in line.items() if name != "tool_calls"}
        validate(ollama.ChatResponse if path == "/api/chat" else ollama.GenerateResponse, known)
    for line in lines:
        assert line["done"] is (line is lines[-1])
        for name, value in {**line, **line.get("message", {})}.items():
            if isinstance(value, list) or name in ("content", "response", "thinking"):
                joined[name] = joined[name] + value if name in joined else value
    shown = {**whole, **whole.get("message", {})}
    assert joined == {name: shown[name] for name in joined}
    assert len(shown.get("logprobs", ())) == (len(script) if logprobs else 0)
    assert whole["done_reason"] == lines[-1]["done_reason"] == "length"
    assert whole["eval_count"] == len(script)
    assert whole["total_duration"] >= whole["prompt_eval_duration"] + whole["eval_duration"] >= 0


def test_everything_reaches_the_engine(make_client: MakeClient) -> None:
    engine = FakeEngine()
    options = {
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.5,
        "min_p": 0.25,
        "repeat_penalty": 1.5,
        "presence_penalty": 1,
        "frequency_penalty": 0.5,
        "seed": 7,
        "stop": ["a", "b"],
        "num_predict": 9,
        "num_ctx": 4096,
    }

    chat(
        make_client(engine),
        options=options,
        tools=[TOOL],
        format={"type": "object"},
        think="low",
        keep_alive="5m",
    )

    [submission] = engine.submissions
    assert submission.params == SamplingParams(
        temperature=0.5,
        top_k=3,
        top_p=0.5,
        min_p=0.25,
        repetition_penalty=1.5,
        presence_penalty=1,
        frequency_penalty=0.5,
        seed=7,
        stop=("a", "b"),
        max_tokens=9,
    )
    assert submission.rules == ReplyRules(
        tool_choice=ToolChoice("auto"),
        response_format=ResponseFormat("json_schema", {"type": "object"}),
    )
    assert submission.prompt == ChatPrompt(
        messages=(Message(role="user", content=(TextPart("hi"),)),),
        tools=(ToolSpec(name="f", parameters={"type": "object"}),),
        reasoning_effort="low",
    )


@pytest.mark.parametrize(
    ("changes", "params"),
    [
        ({}, SamplingParams()),
        ({"options": {"num_predict": -1, "seed": -1}}, SamplingParams()),
        ({"options": {"num_predict": -2, "repeat_last_n": -1, "mirostat": 0}}, SamplingParams()),
        ({"logprobs": True}, SamplingParams(num_logprobs=0)),
    ],
)
def test_values_that_ask_for_nothing_are_taken(
    make_client: MakeClient, changes: dict[str, object], params: SamplingParams
) -> None:
    engine = FakeEngine()

    chat(make_client(engine), format="", **changes)

    assert engine.submissions[0].params == params
    assert engine.submissions[0].rules == ReplyRules(tool_choice=ToolChoice("none"))


def test_tool_results_find_their_calls(make_client: MakeClient) -> None:
    engine = FakeEngine()
    calls = [
        {"function": {"name": name, "arguments": {"n": number}}}
        for number, name in enumerate("fgf")
    ]
    results = [{"role": "tool", "content": name, "tool_name": name} for name in "gfff"]
    last = {"role": "assistant", "content": "So", "thinking": "t"}

    chat(make_client(engine), messages=[*HI, {"role": "assistant", "tool_calls": calls}, *results])
    chat(make_client(engine), messages=[*HI, last])

    prompt, begun = (it.prompt for it in engine.submissions)
    assert isinstance(prompt, ChatPrompt)
    assert isinstance(begun, ChatPrompt)
    assert list(prompt.messages[1].tool_calls) == [
        ToolCall(call_id=f"call_1_{number}", name=name, arguments={"n": number})
        for number, name in enumerate("fgf")
    ]
    ids = ["call_1_1", "call_1_0", "call_1_2", "call_5"]
    assert [it.tool_call_id for it in prompt.messages[2:]] == ids
    assert (prompt.add_generation_prompt, prompt.continue_final_message) == (True, False)
    assert begun.messages[1].reasoning == "t"
    assert (begun.add_generation_prompt, begun.continue_final_message) == (False, True)


@pytest.mark.parametrize(
    ("changes", "prompt"),
    [
        ({"raw": True}, TextPrompt("hi")),
        ({"raw": False}, ChatPrompt(messages=(Message(role="user", content=(TextPart("hi"),)),))),
        (
            {"system": "Be.", "think": False},
            ChatPrompt(
                messages=(
                    Message(role="system", content=(TextPart("Be."),)),
                    Message(role="user", content=(TextPart("hi"),)),
                ),
                reasoning_effort="none",
            ),
        ),
    ],
)
def test_prompts_of_generate(
    make_client: MakeClient, changes: dict[str, object], prompt: object
) -> None:
    engine = FakeEngine()

    make_client(engine).post("/api/generate", json={"model": "tiny", "prompt": "hi", **changes})

    assert engine.submissions[0].prompt == prompt
    assert (engine.submissions[0].rules is None) is isinstance(prompt, TextPrompt)


@pytest.mark.parametrize(
    ("path", "changes", "name"),
    [
        ("chat", {"messages": None}, "messages"),
        ("chat", {"messages": [{"role": "user", "images": ["aGk="]}]}, "messages.0.images"),
        ("chat", {"messages": [{"role": "king"}]}, "messages.0.role"),
        ("chat", {"format": "xml"}, "format"),
        ("chat", {"options": {"num_ctx": 4097}}, "num_ctx"),
        ("chat", {"options": {"num_predict": -3}}, "options.num_predict"),
        ("chat", {"options": {"num_thread": 8}}, "options.num_thread"),
        ("chat", {"options": {"mirostat": 1}}, "options.mirostat"),
        ("chat", {"options": {"what": 1}}, "options.what"),
        ("chat", {"options": {"top_p": 3}}, "top_p"),
        ("chat", {"top_logprobs": 1}, "top_logprobs"),
        ("chat", {"think": "much"}, "think"),
        ("chat", {"messages": [], "keep_alive": 0}, "unloaded"),
        ("generate", {"suffix": "x"}, "suffix"),
        ("generate", {"context": [1]}, "context"),
        ("generate", {"template": "x"}, "template"),
        ("generate", {"raw": True, "system": "x"}, "raw"),
        ("generate", {"messages": []}, "messages"),
        ("show", {"model": None}, "model"),
        ("embed", {"input": "x"}, "embeddings"),
        ("embeddings", {"prompt": "x"}, "embeddings"),
    ],
)
def test_what_cannot_be_honoured(
    make_client: MakeClient, path: str, changes: dict[str, object], name: str
) -> None:
    engine = FakeEngine()
    bases: dict[str, dict[str, object]] = {"chat": {"messages": HI}, "generate": {"prompt": "x"}}
    base = bases.get(path, {})

    answer = make_client(engine).post(f"/api/{path}", json={"model": "tiny", **base, **changes})

    assert answer.status_code == 400
    assert name in answer.json()["error"]
    assert not engine.submissions


@pytest.fixture(scope="module")
def live() -> Iterator[LiveServer]:
    with serve(FakeEngine(card=CARD), ServerConfig(port=0, api_keys=("key",))) as server:
        yield server


@pytest.fixture
def client(live: LiveServer) -> Iterator[ollama.Client]:
    with ollama.Client(live.url, headers={"Authorization": "Bearer key"}) as client:
        yield client


def test_the_client_chats(client: ollama.Client) -> None:
    whole = client.chat("tiny:latest", HI, options={"num_predict": 5})
    pieces = list(client.generate("tiny/model", "hi", stream=True))

    assert whole.message.content == "Hello"
    assert [it.response for it in pieces] == ["Hel", "lo", ""]
    assert pieces[-1].done


def test_the_client_looks_around(client: ollama.Client) -> None:
    [model] = client.list().models
    [running] = client.ps().models
    shown = client.show("tiny")

    assert (model.model, running.model) == ("tiny/model", "tiny/model")
    assert model.digest is not None
    assert model.details is not None
    assert model.details.parameter_size == "135M"
    assert running.context_length == 4096
    assert shown.capabilities == ["completion"]
    assert shown.modelinfo is not None
    assert shown.modelinfo["llama.context_length"] == 4096


@pytest.mark.parametrize("model", ["other", "tiny:other", "latest"])
def test_errors_are_in_the_clients_shape(
    live: LiveServer, client: ollama.Client, model: str
) -> None:
    with pytest.raises(ollama.ResponseError) as failure:
        client.chat(model, HI)
    with ollama.Client(live.url) as keyless, pytest.raises(ollama.ResponseError) as stranger:
        keyless.list()

    assert (failure.value.status_code, stranger.value.status_code) == (404, 401)
    assert failure.value.error == f"The model '{model}' does not exist."
    assert stranger.value.error == "No API key provided."


def test_a_fault_in_the_middle(make_client: MakeClient) -> None:
    client = make_client(FakeEngine(("a", Fail("broken"))))

    stream = chat(client)
    whole = chat(client, stream=False)

    assert json.loads(stream.text.splitlines()[-1]) == {"error": "broken"}
    assert (whole.status_code, whole.json()) == (500, {"error": "broken"})


@pytest.mark.parametrize(("path", "field"), [("chat", "message"), ("generate", "response")])
def test_an_empty_request_asks_for_the_model(
    make_client: MakeClient, path: str, field: str
) -> None:
    engine = FakeEngine()

    answer = make_client(engine).post(f"/api/{path}", json={"model": "tiny"}).json()

    assert (answer["done"], answer["done_reason"]) == (True, "load")
    assert field in answer
    assert not engine.submissions


def test_the_version_is_one_that_clients_compare(make_client: MakeClient) -> None:
    version = make_client().get("/api/version").json()["version"]

    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert make_client().get("/api/nothing").json() == {"error": "There is nothing at this path."}
