"""Anthropic's own package: the tool runner, streaming, and structured output."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from live_server import LiveServer
from weather import QUESTION, SCHEMA_QUESTION, City, Weather

# The runner sends the whole conversation only once `thread` has been refused in a form it knows.


@pytest.fixture
def client(server: LiveServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as made:
        yield made


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("thread", [{"thread": False}, {}])
def test_the_tool_runner(
    client: anthropic.Anthropic, weather: Weather, thread: Any, stream: bool
) -> None:
    asked: Any = [{"role": "user", "content": QUESTION}]
    runner: Any = client.beta.messages.tool_runner(
        model="claude-scripted",
        max_tokens=2000,
        messages=asked,
        tools=[anthropic.beta_tool(weather.look)],
        thinking={"type": "enabled", "budget_tokens": 1024},
        stream=stream,
        **thread,
    )
    last = runner.until_done()

    weather.assert_round_trip("".join(block.text for block in last.content if block.type == "text"))


def test_a_parsed_answer(client: anthropic.Anthropic) -> None:
    message = client.messages.parse(
        model="claude-scripted",
        max_tokens=100,
        messages=[{"role": "user", "content": SCHEMA_QUESTION}],
        output_format=City,
    )
    assert message.parsed_output == City(city="Rome")
