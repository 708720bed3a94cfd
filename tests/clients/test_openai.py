"""OpenAI's own package: chat and Responses, with its tool and structured-output helpers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from live_server import LiveServer
from weather import QUESTION, SCHEMA_QUESTION, City, Weather

PARAMETERS = City.model_json_schema()


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_chat_streams_a_round_trip(client: openai.OpenAI, weather: Weather) -> None:
    tool: Any = openai.pydantic_function_tool(City, name="look")  # strict
    messages: Any = [{"role": "user", "content": QUESTION}]
    for _ in range(2):
        with client.chat.completions.stream(
            model="scripted", messages=messages, tools=[tool]
        ) as stream:
            message = stream.get_final_completion().choices[0].message
        messages.append(message)
        for call in message.tool_calls or ():
            assert isinstance(call.function.parsed_arguments, City)
            result = weather.look(call.function.parsed_arguments.city)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})

    weather.assert_round_trip(message.content or "")


def test_responses_stream_a_round_trip(client: openai.OpenAI, weather: Weather) -> None:
    tool: Any = {"type": "function", "name": "look", "parameters": PARAMETERS, "strict": True}
    items: Any = [{"role": "user", "content": QUESTION}]
    for _ in range(2):
        with client.responses.stream(
            model="scripted",
            input=items,
            tools=[tool],
            store=False,
            include=["reasoning.encrypted_content"],
        ) as stream:
            response = stream.get_final_response()
        for item in response.output:
            items.append(item)
            if item.type == "function_call":
                result = weather.look(**json.loads(item.arguments))
                items.append(
                    {"type": "function_call_output", "call_id": item.call_id, "output": result}
                )

    weather.assert_round_trip(response.output_text)


def test_parsed_answers(client: openai.OpenAI) -> None:
    asked: Any = [{"role": "user", "content": SCHEMA_QUESTION}]
    chat = client.chat.completions.parse(model="scripted", messages=asked, response_format=City)
    response = client.responses.parse(model="scripted", input=asked, text_format=City)

    assert chat.choices[0].message.parsed == response.output_parsed == City(city="Rome")
