"""Responses on the wire: recorded transcripts, the vendor's own types, and stream against reply.

A line of `golden/openai_responses.jsonl` is ``{"name", "script", "finish", "request", "status",
"answer"}``; a stream's answer is the list of its events. To take in a wanted change, edit the line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from fake_engine import Fail, FakeEngine, Hold, Step
from hypothesis import example, given, settings
from hypothesis import strategies as st
from live_server import LiveServer, posted, read_to_end, read_until, serve
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter
from starlette.testclient import TestClient

from pippin.core.parsing.events import (
    ReasoningDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)
from pippin.core.request import FinishReason
from pippin.server.app import create_app
from pippin.server.config import ServerConfig

PATH = "/v1/responses"
GOLDEN = Path(__file__).parent / "golden" / "openai_responses.jsonl"
LINES = [json.loads(line) for line in GOLDEN.read_text().splitlines()]
KINDS = {
    "think": ReasoningDelta,
    "call": ToolCallStart,
    "arguments": ToolCallDelta,
    "end": ToolCallEnd,
    "fail": Fail,
}
# Keys that the OpenResponses specification requires and openai-python does not have.
# The status of a custom tool's call is in OpenAI's guide only.
BEYOND_OPENAI = {"presence_penalty", "frequency_penalty", "store", "status"}
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def to_script(entries: list[Any]) -> list[Step]:
    return [it if isinstance(it, str) else KINDS[it[0]](*it[1:]) for it in entries]


def unstamped(text: str) -> str:
    text = re.sub(r"(resp|msg|rs|fc)_[0-9a-f]{32}", r"\1_ID", text)
    return re.sub(r'"(created|completed)_at":\d+', r'"\1_at":0', text)


def events_of(text: str) -> list[dict[str, Any]]:
    events = []
    for frame in text.split("\n\n")[:-1]:
        name, data = frame.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def check_strictly(model: object) -> None:
    """Openai-python's models keep what they do not know: there must be nothing of it."""
    if isinstance(model, BaseModel):
        assert not set(model.model_extra or ()) - BEYOND_OPENAI, (type(model), model.model_extra)
        for _, value in model:
            check_strictly(value)
    elif isinstance(model, list):
        for value in model:
            check_strictly(value)


@pytest.mark.parametrize("line", LINES, ids=lambda line: line["name"])
def test_the_wire_is_as_recorded(line: dict[str, Any]) -> None:
    engine = FakeEngine(to_script(line["script"]), finish_reason=FinishReason(line["finish"]))
    with TestClient(create_app(engine, ServerConfig())) as client:
        answer = client.post(PATH, json=line["request"])

    text = unstamped(answer.text)
    is_stream = isinstance(line["answer"], list)
    got = events_of(text) if is_stream else json.loads(text)
    assert json.dumps(got) == json.dumps(line["answer"])
    assert answer.status_code == line["status"]
    if answer.status_code == 200:
        for it in got if is_stream else [got]:
            model = EVENT.validate_python(it) if is_stream else Response.model_validate(it)
            check_strictly(model)


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[FakeEngine, TestClient]]:
    engine = FakeEngine()
    with TestClient(create_app(engine, ServerConfig())) as client:
        yield engine, client


TEXTS = st.sampled_from(["a", " b", "\n", "ü", "\u2028", '"\\', "😀"])
CALL = st.lists(TEXTS, max_size=3).map(
    lambda texts: [
        ToolCallStart(0, "call_1", "f"),
        *(ToolCallDelta(0, text) for text in texts),
        ToolCallEnd(0),
    ]
)
SCRIPTS = st.lists(
    CALL | TEXTS.map(lambda text: [ReasoningDelta(text)]) | TEXTS.map(lambda text: [text]),
    max_size=6,
).map(lambda groups: [step for group in groups for step in group])


