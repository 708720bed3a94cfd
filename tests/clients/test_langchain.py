"""LangChain's packages for OpenAI (chat and Responses) and Anthropic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from live_server import LiveServer
from weather import QUESTION, SCHEMA_QUESTION, City, Weather


def _openai(server: LiveServer, **fields: Any) -> Any:
    package = pytest.importorskip("langchain_openai")
    return package.ChatOpenAI(
        model="scripted", base_url=f"{server.url}/v1", api_key="none", max_retries=0, **fields
    )


def _responses(server: LiveServer) -> Any:
    return _openai(server, use_responses_api=True)


def _anthropic(server: LiveServer) -> Any:
    package = pytest.importorskip("langchain_anthropic")
    return package.ChatAnthropic(
        model="claude-scripted", base_url=server.url, api_key="none", max_retries=0
    )


@pytest.fixture(params=[_openai, _responses, _anthropic])
def model(request: pytest.FixtureRequest, server: LiveServer) -> Any:
    make: Callable[[LiveServer], Any] = request.param
    return make(server)


@pytest.mark.parametrize("stream", [False, True])
def test_a_round_trip(model: Any, weather: Weather, stream: bool) -> None:
    bound = model.bind_tools([weather.look])
    messages: list[Any] = [("user", QUESTION)]
    for _ in range(2):
        if stream:
            first, *others = bound.stream(messages)
            message = sum(others, first)
        else:
            message = bound.invoke(messages)
        messages.append(message)
        for call in message.tool_calls:
            result = weather.look(**call["args"])
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})

    weather.assert_round_trip(message.text)


def test_a_structured_answer(model: Any) -> None:
    structured = model.with_structured_output(City, method="json_schema")

    assert structured.invoke([("user", SCHEMA_QUESTION)]) == City(city="Rome")
