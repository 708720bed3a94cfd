"""Tools, reasoning and structured answers on chat completions."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fake_engine import FakeEngine
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from pippin.core.messages import ChatPrompt, ToolSpec
from pippin.core.parsing.events import (
    ReasoningDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)
from pippin.core.reply_rules import ReplyRules, ResponseFormat, ToolChoice
from pippin.core.request import FinishReason

from .conftest import MakeClient

PATH = "/v1/chat/completions"
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
OTHER = {"type": "function", "function": {"name": "listen", "description": "hears"}}
CALL = (
    ReasoningDelta("I must "),
    ReasoningDelta("look."),
    "Wait.",
    ToolCallStart(0, "call_1", "look"),
    ToolCallDelta(0, '{"city":'),
    ToolCallDelta(0, ' "Rome"}'),
    ToolCallEnd(0),
    ToolCallStart(1, "call_2", "listen"),
    ToolCallDelta(1, "{}"),
    ToolCallEnd(1),
)
CALLS = [
    {
        "id": "call_1",
        "type": "function",
        "function": {"name": "look", "arguments": '{"city": "Rome"}'},
    },
    {"id": "call_2", "type": "function", "function": {"name": "listen", "arguments": "{}"}},
]


def ask(make_client: MakeClient, engine: FakeEngine, **fields: Any) -> Any:
    answer = make_client(engine).post(PATH, json={**CHAT, **fields})
    assert answer.status_code == 200, answer.text
    return answer


def rules_of(make_client: MakeClient, **fields: Any) -> ReplyRules:
    engine = FakeEngine()
    ask(make_client, engine, **fields)
    rules = engine.submissions[-1].rules
    assert rules is not None
    return rules


def tools_of(make_client: MakeClient, **fields: Any) -> list[ToolSpec]:
    engine = FakeEngine()
    ask(make_client, engine, **fields)
    prompt = engine.submissions[-1].prompt
    assert isinstance(prompt, ChatPrompt)
    return list(prompt.tools)


def refusal_of(make_client: MakeClient, **fields: Any) -> str:
    answer = make_client(FakeEngine()).post(PATH, json={**CHAT, **fields})
    assert answer.status_code == 400, answer.text
    return str(answer.json()["error"]["param"])


def test_a_whole_answer(make_client: MakeClient) -> None:
    reply = ask(make_client, FakeEngine(CALL), tools=[TOOL, OTHER]).json()

    ChatCompletion.model_validate(reply, strict=True)
    (choice,) = reply["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Wait."
    assert choice["message"]["reasoning_content"] == "I must look."
    assert choice["message"]["reasoning"] == "I must look."
    assert choice["message"]["tool_calls"] == CALLS
    assert reply["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}


def test_a_message_that_only_calls_has_no_content(make_client: MakeClient) -> None:
    reply = ask(make_client, FakeEngine(CALL[3:7]), tools=[TOOL]).json()

    assert reply["choices"][0]["message"]["content"] is None


@pytest.mark.parametrize("reason", [FinishReason.LENGTH, FinishReason.STOP])
def test_a_call_cut_short_is_shown_as_far_as_it_came(
    make_client: MakeClient, reason: FinishReason
) -> None:
    script = (ToolCallStart(0, "a", "look"), ToolCallDelta(0, '{"ci'), "Oh.")
    (choice,) = ask(make_client, FakeEngine(script, finish_reason=reason), tools=[TOOL]).json()[
        "choices"
    ]

    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "look", "arguments": '{"ci'}
    assert choice["message"]["content"] == "Oh."
    assert choice["finish_reason"] == reason.value


def test_a_stream_says_the_same(make_client: MakeClient) -> None:
    options = {"include_usage": True}
    answer = ask(make_client, FakeEngine(CALL), tools=[TOOL], stream=True, stream_options=options)
    lines = [line[6:] for line in answer.text.split("\n") if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]

    assert "".join(delta.get("content") or "" for delta in deltas) == "Wait."
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == "I must look."
    pieces = [piece for delta in deltas for piece in delta.get("tool_calls", ())]
    begun = [piece for piece in pieces if "id" in piece]
    assert [piece["function"]["name"] for piece in begun] == ["look", "listen"]
    for call in begun:
        mine = [it["function"]["arguments"] for it in pieces if it["index"] == call["index"]]
        assert "".join(mine) == CALLS[call["index"]]["function"]["arguments"]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk["choices"]]
    assert reasons[-1] == "tool_calls"
    assert not any(reasons[:-1])
    assert chunks[-1]["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}


def test_logprobs_are_of_the_content(make_client: MakeClient) -> None:
    answer = ask(make_client, FakeEngine(("a", *CALL)), logprobs=True, stream=True)
    chunks = [json.loads(line[6:]) for line in answer.text.split("\n") if '"delta"' in line]
    shown = [
        (choice["delta"]["content"], [it["token"] for it in choice["logprobs"]["content"]])
        for chunk in chunks
        for choice in chunk["choices"]
        if choice["logprobs"]
    ]
    assert shown == [("a", ["a"]), ("Wait.", ["Wait."])]
    whole = ask(make_client, FakeEngine(("a", *CALL)), logprobs=True).json()["choices"][0]
    assert [it["token"] for it in whole["logprobs"]["content"]] == ["a", "Wait."]


@pytest.mark.parametrize(
    ("fields", "choice"),
    [
        ({}, ToolChoice("none")),
        ({"tools": []}, ToolChoice("none")),
        ({"tools": [TOOL]}, ToolChoice("auto")),
        ({"tools": [TOOL], "tool_choice": "none"}, ToolChoice("none")),
        ({"tools": [TOOL], "tool_choice": "required"}, ToolChoice("required")),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "look"}}},
            ToolChoice("named", "look"),
        ),
    ],
)
def test_tool_choice(make_client: MakeClient, fields: dict[str, Any], choice: ToolChoice) -> None:
    assert rules_of(make_client, **fields).tool_choice == choice


def test_the_model_is_told_of_the_tools_it_may_call(make_client: MakeClient) -> None:
    named = {"type": "function", "function": {"name": "listen"}}
    allowed = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": [named]},
    }
    both = [
        ToolSpec(name="look", parameters=SCHEMA),
        ToolSpec(
            name="listen", description="hears", parameters={"type": "object", "properties": {}}
        ),
    ]

    assert tools_of(make_client, tools=[TOOL, OTHER]) == both
    assert tools_of(make_client, tools=[TOOL, OTHER], tool_choice="none") == []
    assert tools_of(make_client, tools=[TOOL, OTHER], tool_choice=allowed) == both[1:]
    rules = rules_of(make_client, tools=[TOOL, OTHER], tool_choice=allowed)
    assert rules.tool_choice == ToolChoice("required")
    assert not rules_of(make_client, parallel_tool_calls=False).parallel_tool_calls


@pytest.mark.parametrize(
    ("fields", "form"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, ResponseFormat("json_object")),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "s", "schema": SCHEMA},
                }
            },
            ResponseFormat("json_schema", SCHEMA),
        ),
        ({"structured_outputs": {"json": SCHEMA}}, ResponseFormat("json_schema", SCHEMA)),
        ({"structured_outputs": {"json_object": True}}, ResponseFormat("json_object")),
        ({"structured_outputs": {"regex": "a+"}}, ResponseFormat("regex", "a+")),
        ({"structured_outputs": {"choice": ["a", "b"]}}, ResponseFormat("choice", ("a", "b"))),
        ({"structured_outputs": {"grammar": "start: X"}}, ResponseFormat("grammar", "start: X")),
        ({"structured_outputs": {"structural_tag": {}}}, ResponseFormat("structural_tag", {})),
        (
            {"response_format": {"type": "structural_tag", "format": {"type": "any_text"}}},
            ResponseFormat(
                "structural_tag", {"type": "structural_tag", "format": {"type": "any_text"}}
            ),
        ),
    ],
)
def test_response_format(
    make_client: MakeClient, fields: dict[str, Any], form: ResponseFormat | None
) -> None:
    assert rules_of(make_client, **fields).response_format == form


def test_thinking_can_be_bounded(make_client: MakeClient) -> None:
    engine = FakeEngine()
    ask(make_client, engine, thinking_token_budget=7, reasoning_effort="low")

    submission = engine.submissions[-1]
    assert submission.rules is not None
    assert submission.rules.thinking_budget == 7
    assert isinstance(submission.prompt, ChatPrompt)
    assert submission.prompt.reasoning_effort == "low"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "structured_outputs",
        ),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"reasoning_effort": "much"}, "reasoning_effort"),
        ({"thinking_token_budget": -1}, "thinking_token_budget"),
        (
            {"messages": [{"role": "tool", "tool_call_id": "1", "content": "y"}]},
            "messages.0.tool_call_id",
        ),
    ],
)
def test_what_cannot_be_asked(make_client: MakeClient, fields: dict[str, Any], param: str) -> None:
    assert refusal_of(make_client, **fields) == param


def test_what_clients_send_back_of_our_own_answers_is_taken(make_client: MakeClient) -> None:
    function = {"name": "look", "arguments": "{}", "parsed_arguments": {}}
    message = {
        "role": "assistant",
        "content": "x",
        "parsed": None,
        "provider_specific_fields": {"reasoning": "hm"},
        "tool_calls": [{"id": "1", "type": "function", "function": function}],
    }
    result = {"role": "tool", "tool_call_id": "1", "content": "y"}

    engine = FakeEngine()
    ask(make_client, engine, messages=[message, result])

    prompt = engine.submissions[-1].prompt
    assert isinstance(prompt, ChatPrompt)
    assert [call.name for call in prompt.messages[0].tool_calls] == ["look"]


@pytest.mark.parametrize(
    ("written", "arguments"),
    [
        ("", {}),
        ('{"a": 1}', {"a": 1}),
        ('{"ci', '{"ci'),
        ("[1]", "[1]"),
        ("[" * 10_000, "[" * 10_000),
        (r'{"a": "\ud800"}', r'{"a": "\ud800"}'),
    ],
)
def test_arguments_that_broke_off_come_back_as_they_are(
    make_client: MakeClient, written: str, arguments: object
) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": written}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "1", "content": "that is no JSON"}

    engine = FakeEngine()
    ask(make_client, engine, messages=[message, result])

    prompt = engine.submissions[-1].prompt
    assert isinstance(prompt, ChatPrompt)
    (sent,) = prompt.messages[0].tool_calls
    assert sent.arguments == arguments