@example(
    script=[ToolCallStart(0, "call_1", "f"), ToolCallEnd(0), "\n"],
    reason=FinishReason.STOP,
    max_tokens=None,
    top_logprobs=1,
)
@settings(max_examples=40, deadline=None)
@given(
    script=SCRIPTS,
    reason=st.sampled_from([FinishReason.STOP, FinishReason.LENGTH]),
    max_tokens=st.none() | st.integers(1, 6),
    top_logprobs=st.integers(0, 1),
)
def test_a_stream_adds_up_to_the_reply(
    shared: tuple[FakeEngine, TestClient],
    script: list[Step],
    reason: FinishReason,
    max_tokens: int | None,
    top_logprobs: int,
) -> None:
    engine, client = shared
    engine.script, engine.finish_reason = script, reason
    body = {"model": "tiny", "input": "hi", "max_output_tokens": max_tokens}
    body["top_logprobs"] = top_logprobs

    whole = json.loads(unstamped(client.post(PATH, json=body).text))
    events = events_of(unstamped(client.post(PATH, json={**body, "stream": True}).text))

    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1]["type"] == f"response.{whole['status']}"
    assert events[-1]["response"] == whole
    for index, item in enumerate(whole["output"]):
        own = [event for event in events if event.get("output_index") == index]
        assert own[0]["type"] == "response.output_item.added"
        assert own[-1] == {**own[-1], "type": "response.output_item.done", "item": item}
        text = item["arguments"] if "arguments" in item else item["content"][0]["text"]
        assert "".join(event.get("delta", "") for event in own) == text
        logprobs = [it for event in own if "delta" in event for it in event.get("logprobs", ())]
        # Those of thoughts and calls before it must not slip into a message.
        spoken = text if top_logprobs and "role" in item else ""
        assert "".join(it["token"] for it in logprobs) == spoken
        whole_logprobs = item["content"][0]["logprobs"] if "role" in item else []
        assert [it["token"] for it in whole_logprobs] == [it["token"] for it in logprobs]
    assert all(item["status"] == "completed" for item in whole["output"][:-1])


def test_the_official_client_accumulates_a_stream() -> None:
    script: list[Step] = [
        *(ReasoningDelta("hm"), ToolCallStart(0, "c", "f"), ToolCallDelta(0, '{"a":1}')),
        *(ToolCallEnd(0), '{"x"', ": 1}"),
    ]
    tool: Any = {"type": "function", "name": "f", "parameters": {}, "strict": True}

    class Answer(BaseModel):
        x: int

    with (
        serve(FakeEngine(script)) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client,
    ):
        with client.responses.stream(
            model="tiny", input="hi", tools=[tool], text_format=Answer
        ) as stream:
            last = stream.get_final_response()
        parsed = client.responses.parse(model="tiny", input="hi", text_format=Answer)

    assert [item.type for item in last.output] == ["reasoning", "function_call", "message"]
    assert last.output_text == '{"x": 1}'
    assert last.output_parsed == parsed.output_parsed == Answer(x=1)


def test_the_stream_begins_before_the_model_does() -> None:
    engine = FakeEngine((Hold(), "late"))
    with (
        serve(engine) as server,
        posted(server.port, PATH, {"model": "tiny", "input": "x", "stream": True}) as connection,
    ):
        early = read_until(connection, b"response.in_progress")
        engine.release()
        rest = read_to_end(connection)

    assert b"response.created" in early
    assert b"late" not in early
    assert b"response.completed" in rest


@pytest.mark.parametrize("stream", [False, True])
def test_a_caller_that_leaves_ends_the_work(stream: bool) -> None:
    engine = FakeEngine((Hold(), "never"))
    body = {"model": "tiny", "input": "x", "stream": stream}
    with serve(engine) as server:
        with posted(server.port, PATH, body):
            assert engine.holding.wait(10)
        assert engine.aborted.wait(10)


def _cancel(server: LiveServer, early: bytes) -> dict[str, Any]:
    found = re.search(rb"resp_[0-9a-f]{32}", early)
    assert found is not None
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        cancelled = client.responses.cancel(found[0].decode())
    return cancelled.model_dump()


def test_a_response_can_be_cancelled_from_elsewhere() -> None:
    engine = FakeEngine(("some", Hold(), "never"))
    with (
        serve(engine) as server,
        posted(server.port, PATH, {"model": "tiny", "input": "x", "stream": True}) as connection,
    ):
        early = read_until(connection, b"some")
        cancelled = _cancel(server, early)
        engine.release()
        rest = read_to_end(connection)

    assert cancelled["status"] == "cancelled"
    assert cancelled["output"][0]["content"][0]["text"] == "some"
    assert engine.submissions[0].generation.num_aborts
    assert b'"status":"cancelled"' in rest
    assert b"response.completed" not in rest
