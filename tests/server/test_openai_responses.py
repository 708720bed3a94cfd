"""What of a Responses request reaches the engine, and what is refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fake_engine import FakeEngine, make_card
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from pippin.core.errors import ContextLengthError
from pippin.core.messages import ChatPrompt, Message, Prompt, TextPart, ToolCall, ToolSpec
from pippin.core.parsing.events import (
    ReasoningDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)
from pippin.core.reply_rules import ReplyRules, ResponseFormat, ToolChoice
from pippin.core.sampling_params import SamplingParams
from pippin.server.app import create_app
from pippin.server.config import ServerConfig
from pippin.server.schemas.openai_responses import ResponsesRequest

from .conftest import MakeClient

PATH = "/v1/responses"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "name": "f", "description": "Adds.", "parameters": SCHEMA, "strict": True},
    {"type": "function", "name": "g"},
]


def ask(make_client: MakeClient, **body: Any) -> tuple[ChatPrompt, SamplingParams, ReplyRules]:
    engine = FakeEngine()
    answer = make_client(engine).post(PATH, json={"model": "tiny", "input": "hi", **body})
    assert answer.status_code == 200, answer.text
    [sent] = engine.submissions
    assert isinstance(sent.prompt, ChatPrompt)
    assert sent.rules is not None
    return sent.prompt, sent.params, sent.rules


def said(role: str, *texts: str, **fields: Any) -> Message:
    return Message(role=role, content=tuple(TextPart(text) for text in texts), **fields)


def test_items_become_turns(make_client: MakeClient) -> None:
    call = {"type": "function_call", "call_id": "1", "name": "f", "arguments": '{"a": 1}'}
    items = [
        {"role": "developer", "content": "rule"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "ok"}]},
        call,
        {**call, "call_id": "2", "arguments": ""},
        {"type": "function_call_output", "call_id": "2", "output": "two"},
        {
            "type": "function_call_output",
            "call_id": "1",
            "output": [{"type": "input_text", "text": "one"}],
        },
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "short"}]},
        {**call, "call_id": "3", "arguments": '{"cut', "status": "incomplete"},
        {"role": "assistant", "content": "first"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "second"}]},
        {"role": "system", "content": "late rule"},
        {**call, "call_id": "4", "arguments": '{"cut', "status": "incomplete"},
        {**call, "call_id": "5", "arguments": "[" * 10_000},
        {"type": "function_call_output", "call_id": "4", "output": "no JSON"},
    ]

    prompt, _, _ = ask(make_client, input=items, instructions="Be kind.")

    calls = tuple(
        ToolCall(call_id=call_id, name="f", arguments=arguments)
        for call_id, arguments in (("1", {"a": 1}), ("2", {}))
    )
    cut_calls = tuple(
        ToolCall(call_id=call_id, name="f", arguments=arguments)
        for call_id, arguments in (("4", '{"cut'), ("5", "[" * 10_000))
    )
    assert prompt.messages == (
        said("system", "Be kind."),
        said("developer", "rule"),
        said("user", "hi"),
        said("assistant", "ok", reasoning="hm", tool_calls=calls),
        said("tool", "two", tool_call_id="2"),
        said("tool", "one", tool_call_id="1"),
        said("assistant", "first", reasoning="short"),
        said("assistant", "second"),
        said("system", "late rule"),
        said("assistant", tool_calls=cut_calls),
        said("tool", "no JSON", tool_call_id="4"),
    )


def test_tools_and_rules_reach_the_engine(make_client: MakeClient) -> None:
    form = {"type": "json_schema", "name": "n", "schema": SCHEMA}

    prompt, params, rules = ask(
        make_client,
        tools=TOOLS,
        tool_choice={"type": "function", "name": "f"},
        parallel_tool_calls=False,
        text={"format": form},
        reasoning={"effort": "low"},
        thinking_token_budget=7,
        chat_template_kwargs={"k": 1},
        max_output_tokens=5,
        temperature=0.5,
        top_p=0.9,
        seed=3,
        stop="x",
        include=["message.output_text.logprobs"],
    )

    assert prompt.tools == (
        ToolSpec(name="f", description="Adds.", parameters=SCHEMA, strict=True),
        ToolSpec(name="g", parameters={"type": "object", "properties": {}}),
    )
    assert (prompt.reasoning_effort, prompt.template_kwargs) == ("low", {"k": 1})
    assert params == SamplingParams(
        max_tokens=5, temperature=0.5, top_p=0.9, seed=3, stop=("x",), num_logprobs=0
    )
    assert rules == ReplyRules(
        tool_choice=ToolChoice("named", "f"),
        parallel_tool_calls=False,
        response_format=ResponseFormat("json_schema", SCHEMA),
        thinking_budget=7,
    )


@pytest.mark.parametrize(
    ("choice", "names", "expected"),
    [
        (None, ["f", "g"], ToolChoice("auto")),
        ("none", [], ToolChoice("none")),
        ("required", ["f", "g"], ToolChoice("required")),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [TOOLS[1]]},
            ["g"],
            ToolChoice("required"),
        ),
    ],
)
def test_tool_choices(
    make_client: MakeClient, choice: object, names: list[str], expected: ToolChoice
) -> None:
    prompt, _, rules = ask(make_client, tools=TOOLS, tool_choice=choice)

    assert [tool.name for tool in prompt.tools] == names
    assert rules.tool_choice == expected


def test_json_object_is_a_rule_and_text_is_none(make_client: MakeClient) -> None:
    rules = [
        ask(make_client, text={"format": {"type": kind}})[2] for kind in ("json_object", "text")
    ]

    assert [it.response_format for it in rules] == [ResponseFormat("json_object"), None]


USER = {"role": "user", "content": "x"}
CALL = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"n": 2}, "n"),
        ({"nonsense": 1}, "nonsense"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"include": ["nonsense"]}, "include.0"),
        ({"stream_options": {}}, "stream_options"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"tools": [{"type": "file_search", "vector_store_ids": []}]}, "tools.0.type"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools"),
        ({"tools": [{**TOOLS[0], "parameters": {"a": 1e999}}]}, "tools.0.parameters"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
        ({"tool_choice": {"type": "mcp", "server_label": "x"}}, "tool_choice.type"),
        ({"input": [USER, {"type": "web_search_call"}]}, "input.1.type"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0.id"),
        ({"input": [{**USER, "content": [{"type": "input_image"}]}]}, "input.0.content.0.type"),
        (
            {"input": [{"type": "function_call_output", "call_id": "1", "output": ""}]},
            "input.0.call_id",
        ),
        (
            {"input": [{"type": "reasoning", "encrypted_content": "gAAAAAB"}]},
            "input.0.encrypted_content",
        ),
        (
            {"input": [{"type": "reasoning", "encrypted_content": "pippin:ä"}]},
            "input.0.encrypted_content",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    make_client: MakeClient, changes: dict[str, Any], param: str
) -> None:
    engine = FakeEngine()
    # By hand, because the client's own JSON has no infinity.
    body = json.dumps({"model": "tiny", "input": "x", **changes}).replace("Infinity", "1e999")

    answer = make_client(engine).post(PATH, content=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert not engine.submissions


def test_the_line_break_that_stands_for_a_call_is_in_no_message(make_client: MakeClient) -> None:
    call = (ToolCallStart(0, "c", "f"), ToolCallDelta(0, "{}"), ToolCallEnd(0))
    client = make_client(FakeEngine(("a", *call, "\nb", "\nc")))
    output = client.post(PATH, json={"model": "tiny", "input": "x"}).json()["output"]
    texts = [item["content"][0]["text"] for item in output if item["type"] == "message"]
    assert texts == ["a", "b\nc"]


def test_opaque_reasoning_comes_back_whole(make_client: MakeClient) -> None:
    engine = FakeEngine((ReasoningDelta("hm ü"), "ok"))
    client = make_client(engine)
    body = {"model": "tiny", "input": "x", "include": ["reasoning.encrypted_content"]}
    [thought, answer] = client.post(PATH, json=body).json()["output"]

    assert client.post(PATH, json={**body, "input": [{**thought, "content": None}, answer]})

    prompt = engine.submissions[-1].prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.messages == (said("assistant", "ok", reasoning="hm ü"),)


class ShortEngine(FakeEngine):
    """Refuses prompts that do not fit, as the real one does."""

    async def submit(self, prompt: Prompt, params: SamplingParams, **rest: Any) -> Any:
        num_tokens, limit = len(await self.tokenize(prompt)), self.model_card.max_model_len
        if num_tokens + (params.max_tokens or 1) > limit:
            raise ContextLengthError(
                num_prompt_tokens=num_tokens, max_tokens=params.max_tokens, limit=limit
            )
        return await super().submit(prompt, params, **rest)


def rendered(prompt: Prompt) -> str:
    assert isinstance(prompt, ChatPrompt)
    return "".join(f"{it.role}: {it.text}\n" for it in prompt.messages)


WHOLE = "system: s\nuser: one\nassistant: two\nuser: three\nassistant: four\nuser: five\n"
LINES = WHOLE.splitlines()
FITTING = [
    WHOLE.replace(WHOLE[10 : WHOLE.index(f"user: {word}")], "") for word in ("three", "five")
]


@pytest.mark.parametrize("kept", [WHOLE, *FITTING])
@pytest.mark.parametrize("num_spare", [0, 1])
def test_truncation_drops_as_few_of_the_oldest_turns_as_it_must(
    make_client: MakeClient, kept: str, num_spare: int
) -> None:
    engine = ShortEngine(card=make_card(max_model_len=len(kept) + 4 + num_spare))
    client = make_client(engine)
    turns = [dict(zip(("role", "content"), line.split(": "), strict=True)) for line in LINES[1:]]
    body = {"model": "tiny", "input": turns, "instructions": "s", "max_output_tokens": 4}

    answer = client.post(PATH, json={**body, "truncation": "auto"})
    plain = client.post(PATH, json={**body, "truncation": "disabled"})

    assert answer.json()["truncation"] == "auto"
    assert rendered(engine.submissions[0].prompt) == kept
    assert plain.status_code == (200 if kept == WHOLE else 400)
    assert kept == WHOLE or plain.json()["error"]["param"] == "input"


def test_truncation_counts_in_the_count(make_client: MakeClient) -> None:
    client = make_client(ShortEngine(card=make_card(max_model_len=len(FITTING[0]) + 1)))
    turns = [dict(zip(("role", "content"), line.split(": "), strict=True)) for line in LINES[1:]]
    body = {"model": "tiny", "input": turns, "instructions": "s"}

    whole, cut = (
        client.post(f"{PATH}/input_tokens", json={**body, "truncation": way}).json()["input_tokens"]
        for way in ("disabled", "auto")
    )
    assert (whole, cut) == (len(WHOLE), len(FITTING[0]))


def test_truncation_cannot_drop_the_last_turn(make_client: MakeClient) -> None:
    engine = ShortEngine(card=make_card(max_model_len=5))

    answer = make_client(engine).post(
        PATH, json={"model": "tiny", "input": "too long", "truncation": "auto"}
    )

    assert answer.json()["error"]["code"] == "context_length_exceeded"


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(create_app(FakeEngine(), ServerConfig())) as client:
        yield client


NAMES = st.sampled_from(
    [
        *("type", "role", "content", "text", "id", "status", "call_id", "name", "arguments"),
        *("output", "summary", "encrypted_content", "format", "schema", "mode", "tools"),
    ]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(
        [
            *("message", "function_call", "function_call_output", "reasoning", "item_reference"),
            *("user", "assistant", "input_text", "output_text", "input_image", "function", "{}"),
            *("json_schema", "allowed_tools", "auto", "msg_1_1", "\ud800", ""),
        ]
    )
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=10,
)
FIELDS = st.sampled_from(sorted(set(ResponsesRequest.model_fields) - {"model"}))


@settings(max_examples=150, deadline=None)
@given(fields=st.dictionaries(FIELDS, JSON, max_size=2) | JSON.map(lambda it: {"input": [it]}))
def test_any_fields_get_an_answer(client: TestClient, fields: dict[str, Any]) -> None:
    # A fault of the server's would be raised here by the test client.
    answer = client.post(PATH, content=json.dumps({"model": "tiny", "input": "x", **fields}))

    assert answer.status_code in (200, 400)
    if answer.status_code == 400:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
