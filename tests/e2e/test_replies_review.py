"""What a review of the text APIs found, through the whole server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import serve
from scripted_model import write_scripted_model

from pippin.core.config import CacheConfig, EngineConfig, Speculation
from pippin.core.engine import reply_dialect
from pippin.core.engine.async_engine import AsyncEngine
from pippin.server.config import ServerConfig

CALL = '<tool_call>\n{"name": "look", "arguments": {"city": "Rome"}}\n</tool_call>'
THOUGHT = "<think>\nIt is a greeting, so I greet, and greet, and greet.\n</think>\n\nGood day!"
SCRIPTS = {
    "look": f"<think>\nI must look.\n</think>\n\nWait. {CALL}",
    "greet": THOUGHT,
    "again": "Well. <think>\nand again and again and again and again</think> Hello.",
    "sunny": "It is sunny.",
    "halves": CALL.replace("Rome", r"\ud800"),
    "broken": '<tool_call>\n{"name": "look", "arguments": {"ci',
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}},
    "required": ["city"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
BAD: dict[str, Any] = {"type": "json_schema", "schema": {"type": "nothing"}}
BAD_FORM = {"type": "json_schema", "json_schema": {"name": "s", "schema": BAD["schema"]}}
FUNCTION: dict[str, Any] = {"name": "look", "parameters": SCHEMA}
TOOL = {"type": "function", "function": FUNCTION}
STRICT_TOOL = {"type": "function", "function": {**FUNCTION, "strict": True}}
FLAT_TOOL = {"type": "function", **FUNCTION}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scripted_model(
        tmp_path_factory.mktemp("review"),
        SCRIPTS,
        tokens=("<tool_call>", "</tool_call>"),
        special_tokens=("<think>", "</think>"),
    )


@contextmanager
def serving(folder: Path, store: Path | None = None, **config: Any) -> Iterator[httpx.Client]:
    cache = CacheConfig(max_bytes=16 << 20)
    settings = EngineConfig(cache=cache, max_model_len=4096, reasoning_parser="think", **config)
    engine = AsyncEngine.start(str(folder), settings, served_model_name="scripted")
    try:
        with (
            serve(engine, ServerConfig(port=0, response_store=store)) as live,
            httpx.Client(base_url=live.url, timeout=20) as client,
        ):
            yield client
    finally:
        engine.close()


@pytest.fixture(scope="module")
def client(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with serving(folder, tmp_path_factory.mktemp("store") / "responses.sqlite") as made:
        yield made


def ask(client: httpx.Client, path: str, **fields: Any) -> Any:
    reply = client.post(path, json={"model": "scripted", **fields})
    assert reply.status_code == 200, reply.text
    return reply.json()


def chat(client: httpx.Client, text: str, **fields: Any) -> Any:
    fields = {"messages": [{"role": "user", "content": text}], "max_tokens": 200} | fields
    return ask(client, "/v1/chat/completions", temperature=0, **fields)


def message_of(reply: Any) -> Any:
    return reply["choices"][0]["message"]


def num_reasoning_tokens(reply: Any) -> int:
    return int(reply["usage"]["completion_tokens_details"]["reasoning_tokens"])


def test_a_broken_call_streams_as_it_is_told_whole(client: httpx.Client) -> None:
    body = {"model": "scripted", "messages": [{"role": "user", "content": "broken"}]}
    text = client.post("/v1/chat/completions", json={**body, "tools": [TOOL], "stream": True}).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    has_call = any("tool_calls" in delta for delta in deltas)
    content = "".join(delta.get("content") or "" for delta in deltas)
    message = message_of(chat(client, "broken", tools=[TOOL]))

    assert has_call == bool(message.get("tool_calls"))
    assert content == (message["content"] or "")


def test_a_broken_call_is_no_tool_use(client: httpx.Client) -> None:
    reply = ask(
        client,
        "/v1/messages",
        max_tokens=100,
        messages=[{"role": "user", "content": "broken"}],
        tools=[{"name": "look", "input_schema": SCHEMA}],
    )
    assert [block["type"] for block in reply["content"]] in (["text"], ["tool_use"])


def test_a_response_whose_call_broke_off_can_be_followed(client: httpx.Client) -> None:
    first = ask(client, "/v1/responses", input="broken", tools=[FLAT_TOOL])
    statuses = [item["status"] for item in first["output"] if item["type"] == "function_call"]
    assert "completed" not in statuses
    ask(client, "/v1/responses", input="sunny", previous_response_id=first["id"])


@pytest.mark.parametrize("stop", ["must", "Rome", '"name"', "\n"])
def test_a_stop_string_is_looked_for_in_content_only(client: httpx.Client, stop: str) -> None:
    reply = chat(client, "look", tools=[TOOL], stop=[stop])
    (call,) = message_of(reply).get("tool_calls") or [None]
    assert call is not None
    assert json.loads(call["function"]["arguments"]) == {"city": "Rome"}


def test_talk_about_a_marker_opens_no_reasoning(client: httpx.Client) -> None:
    reply = chat(
        client,
        "",
        messages=[
            {"role": "user", "content": "What does <think> mean?"},
            {"role": "assistant", "content": "It means"},
        ],
        continue_final_message=True,
        ignore_eos=True,
        max_tokens=4,
    )
    assert num_reasoning_tokens(reply) == 0


def test_a_budget_holds_for_reasoning_that_begins_late(client: httpx.Client) -> None:
    assert num_reasoning_tokens(chat(client, "again", thinking_token_budget=3)) <= 6


def test_no_effort_means_no_reasoning(client: httpx.Client) -> None:
    assert num_reasoning_tokens(chat(client, "greet", reasoning_effort="none")) <= 2


def test_logprobs_of_a_response_are_of_its_text(client: httpx.Client) -> None:
    reply = ask(client, "/v1/responses", input="greet", include=["message.output_text.logprobs"])
    part = reply["output"][-1]["content"][0]
    assert "".join(entry["token"] for entry in part["logprobs"]) == part["text"]


def test_logprobs_of_a_chat_are_of_its_content(client: httpx.Client) -> None:
    for text in ("greet", "look"):
        (choice,) = chat(client, text, tools=[TOOL], logprobs=True)["choices"]
        spelled = "".join(entry["token"] for entry in choice["logprobs"]["content"])
        assert spelled == choice["message"]["content"]


def test_half_of_a_surrogate_pair_leaves_as_text_in_every_api(client: httpx.Client) -> None:
    messages = [{"role": "user", "content": "halves"}]
    body = {"model": "scripted", "temperature": 0, "messages": messages}
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {**body, "tools": [TOOL]},
        "/v1/messages": {
            **body,
            "max_tokens": 200,
            "tools": [{"name": "look", "input_schema": SCHEMA}],
        },
        "/v1/responses": {"model": "scripted", "input": messages, "tools": [FLAT_TOOL]},
        "/api/chat": {"model": "scripted", "messages": messages, "tools": [TOOL]},
    }
    for path, fields in bodies.items():
        for stream in (False, True):
            reply = client.post(path, json={**fields, "stream": stream})
            assert reply.status_code == 200, path
            text = reply.content.decode("utf-8")
            assert "ufffd" in text or "\ufffd" in text, path
            assert "ud800" not in text, path
            assert "server_error" not in text, path


def test_a_grammar_without_an_end_is_the_callers_error(client: httpx.Client) -> None:
    body = {
        "model": "scripted",
        "messages": [{"role": "user", "content": "sunny"}],
        "structured_outputs": {"grammar": 'start: "a" start'},
        "thinking_token_budget": 0,
    }
    assert client.post("/v1/chat/completions", json=body).status_code == 400


def test_a_call_of_the_history_may_have_no_arguments(client: httpx.Client) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "look", "arguments": ""}}
    messages = [
        {"role": "user", "content": "look"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "sunny"},
    ]
    assert message_of(chat(client, "", messages=messages))["content"] == "It is sunny."


def test_a_call_that_broke_off_can_be_answered(client: httpx.Client) -> None:
    first = message_of(chat(client, "broken", tools=[TOOL]))
    (call,) = first["tool_calls"]
    messages = [
        {"role": "user", "content": "broken"},
        first,
        {"role": "tool", "tool_call_id": call["id"], "content": "no JSON. Say it is sunny"},
    ]
    second = ask(client, "/v1/chat/completions", messages=messages, tools=[TOOL])
    assert message_of(second)["role"] == "assistant"


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/chat/completions", {"response_format": BAD_FORM}, "response_format"),
        ("/v1/responses", {"text": {"format": {**BAD, "name": "s"}}}, "text.format"),
        ("/v1/messages", {"output_config": {"format": BAD}}, "output_config.format"),
        ("/api/chat", {"format": BAD["schema"]}, "format"),
    ],
)
def test_a_schema_that_is_none_is_refused_by_the_apis_name(
    client: httpx.Client, path: str, fields: dict[str, Any], param: str
) -> None:
    messages = [{"role": "user", "content": "sunny"}]
    body: dict[str, Any] = {"model": "scripted", "messages": messages}
    if path == "/v1/responses":
        body = {"model": "scripted", "input": "sunny"}
    if path == "/v1/messages":
        body["max_tokens"] = 5
    reply = client.post(path, json={**body, **fields})
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    told = error if isinstance(error, str) else error["message"]
    assert told.startswith(f"{param} cannot be followed")


@pytest.mark.parametrize("name", ['a"b', "x%ay", "ä ö"])
def test_a_tool_of_anthropic_has_a_name_that_calls_can_spell(
    client: httpx.Client, name: str
) -> None:
    body = {
        "model": "scripted",
        "max_tokens": 50,
        "messages": [{"role": "user", "content": "sunny"}],
        "tools": [{"name": name, "input_schema": {"type": "object"}}],
    }
    assert client.post("/v1/messages", json=body).status_code == 400


def test_speculation_changes_neither_the_count_of_reasoning_nor_logprobs(
    client: httpx.Client, folder: Path
) -> None:
    prompt = f"{THOUGHT} greet"
    with serving(folder, speculation=Speculation.NGRAM) as guessing:
        plain, guessed = (chat(it, prompt, logprobs=True) for it in (client, guessing))
    assert num_reasoning_tokens(plain) == num_reasoning_tokens(guessed) > 0
    tokens = [
        [entry["token"] for entry in it["choices"][0]["logprobs"]["content"]]
        for it in (plain, guessed)
    ]
    assert tokens[0] == tokens[1]
    assert "".join(tokens[0]) == message_of(plain)["content"]


def test_what_cannot_be_enforced_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply_dialect, "TOOL_GRAMMARS", {})
    body = {"model": "scripted", "messages": [{"role": "user", "content": "sunny"}]}
    with serving(folder, tool_call_parser="gemma4") as client:
        replies = [
            client.post("/v1/chat/completions", json={**body, **fields})
            for fields in (
                {"tools": [STRICT_TOOL]},
                {"tools": [TOOL], "parallel_tool_calls": False},
            )
        ]
    assert [reply.status_code for reply in replies] == [400, 400]


def test_strict_holds_in_dialects_with_tags(folder: Path) -> None:
    function = {
        "name": "look",
        "strict": True,
        "parameters": {"anyOf": [{"type": "object", **SCHEMA}]},
    }
    with serving(folder, tool_call_parser="qwen3_coder") as client:
        reply = client.post(
            "/v1/chat/completions",
            json={
                "model": "scripted",
                "messages": [{"role": "user", "content": "sunny"}],
                "temperature": 0,
                "max_tokens": 150,
                "tools": [{"type": "function", "function": function}],
                "tool_choice": "required",
                "thinking_token_budget": 2,
            },
        )
    if reply.status_code == 400:
        return  # cannot be honoured, and says so
    calls = message_of(reply.json()).get("tool_calls") or []
    assert all("city" in json.loads(call["function"]["arguments"]) for call in calls)
