"""openai-agents: its tool loop over Responses and chat, and its structured answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from live_server import LiveServer
from weather import QUESTION, SCHEMA_QUESTION, City, Weather

Run = Callable[..., Any]


@pytest.fixture(params=["OpenAIResponsesModel", "OpenAIChatCompletionsModel"])
def run(request: pytest.FixtureRequest, server: LiveServer) -> Run:
    """Let an agent answer."""
    agents = pytest.importorskip("agents")
    openai = pytest.importorskip("openai")

    async def answer(question: str, stream: bool, **fields: Any) -> Any:
        url = f"{server.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            model = getattr(agents, request.param)(model="scripted", openai_client=client)
            agent = agents.Agent(name="a", instructions="Look.", model=model, **fields)
            if not stream:
                return (await agents.Runner.run(agent, question)).final_output
            result = agents.Runner.run_streamed(agent, question)
            async for _ in result.stream_events():
                pass
            return result.final_output

    return lambda *args, **fields: asyncio.run(answer(*args, **fields))


@pytest.mark.parametrize("stream", [False, True])
def test_a_round_trip(run: Run, weather: Weather, stream: bool) -> None:
    tool = pytest.importorskip("agents").function_tool(weather.look)

    weather.assert_round_trip(run(QUESTION, stream, tools=[tool]))


@pytest.mark.parametrize("stream", [False, True])
def test_a_structured_answer(run: Run, stream: bool) -> None:
    assert run(SCHEMA_QUESTION, stream, output_type=City) == City(city="Rome")
