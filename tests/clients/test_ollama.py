"""Ollama's own package: tools from plain functions, and structured answers."""

from __future__ import annotations

from typing import Any

import ollama
import pytest
from live_server import LiveServer
from weather import QUESTION, SCHEMA_QUESTION, City, Weather


@pytest.fixture
def client(server: LiveServer) -> ollama.Client:
    return ollama.Client(host=server.url)


def test_a_round_trip(client: ollama.Client, weather: Weather) -> None:
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    first = client.chat("scripted", messages, tools=[weather.look]).message
    messages.append(first)
    for call in first.tool_calls or ():
        result = weather.look(**call.function.arguments)
        messages.append({"role": "tool", "tool_name": call.function.name, "content": result})
    parts = client.chat("scripted", messages, tools=[weather.look], stream=True)

    weather.assert_round_trip("".join(part.message.content or "" for part in parts))


def test_a_structured_answer(client: ollama.Client) -> None:
    answer = client.chat(
        "scripted",
        [{"role": "user", "content": SCHEMA_QUESTION}],
        format=City.model_json_schema(),
    )
    assert City.model_validate_json(answer.message.content or "") == City(city="Rome")
