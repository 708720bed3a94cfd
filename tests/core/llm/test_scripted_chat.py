"""Tools, reasoning and forms through `AsyncLLM.chat`, from a scripted model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from llm_checks import small
from scripted_model import write_scripted_model

from pippin.core.config import EngineConfig
from pippin.core.llm import (
    LLM,
    Answer,
    ContentDelta,
    ReasoningDelta,
    ResponseFormat,
    Sampling,
    ToolCall,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    ToolSpec,
)

CALL = '<tool_call>\n{"name": "look", "arguments": {"city": "Rome"}}\n</tool_call>'
SCRIPTS = {
    "look": f"<think>\nI must look.\n</think>\n\nWait. {CALL}",
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
TOOL = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
GREEDY: Sampling = {"temperature": 0, "max_tokens": 300}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = write_scripted_model(
        tmp_path_factory.mktemp("scripted"),
        SCRIPTS,
        tokens=("<tool_call>", "</tool_call>"),
        special_tokens=("<think>", "</think>"),
    )
    config = EngineConfig(cache=small().cache, max_model_len=1024, reasoning_parser="think")
    with LLM(str(folder), config) as made:
        yield made


def test_a_tool_round_trip(llm: LLM) -> None:
    messages: list[Any] = [{"role": "user", "content": "look"}]
    [first] = llm.chat(messages, GREEDY, tools=[TOOL])
    assert (first.finish_reason, first.reasoning) == ("tool_calls", "I must look.")
    assert first.text.strip() == "Wait."
    assert 0 < first.usage.reasoning_tokens < first.usage.output_tokens
    [call] = first.tool_calls
    assert (call.name, call.arguments) == ("look", {"city": "Rome"})

    result = {"role": "tool", "tool_call_id": call.call_id, "content": "sunny"}
    as_dict = {
        "role": "assistant",
        "content": first.text,
        "reasoning": first.reasoning,
        "tool_calls": [
            {
                "id": call.call_id,
                "type": "function",
                "function": {"name": "look", "arguments": '{"city": "Rome"}'},
            }
        ],
    }
    second, same = llm.chat(
        [[*messages, first.message, result], [*messages, as_dict, result]],
        GREEDY,
        tools=[ToolSpec(name="look", parameters=SCHEMA)],
    )
    assert second.text == same.text == "It is sunny."
    assert second.prompt_token_ids == same.prompt_token_ids
    assert second.finish_reason == "stop"


def test_the_events_of_a_stream_are_the_answer(llm: LLM) -> None:
    *events, last = llm.stream_chat("look", GREEDY, tools=[TOOL])
    assert isinstance(last, Answer)

    def joined(kind: type[ContentDelta] | type[ReasoningDelta]) -> str:
        return "".join(event.text for event in events if isinstance(event, kind))

    assert (joined(ReasoningDelta), joined(ContentDelta)) == (last.reasoning, last.text)
    [start] = [event for event in events if isinstance(event, ToolCallStart)]
    written = "".join(event.arguments for event in events if isinstance(event, ToolCallDelta))
    assert last.tool_calls == (
        ToolCall(call_id=start.call_id, name="look", arguments=json.loads(written)),
    )
    assert isinstance(events[-1], ToolCallEnd)


def test_a_call_that_breaks_off_has_text_for_arguments(llm: LLM) -> None:
    [answer] = llm.chat("broken", GREEDY, tools=[TOOL])

    assert answer.finish_reason == "stop"
    assert [call.arguments for call in answer.tool_calls] == ['{"ci']


def test_calls_are_made_where_they_must_be_and_nowhere_else(llm: LLM) -> None:
    named = {"type": "function", "function": {"name": "look"}}
    for choice in (named, "required"):
        [answer] = llm.chat("sunny", GREEDY, tools=[TOOL], tool_choice=choice, thinking_budget=4)
        [call] = answer.tool_calls
        assert set(call.arguments) == {"city"}
    for options in ({}, {"tools": [TOOL], "tool_choice": "none"}):
        [answer] = llm.chat("look", GREEDY, **options)  # type: ignore[arg-type]
        assert (answer.tool_calls, answer.finish_reason) == ((), "stop")
        assert CALL in answer.text


def test_text_follows_a_schema_and_reasoning_keeps_to_its_budget(llm: LLM) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
    for said in ("sunny", "think"):
        [answer] = llm.chat(said, GREEDY, response_format=form)
        assert set(json.loads(answer.text)) == {"city"}

    [free], [bound], [without] = (
        llm.chat("think", GREEDY, thinking_budget=budget, reasoning_effort=effort)
        for budget, effort in ((None, None), (5, None), (None, "none"))
    )
    assert free.text == "Good day!"
    assert 0 < bound.usage.reasoning_tokens <= 8 < free.usage.reasoning_tokens
    assert without.reasoning == ""


def test_an_answer_goes_on_where_it_stands(llm: LLM) -> None:
    messages = [
        {"role": "user", "content": "sunny"},
        {"role": "assistant", "content": "<think>\nIt is"},
    ]
    [answer] = llm.chat(
        messages,
        GREEDY,
        continue_final_message=True,
        thinking_budget=3,
        response_format=ResponseFormat("choice", ["yes"]),
    )

    assert answer.reasoning
    assert answer.text == "yes"
