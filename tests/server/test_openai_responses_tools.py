"""Tools of Responses that are not plain functions: namespaces, custom tools, searching the web."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine, Step
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from pippin.core.messages import ChatPrompt, ToolCall
from pippin.core.parsing.events import ToolCallDelta, ToolCallEnd, ToolCallStart
from pippin.core.reply_rules import ToolChoice
from pippin.server.adapters.openai_responses_tools import to_arguments, to_input

from .conftest import MakeClient
from .test_openai_responses_stream import check_strictly, events_of

PATH = "/v1/responses"
EVENT: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)
OBJECT = {"type": "object", "properties": {}}
FIND = {"type": "function", "name": "find", "description": "Finds.", "parameters": OBJECT}
SHOWN_FIND = {**FIND, "strict": False}
PATCH = {"type": "custom", "name": "patch", "description": "Patches."}
CRM = {"type": "namespace", "name": "crm", "description": "Customers.", "tools": [FIND, PATCH]}
SEARCH = {"type": "web_search", "external_web_access": False, "filters": {"anything": 1}}


def _ask(
    make_client: MakeClient, script: Sequence[Step] = ("x",), **fields: Any
) -> tuple[Any, FakeEngine]:
    engine = FakeEngine(script)
    body = {"model": "tiny", "input": "x", **fields}
    return make_client(engine).post(PATH, json=body), engine


def _offered(engine: FakeEngine) -> dict[str, tuple[str | None, Any]]:
    prompt = engine.submissions[-1].prompt
    assert isinstance(prompt, ChatPrompt)
    return {tool.name: (tool.description, tool.parameters) for tool in prompt.tools}


def _call(name: str, *arguments: str, end: bool = True) -> list[Step]:
    deltas = [ToolCallDelta(0, part) for part in arguments]
    return [ToolCallStart(0, "call_1", name), *deltas, *([ToolCallEnd(0)] if end else [])]


def test_what_the_model_knows(make_client: MakeClient) -> None:
    answer, engine = _ask(make_client, tools=[FIND, PATCH, CRM, SEARCH])

    text = {
        "type": "object",
        "properties": {"input": {"type": "string"}},
        "required": ["input"],
        "additionalProperties": False,
    }
    assert _offered(engine) == {
        "find": ("Finds.", OBJECT),
        "patch": ("Patches.", text),
        "crm__find": ("Finds.\ncrm: Customers.", OBJECT),
        "crm__patch": ("Patches.\ncrm: Customers.", text),
    }
    shown_patch = {**PATCH, "format": {"type": "text"}}
    shown_crm = {**CRM, "tools": [SHOWN_FIND, shown_patch]}
    assert answer.json()["tools"] == [SHOWN_FIND, shown_patch, shown_crm]
    check_strictly(Response.model_validate(answer.json()))


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_that_is_left_out_is_named(make_client: MakeClient, stream: bool) -> None:
    answer, engine = _ask(make_client, tools=[FIND, SEARCH], stream=stream)

    assert answer.headers["pippin-warning"] == (
        "tools.1 of type web_search is left out: this server cannot run it"
    )
    assert list(_offered(engine)) == ["find"]
    assert "pippin-warning" not in _ask(make_client, tools=[FIND])[0].headers


def test_a_call_in_a_namespace(make_client: MakeClient) -> None:
    answer, _ = _ask(make_client, _call("crm__find", "{}"), tools=[CRM])

    [item] = answer.json()["output"]
    del item["id"]
    assert item == {
        **{"type": "function_call", "status": "completed", "call_id": "call_1"},
        **{"name": "find", "namespace": "crm", "arguments": "{}"},
    }


def test_a_call_of_a_custom_tool(make_client: MakeClient) -> None:
    script = _call("patch", '{"inp', 'ut": "a\\n\\ud83d', '\\ude00"}')
    streamed, _ = _ask(make_client, script, tools=[PATCH], stream=True)
    answer, _ = _ask(make_client, script, tools=[PATCH])

    events = events_of(streamed.text)
    for event in events:
        check_strictly(EVENT.validate_python(event))
    named = [(it["type"], it.get("delta"), it.get("input")) for it in events[2:-1]]
    name, text = "response.custom_tool_call_input", "a\n\U0001f600"
    assert named == [
        ("response.output_item.added", None, None),
        (f"{name}.delta", text, None),
        (f"{name}.done", None, text),
        ("response.output_item.done", None, None),
    ]
    [item], [whole] = events[-1]["response"]["output"], answer.json()["output"]
    assert item | {"id": ""} == whole | {"id": ""}
    assert (item["type"], item["name"], item["input"]) == ("custom_tool_call", "patch", text)
    assert item["id"].startswith("ctc_")


def test_a_conversation_with_all_of_them(make_client: MakeClient, tmp_path: Path) -> None:
    """As our own answers, sent back, and as they are stored."""
    engine = FakeEngine(_call("crm__patch", '{"input": "p"}'))
    client = make_client(engine, response_store=tmp_path / "r")
    body = {"model": "tiny", "tools": [CRM]}
    first = client.post(PATH, json={**body, "input": "x"}).json()
    output = {"type": "custom_tool_call_output", "call_id": "call_1", "output": "done"}

    call = ToolCall(call_id="call_1", name="crm__patch", arguments={"input": "p"})
    sent = {"input": [{"role": "user", "content": "x"}, *first["output"], output]}
    stored = {"input": [output], "previous_response_id": first["id"]}
    for fields in (sent, stored):
        answer = client.post(PATH, json={**body, **fields})

        assert answer.status_code == 200, answer.text
        prompt = engine.submissions[-1].prompt
        assert isinstance(prompt, ChatPrompt)
        assert prompt.messages[1].tool_calls == (call,)
        assert (prompt.messages[2].role, prompt.messages[2].text) == ("tool", "done")


@pytest.mark.parametrize(
    ("choice", "expected", "offered"),
    [
        ({"type": "custom", "name": "patch"}, ToolChoice("named", "patch"), 4),
        ({"type": "function", "name": "crm__find"}, ToolChoice("named", "crm__find"), 4),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "custom", "name": "patch"}],
            },
            ToolChoice("required"),
            1,
        ),
    ],
)
def test_choices(make_client: MakeClient, choice: Any, expected: ToolChoice, offered: int) -> None:
    _, engine = _ask(make_client, tools=[FIND, PATCH, CRM], tool_choice=choice)

    rules = engine.submissions[-1].rules
    assert rules is not None
    assert rules.tool_choice == expected
    assert len(_offered(engine)) == offered


LARK = {"type": "grammar", "syntax": "lark", "definition": "start: /a/"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{**PATCH, "format": LARK}]}, "tools.0.format.syntax"),
        ({"tools": [{**CRM, "tools": [{**PATCH, "format": LARK}]}]}, "tools.0.tools.0.format.synt"),
        ({"tools": [{**FIND, "name": "crm__find"}, CRM]}, "tools"),
        ({"tools": [{**FIND, "defer_loading": True}]}, "tools.0.defer_loading"),
        ({"tools": [PATCH], "tool_choice": {"type": "function", "name": "patch"}}, "tool_choice"),
        ({"tools": [SEARCH], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [SEARCH], "tool_choice": {"type": "web_search"}}, "tool_choice"),
    ],
)
def test_what_is_refused(make_client: MakeClient, fields: Any, param: str) -> None:
    answer, _ = _ask(make_client, **fields)

    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(param)


def test_an_input_of_a_regex_is_held_to_it(make_client: MakeClient) -> None:
    form = {"type": "grammar", "syntax": "regex", "definition": "a|b"}
    answer, engine = _ask(make_client, tools=[{**PATCH, "format": form}])

    prompt = engine.submissions[-1].prompt
    assert isinstance(prompt, ChatPrompt)
    [tool] = prompt.tools
    assert tool.strict
    assert tool.parameters["properties"]["input"]["pattern"] == "^(?:a|b)$"
    assert answer.json()["tools"][0]["format"] == form


@given(st.text(), st.booleans())
def test_an_input_survives(text: str, is_ascii: bool) -> None:
    assert to_input(json.dumps(to_arguments(text), ensure_ascii=is_ascii)) == text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"input": "ab', "ab"),
        ('{"inp', ""),
        ("", ""),
        ("{}", ""),
        ('{"patch": "a"}', '{"patch": "a"}'),
        ('{"input": 1}', '{"input": 1}'),
        ("[", "["),
        ("plain", "plain"),
    ],
)
def test_what_is_no_input_is_shown_as_it_is(arguments: str, text: str) -> None:
    assert to_input(arguments) == text
