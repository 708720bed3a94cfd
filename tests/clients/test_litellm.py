"""LiteLLM, as a client of chat, Messages and Responses."""

from __future__ import annotations

import json
from typing import Any

import pytest
from live_server import LiveServer
from weather import QUESTION, SCHEMA_QUESTION, City, Weather, question_for

TOOL = {
    "type": "function",
    "function": {"name": "look", "parameters": City.model_json_schema()},
}


@pytest.fixture(
    params=["openai/scripted", "anthropic/claude-scripted", "openai/responses/scripted"]
)
def fields(request: pytest.FixtureRequest, server: LiveServer) -> dict[str, Any]:
    is_openai = request.param.startswith("openai")
    return {
        "model": request.param,
        "api_base": f"{server.url}/v1" if is_openai else server.url,
        "api_key": "none",
        "num_retries": 0,
    }


@pytest.mark.parametrize("stream", [False, True])
def test_a_round_trip(fields: dict[str, Any], weather: Weather, stream: bool) -> None:
    litellm = pytest.importorskip("litellm")
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    for _ in range(2):
        answer = litellm.completion(messages=messages, tools=[TOOL], stream=stream, **fields)
        if stream:
            answer = litellm.stream_chunk_builder(list(answer), messages=messages)
        message = answer.choices[0].message
        messages.append(message.model_dump())
        for call in message.tool_calls or ():
            result = weather.look(**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})

    weather.assert_round_trip(message.content)


def test_a_structured_answer(fields: dict[str, Any]) -> None:
    litellm = pytest.importorskip("litellm")
    is_openai = fields["model"].startswith("openai")
    question = SCHEMA_QUESTION if is_openai else question_for("json_tool_call")
    answer = litellm.completion(
        messages=[{"role": "user", "content": question}], response_format=City, **fields
    )
    content = answer.choices[0].message.content
    assert City.model_validate_json(content) == City(city="Rome")
