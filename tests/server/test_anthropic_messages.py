"""Messages requests: what reaches the engine, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fake_engine import FakeEngine, make_card
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from pippin.core.errors import ContextLengthError
from pippin.core.messages import ChatPrompt, Message, TextPart, ToolCall, ToolSpec
from pippin.core.reply_rules import ReplyRules, ResponseFormat, ToolChoice
from pippin.core.sampling_params import SamplingParams
from pippin.server.app import create_app
from pippin.server.config import ServerConfig
from pippin.server.schemas.anthropic_messages import MessagesRequest

from .conftest import MakeClient

PATH = "/v1/messages"
BODY: dict[str, Any] = {
    "model": "tiny",
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "hi"}],
}
MARK = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
CALL = {"type": "tool_use", "id": "1", "name": "f", "input": {}}
TOOL = {"name": "f", "description": "d", "input_schema": {"type": "object"}}


def _submit(make_client: MakeClient, **changes: object) -> FakeEngine:
    engine = FakeEngine()
    answer = make_client(engine).post(PATH, json={**BODY, **changes})
    assert answer.status_code == 200, answer.text
    return engine


def _prompt(make_client: MakeClient, **changes: object) -> ChatPrompt:
    prompt = _submit(make_client, **changes).submissions[0].prompt
    assert isinstance(prompt, ChatPrompt)
    return prompt


def _rules(make_client: MakeClient, **changes: object) -> ReplyRules:
    rules = _submit(make_client, **changes).submissions[0].rules
    assert rules is not None
    return rules


def _said(role: str, *texts: str, **fields: Any) -> Message:
    return Message(role=role, content=tuple(TextPart(text) for text in texts), **fields)


def test_a_conversation_with_everything_in_it(make_client: MakeClient) -> None:
    prompt = _prompt(
        make_client,
        **MARK,
        system=[{"type": "text", "text": "Be brief.", **MARK}],
        tools=[{**TOOL, "type": "custom", "strict": True, "eager_input_streaming": True, **MARK}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "weather?", **MARK}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "theirs"},
                    {"type": "redacted_thinking", "data": "abc"},
                    {"type": "text", "text": "Let me see.", "citations": None},
                    {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}, **MARK},
                    {
                        "type": "tool_use",
                        "id": "b",
                        "name": "f",
                        "input": {},
                        "caller": {"type": "direct"},
                    },
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "a", "content": "sun", **MARK},
                    {
                        "type": "tool_result",
                        "tool_use_id": "b",
                        "is_error": True,
                        "content": [{"type": "text", "text": "no "}, {"type": "text", "text": "b"}],
                    },
                    {"type": "text", "text": "and?"},
                ],
            },
            {"role": "system", "content": "Now in French."},
            {"role": "user", "content": "go on"},
        ],
    )

    calls = (
        ToolCall(call_id="a", name="f", arguments={"x": 1}),
        ToolCall(call_id="b", name="f", arguments={}),
    )
    assert prompt == ChatPrompt(
        messages=(
            _said("system", "Be brief."),
            _said("user", "weather?"),
            _said("assistant", "Let me see.", tool_calls=calls, reasoning="hm"),
            _said("tool", "sun", tool_call_id="a"),
            _said("tool", "Error: no b", tool_call_id="b"),
            _said("user", "and?"),
            _said("system", "Now in French."),
            _said("user", "go on"),
        ),
        tools=(
            ToolSpec(name="f", description="d", parameters={"type": "object"}, strict=True),
        ),
    )  # fmt: skip


def test_documents_and_search_results_are_read_as_text(make_client: MakeClient) -> None:
    plain = {"type": "text", "media_type": "text/plain", "data": "Once."}
    blocks = {"type": "content", "content": [{"type": "text", "text": "Twice."}]}
    found = [{"type": "text", "text": "Thrice."}]
    content = [
        {"type": "document", "source": plain, "title": "T", "context": "C"},
        {"type": "document", "source": blocks, "citations": {"enabled": False}},
        {"type": "search_result", "source": "s", "title": "S", "content": found},
        {"type": "text", "text": "Sum up."},
    ]

    [message] = _prompt(make_client, messages=[{"role": "user", "content": content}]).messages

    assert message.text == "T\nC\nOnce.\nTwice.\nS\ns\nThrice.\nSum up."


def test_turns_of_one_speaker_are_one_turn(make_client: MakeClient) -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c"},
        {"role": "assistant", "content": [CALL]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1"}]},
    ]

    user, assistant, tool = _prompt(make_client, messages=messages).messages

    assert user.text == "a\n\nb"
    assert (assistant.text, len(assistant.tool_calls)) == ("c", 1)
    assert (tool.text, tool.tool_call_id) == ("", "1")


HEADER = "x-anthropic-billing-header: cc_version=2.1; cch=0aaa9;"


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        ([HEADER, "You code."], ["You code."]),
        ([f"{HEADER}\nYou code."], ["You code."]),
        (["You code.", f"Never send {HEADER}"], ["You code.", f"Never send {HEADER}"]),
        ([HEADER], None),
    ],
)
def test_claude_codes_changing_line_stays_out_of_the_prompt(
    make_client: MakeClient, system: list[str], expected: list[str] | None
) -> None:
    blocks = [{"type": "text", "text": text} for text in system]

    first = _prompt(make_client, system=blocks).messages[0]

    assert first == (_said("system", *expected) if expected else _said("user", "hi"))


def test_a_begun_answer_is_continued(make_client: MakeClient) -> None:
    begun = {"role": "assistant", "content": "It is"}
    empty = {"role": "assistant", "content": []}

    prompt = _prompt(make_client, messages=[*BODY["messages"], begun])
    assert (prompt.continue_final_message, prompt.add_generation_prompt) == (True, False)
    assert prompt.messages[-1] == _said("assistant", "It is")

    prompt = _prompt(make_client, messages=[*BODY["messages"], empty])
    assert (prompt.continue_final_message, prompt.add_generation_prompt) == (False, True)
    assert prompt.messages == (_said("user", "hi"),)


@pytest.mark.parametrize(
    ("edit", "kept"),
    [
        (None, ["a", "b", "c"]),
        ({"keep": "all"}, ["a", "b", "c"]),
        ({"keep": {"type": "thinking_turns", "value": 2}}, [None, "b", "c"]),
        ({}, [None, None, "c"]),
    ],
)
def test_old_thoughts_are_cleared_as_asked(
    make_client: MakeClient, edit: dict[str, object] | None, kept: list[str | None]
) -> None:
    messages: list[object] = []
    for thought in "abc":
        blocks = [{"type": "thinking", "thinking": thought}, {"type": "text", "text": "x"}]
        messages += [*BODY["messages"], {"role": "assistant", "content": blocks}]
    edits = [] if edit is None else [{"type": "clear_thinking_20251015", **edit}]

    prompt = _prompt(make_client, messages=[*messages, *BODY["messages"]],
                     context_management={"edits": edits})  # fmt: skip

    assert [it.reasoning for it in prompt.messages if it.role == "assistant"] == kept


@pytest.mark.parametrize(
    ("changes", "effort", "budget"),
    [
        ({}, None, None),
        ({"thinking": {"type": "disabled"}}, "none", 0),
        ({"thinking": {"type": "enabled"}}, "high", None),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "high", 1024),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, "low", None),
        ({"output_config": {"effort": "max"}}, "xhigh", None),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "max"}}, "none", 0),
    ],
)
def test_thinking(
    make_client: MakeClient, changes: dict[str, object], effort: str | None, budget: int | None
) -> None:
    [submission] = _submit(make_client, **changes).submissions

    assert isinstance(submission.prompt, ChatPrompt)
    assert submission.prompt.reasoning_effort == effort
    assert submission.rules is not None
    assert submission.rules.thinking_budget == budget


@pytest.mark.parametrize(
    ("choice", "expected", "parallel"),
    [
        (None, ToolChoice("auto"), True),
        ({"type": "auto", "disable_parallel_tool_use": True}, ToolChoice("auto"), False),
        ({"type": "any"}, ToolChoice("required"), True),
        ({"type": "none"}, ToolChoice("none"), True),
        (
            {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
            ToolChoice("named", "f"),
            False,
        ),
    ],
)
def test_tool_choice(
    make_client: MakeClient, choice: object, expected: ToolChoice, parallel: bool
) -> None:
    rules = _rules(make_client, tools=[TOOL], tool_choice=choice)

    assert rules == ReplyRules(tool_choice=expected, parallel_tool_calls=parallel)


@pytest.mark.parametrize("place", ["output_config", "output_format"])
def test_a_schema_for_the_content(make_client: MakeClient, place: str) -> None:
    wanted = {"type": "json_schema", "schema": {"type": "object"}}
    changes = {place: {"format": wanted} if place == "output_config" else wanted}

    rules = _rules(make_client, **changes)

    assert rules.response_format == ResponseFormat("json_schema", {"type": "object"})


def test_settings_reach_the_engine(make_client: MakeClient) -> None:
    engine = _submit(
        make_client,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        stop_sequences=["x", "y"],
        metadata={"user_id": "u"},
        service_tier="auto",
        speed="standard",
        mcp_servers=[],
    )

    assert engine.submissions[0].params == SamplingParams(
        max_tokens=9, temperature=0.5, top_p=0.9, top_k=40, stop=("x", "y")
    )


def _user(*blocks: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}


def _result_of_call(content: object) -> dict[str, object]:
    result = {"type": "tool_result", "tool_use_id": CALL["id"], "content": content}
    asked = {"role": "assistant", "content": [CALL]}
    return {"messages": [asked, {"role": "user", "content": [result]}]}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"max_tokens": None}, "'max_tokens'"),
        ({"max_tokens": -1}, "'max_tokens'"),
        ({"messages": []}, "'messages'"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "'messages.0.role'"),
        (_user(), "'messages.0.content'"),
        (_user({"type": "text"}), "'messages.0.content.0.text'"),
        (_user(CALL), "'messages.0.content.0.type'"),
        (_user(IMAGE), "'messages.0.content.0' is of type 'image'"),
        (_result_of_call([IMAGE]), "'messages.1.content.0.content.0' is of type 'image'"),
        (_user({"type": "text", "text": "x"}, {"type": "tool_result", "tool_use_id": "1"}),
         "messages.0.content.1: unexpected `tool_use_id` found in `tool_result` blocks: 1"),
        (_user({"type": "document", "source": IMAGE["source"]}),
         "'messages.0.content.0.source' is of type 'base64'"),
        ({"system": [IMAGE]}, "'system.0' is of type 'image'"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
         "'tools.0' is of type 'web_search_20250305'"),
        ({"tools": [{"name": "f"}]}, "'tools.0.input_schema'"),
        ({"tools": ["f"]}, "'tools.0'"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "'g'"),
        ({"tool_choice": {"type": "any"}}, "'tools'"),
        ({"tool_choice": {"type": "maybe"}}, "'tool_choice.type'"),
        ({"thinking": {"type": "adaptive", "budget_tokens": 9}}, "'thinking.budget_tokens'"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "'thinking.budget_tokens'"),
        ({"stop_sequences": [""]}, "'stop_sequences.0'"),
        ({"stop_sequences": ["x"] * 17}, "'stop_sequences'"),
        ({"temperature": 2.1}, "temperature"),
        ({"service_tier": "priority"}, "'service_tier'"),
        ({"speed": "fast"}, "'speed'"),
        ({"container": "c"}, "'container'"),
        ({"mcp_servers": [{}]}, "'mcp_servers'"),
        ({"diagnostics": {"previous_message_id": None}}, "'diagnostics'"),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
         "'context_management.edits.0.type'"),
        ({"cache_control": {"type": "forever"}}, "'cache_control.type'"),
        ({"n": 2}, "'n'"),
        ({"messages": [{"role": "assistant", "content": [CALL]}]}, "'messages'"),
        ({"messages": [{"role": "assistant", "content": [{"type": "thinking", "thinking": "h"}]}]},
         "'messages'"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(
    make_client: MakeClient, changes: dict[str, object], named: str
) -> None:
    engine = FakeEngine()

    answer = make_client(engine).post(PATH, json={**BODY, **changes})

    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert named in answer.json()["error"]["message"]
    assert not engine.submissions


def test_the_count_is_that_of_the_prompt_that_would_run(make_client: MakeClient) -> None:
    asked: list[object] = []

    class Engine(FakeEngine):
        async def tokenize(self, prompt: object) -> list[int]:
            asked.append(prompt)
            return [1] * 7

    engine = Engine()
    client = make_client(engine)
    body = {**BODY, "system": "s", "tools": [TOOL], "thinking": {"type": "disabled"}}
    client.post(PATH, json=body)
    del body["max_tokens"]

    answer = client.post(f"{PATH}/count_tokens", json=body)

    assert answer.json() == {"input_tokens": 7}
    assert asked == [engine.submissions[0].prompt]


def test_a_count_takes_no_settings_of_an_answer(make_client: MakeClient) -> None:
    answer = make_client().post(f"{PATH}/count_tokens", json=BODY)

    assert answer.status_code == 400
    assert "'max_tokens'" in answer.json()["error"]["message"]


def test_an_answer_that_cannot_fit_takes_what_the_context_leaves(make_client: MakeClient) -> None:
    class Engine(FakeEngine):
        async def submit(self, prompt: Any, params: SamplingParams, **fields: Any) -> Any:
            if params.max_tokens is not None:
                raise ContextLengthError(
                    num_prompt_tokens=num_prompt_tokens, max_tokens=params.max_tokens, limit=100
                )
            return await super().submit(prompt, params, **fields)

    engine = Engine()
    client = make_client(engine)

    num_prompt_tokens = 99
    assert client.post(PATH, json=BODY).status_code == 200
    assert engine.submissions[0].params.max_tokens is None

    num_prompt_tokens = 100
    answer = client.post(PATH, json=BODY)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "prompt is too long: 100 tokens > 100 maximum"


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("tiny/model", 200),
        ("tiny", 200),
        ("claude-sonnet-4-5", 200),
        ("gpt", 200),
        ("gpt-4", 404),
        ("my-claude-1", 404),
    ],
)
def test_aliases(make_client: MakeClient, name: str, status: int) -> None:
    client = make_client(aliases=("gpt", "claude-*"))

    answer = client.post(PATH, json={**BODY, "model": name})

    assert answer.status_code == status
    if status == 200:
        assert answer.json()["model"] == "tiny/model"
    assert client.get(f"/v1/models/{name}").status_code == status


def test_a_star_takes_every_name(make_client: MakeClient) -> None:
    client = make_client(FakeEngine(card=make_card()), aliases=("*",))

    assert client.post(PATH, json={**BODY, "model": "any/name[1m]"}).status_code == 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "text", "content", "role", "id", "name", "input", "source"])
            | st.text(max_size=3),
            inner
            | st.sampled_from(["text", "document", "tool_use", "tool_result", "image", "user"]),
            max_size=4,
        )
    ),
    max_leaves=10,
)


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_body_gets_an_answer_in_the_apis_shape(data: st.DataObject) -> None:
    client = TestClient(create_app(FakeEngine(), ServerConfig()), raise_server_exceptions=False)
    names = st.sampled_from(sorted(MessagesRequest.model_fields))
    odd = st.dictionaries(names, JSON, min_size=1, max_size=2)
    blocks = st.lists(JSON, max_size=3)
    turns = st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "assistant", "system"]), "content": blocks | JSON}
        ),
        max_size=3,
    )
    body = {**BODY, **data.draw(odd | turns.map(lambda it: {"messages": it}))}

    answer = client.post(PATH, content=json.dumps(body).encode())

    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        assert set(answer.json()) == {"type", "error", "request_id"}
        assert set(answer.json()["error"]) - {"details"} == {"type", "message"}
