"""Reasoning, tools and structured answers, from a scripted model to official clients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from live_server import LiveServer, serve
from scripted_model import write_scripted_model

from pippin.core.config import CacheConfig, EngineConfig
from pippin.core.engine.async_engine import AsyncEngine
from pippin.server.config import ServerConfig

CALL = '<tool_call>\n{"name": "look", "arguments": {"city": "Rome"}}\n</tool_call>'
SCRIPTS = {
    "look": f"<think>\nI must look.\n</think>\n\nWait. {CALL}",
    "twice": f"{CALL}\n{CALL.replace('Rome', 'Köln')}",
    "think": "<think>\nIt is a greeting, so I greet, and greet, and greet.\n</think>\n\nGood day!",
    "sunny": "It is sunny.",
    "broken": '<tool_call>\n{"name": "look", "arguments": {"ci',
}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder: Path = write_scripted_model(
        tmp_path_factory.mktemp("replies"),
        SCRIPTS,
        tokens=("<tool_call>", "</tool_call>"),
        special_tokens=("<think>", "</think>"),
    )
    config = EngineConfig(
        cache=CacheConfig(max_bytes=16 << 20), max_model_len=4096, reasoning_parser="think"
    )
    engine = AsyncEngine.start(str(folder), config, served_model_name="scripted")
    try:
        store = tmp_path_factory.mktemp("store") / "responses.sqlite"
        with serve(engine, ServerConfig(port=0, response_store=store)) as live:
            yield live
    finally:
        engine.close()


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def claude(server: LiveServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as made:
        yield made


def chat(client: openai.OpenAI, text: str, **fields: Any) -> Any:
    messages: Any = [{"role": "user", "content": text}]
    return client.chat.completions.create(
        **{"model": "scripted", "messages": messages, "temperature": 0, **fields}
    )


def test_a_tool_round_trip_with_reasoning(client: openai.OpenAI) -> None:
    first = chat(client, "look", tools=[TOOL])
    (choice,) = first.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.reasoning_content == "I must look."
    assert choice.message.content.strip() == "Wait."
    (call,) = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("look", {"city": "Rome"})
    assert 0 < first.usage.completion_tokens_details.reasoning_tokens < 40

    messages: Any = [
        {"role": "user", "content": "look"},
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    second = chat(client, "", messages=messages, tools=[TOOL])
    assert second.choices[0].message.content == "It is sunny."
    assert second.choices[0].finish_reason == "stop"


def test_two_calls_streamed(client: openai.OpenAI) -> None:
    arguments = ["", ""]
    reasons = []
    for chunk in chat(client, "twice", tools=[TOOL], stream=True):
        for choice in chunk.choices:
            assert not choice.delta.content
            reasons.append(choice.finish_reason)
            for call in choice.delta.tool_calls or ():
                arguments[call.index] += call.function.arguments or ""

    assert [json.loads(it) for it in arguments] == [{"city": "Rome"}, {"city": "Köln"}]
    assert reasons[-1] == "tool_calls"


def test_a_call_that_breaks_off_has_the_arguments_that_came(client: openai.OpenAI) -> None:
    for fields, reason in (({}, "stop"), ({"max_tokens": 34}, "length")):
        (choice,) = chat(client, "broken", tools=[TOOL], **fields).choices

        assert choice.finish_reason == reason
        assert choice.message.content is None
        (call,) = choice.message.tool_calls
        assert call.function.name == "look"
        assert call.function.arguments == ('{"ci' if reason == "stop" else '{"')


def test_without_tools_nothing_is_called(client: openai.OpenAI) -> None:
    (choice,) = chat(client, "twice").choices

    assert choice.message.content == SCRIPTS["twice"]
    assert choice.message.tool_calls is None


def test_one_call_where_several_are_not_wanted(client: openai.OpenAI) -> None:
    (choice,) = chat(
        client, "twice", tools=[TOOL], tool_choice="required", parallel_tool_calls=False
    ).choices

    assert len(choice.message.tool_calls) == 1


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_call_is_made_where_it_must_be(client: openai.OpenAI, temperature: float) -> None:
    named: Any = {"type": "function", "function": {"name": "look"}}
    # Off its script the model may think, and would never stop.
    budget = {"thinking_token_budget": 4}
    (choice,) = chat(
        client,
        "sunny",
        tools=[TOOL],
        tool_choice=named,
        temperature=temperature,
        max_tokens=200,
        extra_body=budget,
    ).choices

    (call,) = choice.message.tool_calls
    assert call.function.name == "look"
    assert set(json.loads(call.function.arguments)) == {"city"}


def test_content_follows_a_schema_and_reasoning_may_come_before(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
    for text in ("sunny", "think"):
        (choice,) = chat(client, text, response_format=form, max_tokens=300).choices
        assert set(json.loads(choice.message.content)) == {"city"}


def test_thinking_ends_at_its_budget(client: openai.OpenAI) -> None:
    free = chat(client, "think")
    bound = chat(client, "think", extra_body={"thinking_token_budget": 5})

    spent = bound.usage.completion_tokens_details.reasoning_tokens
    assert spent < free.usage.completion_tokens_details.reasoning_tokens
    assert spent <= 8  # the markers count
    assert bound.choices[0].message.reasoning_content
    assert "<" not in bound.choices[0].message.content


def test_reasoning_can_be_gone_on_with(client: openai.OpenAI) -> None:
    messages: Any = [
        {"role": "user", "content": "think"},
        {"role": "assistant", "content": "<think>\nIt is"},
    ]
    fields = {
        "continue_final_message": True,
        "thinking_token_budget": 3,
        "structured_outputs": {"choice": ["yes"]},
    }
    (choice,) = chat(client, "", messages=messages, extra_body=fields, max_tokens=40).choices

    assert choice.message.reasoning_content
    assert choice.message.content == "yes"


def test_a_bad_schema_costs_nobody_else_anything(client: openai.OpenAI) -> None:
    form: Any = {
        "type": "json_schema",
        "json_schema": {"name": "s", "schema": {"type": "object", "properties": 3}},
    }
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, "sunny", response_format=form)
    assert "response_format" in str(caught.value)
    assert chat(client, "sunny").choices[0].message.content == "It is sunny."


def test_messages_of_anthropic(claude: anthropic.Anthropic) -> None:
    tool: Any = {"name": "look", "input_schema": SCHEMA}
    with claude.messages.stream(
        model="scripted",
        max_tokens=200,
        tools=[tool],
        messages=[{"role": "user", "content": "look"}],
    ) as stream:
        first = stream.get_final_message()
    assert first.stop_reason == "tool_use"
    assert [block.type for block in first.content] == ["thinking", "text", "tool_use"]
    use = first.content[-1]
    assert use.type == "tool_use"
    assert use.input == {"city": "Rome"}

    content: Any = [block.model_dump(exclude_none=True) for block in first.content]
    second = claude.messages.create(
        model="scripted",
        max_tokens=200,
        tools=[tool],
        messages=[
            {"role": "user", "content": "look"},
            {"role": "assistant", "content": content},
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}],
            },
        ],
    )
    assert [getattr(block, "text", None) for block in second.content] == ["It is sunny."]
    assert second.stop_reason == "end_turn"


def test_responses_of_openai(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "name": "look", "parameters": SCHEMA, "strict": False}
    first = client.responses.create(model="scripted", input="look", tools=[tool], temperature=0)
    assert [item.type for item in first.output] == ["reasoning", "message", "function_call"]
    call = first.output[-1]
    assert call.type == "function_call"
    assert json.loads(call.arguments) == {"city": "Rome"}

    second = client.responses.create(
        model="scripted",
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}],
        previous_response_id=first.id,
        tools=[tool],
        temperature=0,
    )
    assert second.output_text == "It is sunny."


def test_what_the_model_can_do_is_told(server: LiveServer) -> None:
    shown = httpx.post(f"{server.url}/api/show", json={"model": "scripted"}).json()
    props = httpx.get(f"{server.url}/props").json()

    assert shown["capabilities"] == ["completion", "tools", "thinking"]
    assert shown["template"] == props["chat_template"]
    assert "<|im_start|>" in props["chat_template"]
    assert props["total_slots"] > 0
