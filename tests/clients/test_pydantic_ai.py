"""pydantic-ai over chat, Responses and Messages."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from live_server import LiveServer
from weather import QUESTION, SCHEMA_QUESTION, City, Weather

OPENAI = ["OpenAIChatModel", "OpenAIResponsesModel"]


def make_agent(server: LiveServer, kind: str, **fields: Any) -> Any:
    package = pytest.importorskip("pydantic_ai")
    if kind in OPENAI:
        module = pytest.importorskip("pydantic_ai.models.openai")
        provider = pytest.importorskip("pydantic_ai.providers.openai").OpenAIProvider(
            base_url=f"{server.url}/v1", api_key="none"
        )
    else:
        module = pytest.importorskip("pydantic_ai.models.anthropic")
        provider = pytest.importorskip("pydantic_ai.providers.anthropic").AnthropicProvider(
            base_url=server.url, api_key="none"
        )
    return package.Agent(getattr(module, kind)("scripted", provider=provider), **fields)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", [*OPENAI, "AnthropicModel"])
def test_a_round_trip(server: LiveServer, weather: Weather, kind: str, stream: bool) -> None:
    tool = pytest.importorskip("pydantic_ai").Tool(weather.look, takes_ctx=False)
    agent = make_agent(server, kind, tools=[tool])

    async def run() -> str:
        if not stream:
            return str((await agent.run(QUESTION)).output)
        async with agent.iter(QUESTION) as turns:
            async for node in turns:
                if hasattr(node, "stream"):
                    async with node.stream(turns.ctx) as events:
                        async for _ in events:
                            pass
        return str(turns.result.output)

    weather.assert_round_trip(asyncio.run(run()))


@pytest.mark.parametrize("kind", OPENAI)  # it knows no such thing of a Claude that it does not know
def test_a_structured_answer(server: LiveServer, kind: str) -> None:
    native = pytest.importorskip("pydantic_ai").NativeOutput
    agent = make_agent(server, kind, output_type=native(City))
    result = asyncio.run(agent.run(SCHEMA_QUESTION))

    assert result.output == City(city="Rome")
