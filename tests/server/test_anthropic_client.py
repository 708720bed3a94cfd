"""Over real HTTP: golden transcripts, and Anthropic's own client.

`golden/anthropic.jsonl` holds our own transcripts, a line for each of `SCENARIOS` whole and
streamed: ``{"name", "stream", "status", "answer"}``; a stream's answer is the list of its lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic.types import Message, MessageParam, RawMessageStreamEvent
from fake_engine import Fail, FakeEngine, Hold, Step
from live_server import LiveServer, posted, read_to_end, read_until, serve
from pydantic import TypeAdapter

from pippin.core.engine.client import Generation
from pippin.core.errors import OverloadedError
from pippin.core.messages import ChatPrompt, Prompt
from pippin.core.parsing.events import (
    ReasoningDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)
from pippin.core.request import RequestOutput
from pippin.core.sampling_params import SamplingParams
from pippin.server.config import ServerConfig

KEY = "a-key"
MESSAGES: list[MessageParam] = [{"role": "user", "content": "hi"}]
BODY: dict[str, Any] = {"model": "claude-x", "max_tokens": 20, "messages": MESSAGES}
TOOLS: list[anthropic.types.ToolParam] = [
    {"name": name, "input_schema": {"type": "object"}} for name in ("f", "g")
]

HELLO: tuple[Step, ...] = ("Hel", 'lo \n"ü"\u2028')
CALL_F: tuple[Step, ...] = (
    ToolCallStart(0, "call_1", "f"),
    ToolCallDelta(0, '{"x":'),
    ToolCallDelta(0, '"y"}'),
    ToolCallEnd(0),
)
CALL_G: tuple[Step, ...] = (ToolCallStart(1, "call_2", "g"), ToolCallEnd(1))
WITH_TOOLS = {"tools": TOOLS}

SCENARIOS: dict[str, tuple[Sequence[Step], dict[str, Any]]] = {
    "plain": (HELLO, {}),
    "length": (HELLO, {"max_tokens": 1}),
    "one call": (("See: ", *CALL_F), WITH_TOOLS),
    "two calls": ((*CALL_F, *CALL_G), WITH_TOOLS),
    "forced call": (CALL_F, {**WITH_TOOLS, "tool_choice": {"type": "tool", "name": "f"}}),
    "reasoning and call": (
        (ReasoningDelta("h"), ReasoningDelta("m"), *CALL_F),
        {**WITH_TOOLS, "thinking": {"type": "enabled", "budget_tokens": 1024}},
    ),
    "schema": (
        ("{}",),
        {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
    ),
    "stop string": (HELLO, {"stop_sequences": ["!", "?"]}),
    "bad input": ((), {"top_k": "many"}),
    "fault": (("Hel", Fail("out of luck")), {}),
}
GOLDEN = Path(__file__).parent / "golden" / "anthropic.jsonl"
LINES = [json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()]
_EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


class StoppingEngine(FakeEngine):
    """Every answer ends with the last of the stop strings, if there are any."""

    async def submit(self, prompt: Prompt, params: SamplingParams, **fields: Any) -> Any:
        return Stopping(await super().submit(prompt, params, **fields), params.stop)


class Stopping:
    """A generation of `StoppingEngine`."""

    def __init__(self, generation: Generation, stops: Sequence[str]) -> None:
        self._generation = generation
        self._stops = stops

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generation, name)

    async def __aiter__(self) -> AsyncIterator[Sequence[RequestOutput]]:
        async for outputs in self._generation:
            if self._stops and outputs[-1].finish_reason is not None:
                outputs = [*outputs[:-1], replace(outputs[-1], stop_reason=self._stops[-1])]
            yield outputs


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[FakeEngine, LiveServer]]:
    engine = StoppingEngine()
    config = ServerConfig(port=0, api_keys=(KEY,), aliases=("claude-*",))
    with serve(engine, config) as server:
        yield engine, server


@pytest.fixture
def engine(shared: tuple[FakeEngine, LiveServer]) -> Iterator[FakeEngine]:
    engine = shared[0]
    engine.num_cached_tokens = 1
    yield engine
    engine.script = ("Hel", "lo")
    engine.submit_error = None


@pytest.fixture
def client(shared: tuple[FakeEngine, LiveServer]) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=shared[1].url, api_key=KEY, max_retries=0) as client:
        yield client


def transcript(engine: FakeEngine, server: LiveServer, name: str, stream: bool) -> dict[str, Any]:
    engine.script, changes = SCENARIOS[name]
    body = {**BODY, **changes, **({"stream": True} if stream else {})}
    reply = httpx2.post(f"{server.url}/v1/messages", json=body, headers={"x-api-key": KEY})
    text = re.sub(r'"msg_[0-9a-f]{32}"', '"msg_ID"', reply.text)
    text = re.sub(r'"request_id":"[0-9a-f]{32}"', '"request_id":"ID"', text)
    is_stream = stream and reply.status_code == 200
    answer = [line for line in text.split("\n") if line] if is_stream else json.loads(text)
    return {"name": name, "stream": stream, "status": reply.status_code, "answer": answer}


@pytest.mark.parametrize("line", LINES, ids=[f"{it['name']}-{it['stream']}" for it in LINES])
def test_the_wire_is_as_recorded(
    shared: tuple[FakeEngine, LiveServer], engine: FakeEngine, line: dict[str, Any]
) -> None:
    got = transcript(engine, shared[1], line["name"], line["stream"])

    assert json.dumps(got) == json.dumps(line)


def test_every_scenario_is_recorded_both_ways() -> None:
    assert [(line["name"], line["stream"]) for line in LINES] == [
        (name, stream) for name in SCENARIOS for stream in (False, True)
    ]


@pytest.mark.parametrize("line", LINES, ids=[f"{it['name']}-{it['stream']}" for it in LINES])
def test_the_record_is_in_anthropics_types(line: dict[str, Any]) -> None:
    answer = line["answer"]
    if line["status"] != 200:
        anthropic.types.ErrorResponse.model_validate(answer, strict=True, extra="forbid")
    elif not line["stream"]:
        Message.model_validate(answer, strict=True, extra="forbid")
    else:
        for text in answer[1::2]:
            event = json.loads(text.removeprefix("data: "))
            if event["type"] == "error":
                anthropic.types.ErrorResponse.model_validate(event, strict=True, extra="forbid")
            elif event["type"] != "ping":
                _EVENT.validate_python(event, strict=True, extra="forbid")


@pytest.mark.parametrize("name", ["plain", "two calls", "reasoning and call"])
def test_both_ways_give_the_client_the_same(
    client: anthropic.Anthropic, engine: FakeEngine, name: str
) -> None:
    engine.script, changes = SCENARIOS[name]

    whole = client.messages.create(**{**BODY, **changes})
    with client.messages.stream(**{**BODY, **changes}) as stream:
        streamed = stream.get_final_message()

    assert streamed.to_dict(exclude_none=True) == {
        **whole.to_dict(exclude_none=True),
        "id": streamed.id,
    }


def test_a_round_trip_with_a_tool(client: anthropic.Anthropic, engine: FakeEngine) -> None:
    engine.script = (ReasoningDelta("hm"), *CALL_F)
    first = client.messages.create(**BODY, tools=TOOLS)
    assert first.stop_reason == "tool_use"
    call = first.content[-1]
    assert call.type == "tool_use"

    client.messages.create(
        model="claude-x",
        max_tokens=9,
        tools=TOOLS,
        messages=[
            *MESSAGES,
            first.to_param(),
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "done"}],
            },
        ],
    )

    prompt = engine.submissions[-1].prompt
    assert isinstance(prompt, ChatPrompt)
    _, said, result = prompt.messages
    assert said.reasoning == "hm"
    assert said.tool_calls[0].arguments == {"x": "y"}
    assert (result.text, result.tool_call_id) == ("done", said.tool_calls[0].call_id)


def test_tokens_are_counted(client: anthropic.Anthropic, engine: FakeEngine) -> None:
    count = client.messages.count_tokens(model="claude-x", messages=MESSAGES, system="Be brief.")

    assert count.input_tokens == len("system: Be brief.\nuser: hi\n")


def test_errors_are_the_clients_own(client: anthropic.Anthropic, engine: FakeEngine) -> None:
    with pytest.raises(anthropic.NotFoundError) as not_found:
        client.messages.create(**{**BODY, "model": "gpt"})
    assert not_found.value.type == "not_found_error"
    assert not_found.value.request_id
    with pytest.raises(anthropic.AuthenticationError):
        client.with_options(api_key="no").messages.create(**BODY)
    engine.submit_error = OverloadedError("The queue is full.")
    with pytest.raises(anthropic.APIStatusError) as overloaded:
        client.messages.create(**BODY)
    assert (overloaded.value.status_code, overloaded.value.type) == (529, "overloaded_error")
    engine.submit_error = None
    engine.script = ("a", Fail("out of luck"))
    with (
        pytest.raises(anthropic.APIStatusError, match="out of luck"),
        client.messages.stream(**BODY) as stream,
    ):
        stream.until_done()


def test_silence_is_filled_with_pings() -> None:
    engine = FakeEngine((Hold(), "a"))
    body = {**BODY, "model": "tiny", "stream": True}
    with (
        serve(engine, ServerConfig(port=0, sse_keepalive_s=0.01)) as server,
        posted(server.port, "/v1/messages", body) as connection,
    ):
        begin = read_until(connection, b'event: ping\ndata: {"type":"ping"}\n\n')
        assert b"message_start" not in begin
        engine.release()
        rest = read_to_end(connection)

    assert b"event: message_start\n" in rest
    assert b'event: message_stop\ndata: {"type":"message_stop"}\n\n' in rest
