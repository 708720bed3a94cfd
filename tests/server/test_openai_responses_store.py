"""Coming back to stored responses: chains, references, listings, restarts; the store's limits."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import openai
import pytest
from fake_engine import Fail, FakeEngine
from hypothesis import given, settings
from hypothesis import strategies as st
from live_server import serve
from starlette.testclient import TestClient

from pippin.core.errors import ConfigError
from pippin.core.messages import ChatPrompt
from pippin.core.parsing.events import ReasoningDelta, ToolCallDelta, ToolCallEnd, ToolCallStart
from pippin.server import response_store
from pippin.server.app import create_app
from pippin.server.config import ServerConfig
from pippin.server.response_store import ResponseStore, StoredResponse

PATH = "/v1/responses"
CALL = (ToolCallStart(0, "call_1", "f"), ToolCallDelta(0, '{"a":1}'), ToolCallEnd(0))
CALL_2 = (ToolCallStart(1, "call_2", "f"), ToolCallDelta(1, '{"a"'))
CALL_3 = (ToolCallStart(2, "call_3", "f"),)
SCRIPTS = [("Hel", "lo"), (ReasoningDelta("hm"), "ok", *CALL), CALL, (ReasoningDelta("hm"),), ()]
OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "2"}
TURNS = st.lists(
    st.tuples(st.sampled_from(SCRIPTS), st.sampled_from(["go on", "stop", "é"]), st.booleans()),
    min_size=1,
    max_size=4,
)


def make_client(path: Path | None, engine: FakeEngine | None = None) -> TestClient:
    return TestClient(create_app(engine or FakeEngine(), ServerConfig(response_store=path)))


def make(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post(PATH, json={"model": "tiny", "input": "hi", **body})
    assert answer.status_code == 200, answer.text
    if body.get("stream"):
        last = answer.text.split("\n\n")[-2].split("data: ", 1)[1]
        return json.loads(last)["response"]  # type: ignore[no-any-return]
    return answer.json()  # type: ignore[no-any-return]


def prompt_of(engine: FakeEngine) -> ChatPrompt:
    prompt = engine.submissions[-1].prompt
    assert isinstance(prompt, ChatPrompt)
    return prompt


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_broke_off_is_shown_but_not_stored(tmp_path: Path, stream: bool) -> None:
    script = ("ok", *CALL, *CALL_2, "oh", *CALL_3)
    with make_client(tmp_path / "store", engine := FakeEngine(script)) as client:
        made = make(client, stream=stream)
        stored = client.get(f"{PATH}/{made['id']}").json()
        make(client, previous_response_id=made["id"], input=[OUTPUT])

    shown = [(item["type"], item["status"]) for item in made["output"]]
    assert shown == [
        ("message", "completed"),
        ("function_call", "completed"),
        ("function_call", "incomplete"),
        ("message", "completed"),
        ("function_call", "incomplete"),
    ]
    assert made["output"][2]["arguments"] == '{"a"'
    assert made["status"] == "completed"
    assert stored["output"] == [made["output"][index] for index in (0, 1, 3)]
    assert [len(it.tool_calls) for it in prompt_of(engine).messages if it.tool_calls] == [1]


@settings(max_examples=25, deadline=None)
@given(turns=TURNS)
def test_a_chain_renders_as_the_whole_conversation_and_as_references(
    tmp_path_factory: pytest.TempPathFactory, turns: list[tuple[Any, str, bool]]
) -> None:
    engine = FakeEngine()
    client = make_client(tmp_path_factory.getbasetemp() / "chains.sqlite", engine)
    whole: list[dict[str, Any]] = []
    references: list[dict[str, Any]] = []
    previous = None
    for script, text, stream in turns:
        engine.script = script
        calls = [it for it in whole if it.get("type") == "function_call"]
        answered = [it for it in whole if it.get("type") == "function_call_output"]
        given_items = [{"role": "user", "content": text}]
        if len(calls) > len(answered):
            given_items.insert(0, OUTPUT)
        whole += given_items
        references += given_items
        response = make(
            client,
            input=given_items,
            previous_response_id=previous,
            instructions=f"now {text}",
            stream=stream,
        )
        chained = prompt_of(engine)
        for items in (whole, references):
            make(client, input=items, instructions=f"now {text}", store=False)
            assert prompt_of(engine) == chained
        previous = response["id"]
        whole += response["output"]
        references += [{"type": "item_reference", "id": it["id"]} for it in response["output"]]


def test_a_response_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "not" / "yet" / "there.sqlite"
    first = make(make_client(path), input="one", stream=True)

    engine = FakeEngine()
    client = make_client(path, engine)
    assert client.get(f"{PATH}/{first['id']}").json() == first
    assert path.stat().st_mode & 0o777 == 0o600
    make(client, input="two", previous_response_id=first["id"])

    assert [it.text for it in prompt_of(engine).messages] == ["one", "Hello", "two"]


def test_a_failed_stream_is_stored_as_failed(tmp_path: Path) -> None:
    client = make_client(tmp_path / "s", FakeEngine(("Hel", Fail("poisoned row"))))

    failed = make(client, stream=True)

    assert failed["status"] == "failed"
    assert client.get(f"{PATH}/{failed['id']}").json() == failed


def test_the_official_client_retrieves_lists_and_deletes(tmp_path: Path) -> None:
    with (
        serve(FakeEngine(), ServerConfig(port=0, response_store=tmp_path / "s")) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client,
    ):
        first = client.responses.create(model="tiny", input="one")
        second = client.responses.create(
            model="tiny",
            previous_response_id=first.id,
            input=[
                {"role": "user", "content": "two"},
                {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "1", "output": "2"},
            ],
        )
        listed = list(client.responses.input_items.list(second.id, order="asc", limit=2))
        backwards = client.responses.input_items.list(second.id, after=listed[-1].id)
        retrieved = client.responses.retrieve(second.id)
        with pytest.raises(openai.BadRequestError, match="has ended"):
            client.responses.cancel(second.id)
        client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(first.id)
        with pytest.raises(openai.BadRequestError, match="not found"):
            client.responses.create(model="tiny", input="x", previous_response_id=second.id)

    assert retrieved == second
    assert [it.type for it in listed] == [
        *("message", "message", "message", "function_call", "function_call_output"),
    ]
    assert [it.id for it in backwards.data] == [it.id for it in listed[-2::-1]]
    assert len({it.id for it in listed}) == len(listed)


def test_what_is_not_to_be_stored_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s"
    for client, body in ((make_client(path), {"store": False}), (make_client(None), {})):
        response = make(client, **body)
        assert response["store"] is False
        for method, suffix in (("GET", ""), ("DELETE", ""), ("POST", "/cancel")):
            answer = client.request(method, f"{PATH}/{response['id']}{suffix}")
            assert answer.status_code == 404
            assert answer.json()["error"]["code"] == "response_not_found"


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("?stream=true", "stream"),
        ("?nonsense=1", "nonsense"),
        ("/input_items?limit=0", "limit"),
        ("/input_items?limit=x", "limit"),
        ("/input_items?order=up", "order"),
        ("/input_items?after=msg_1", "after"),
    ],
)
def test_queries_are_checked(tmp_path: Path, path: str, param: str) -> None:
    client = make_client(tmp_path / "s")
    answer = client.get(f"{PATH}/{make(client)['id']}{path}")

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def stored(name: str, *, previous: str | None = None, padding: int = 0) -> StoredResponse:
    response = {"id": name, "previous_response_id": previous, "padding": "x" * padding}
    return StoredResponse(response=response, items=[])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [1000.0]
    monkeypatch.setattr(response_store.time, "time", lambda: now[0])  # type: ignore[attr-defined]

    def advance(seconds: float) -> None:
        now[0] += seconds

    return advance


NUM_BYTES = len(json.dumps(asdict(stored("a")), separators=(",", ":")))


@pytest.mark.parametrize("limit", [{"max_responses": 2}, {"max_bytes": 2 * NUM_BYTES}])
def test_the_last_used_stay(
    tmp_path: Path, clock: Callable[[float], None], limit: dict[str, int]
) -> None:
    async def run() -> list[str]:
        store = ResponseStore(tmp_path / "s", **limit)
        for name in "ab":
            store.keep(stored(name))
            await store.delete("wait for the thread")
            clock(1)
        await store.load("a")
        clock(1)
        store.keep(stored("c"))
        return [name for name in "abc" if await store.load(name)]

    assert asyncio.run(run()) == ["a", "c"]


def test_a_response_expires_after_its_last_use(
    tmp_path: Path, clock: Callable[[float], None]
) -> None:
    async def run() -> None:
        store = ResponseStore(tmp_path / "s", ttl_s=10)
        store.keep(stored("a"))
        store.keep(stored("b", previous="a"))
        for _ in range(3):
            clock(6)
            chain = await store.load_chain("b")
            assert chain is not None
            assert [link.response["id"] for link in chain] == ["a", "b"]
        clock(6)
        assert await store.load("b") is not None
        clock(6)
        assert await store.load_chain("b") is None  # its head has gone
        clock(11)
        assert await store.load("b") is None
        assert not await store.delete("nonsense")

    asyncio.run(run())


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes " * 100)

    with pytest.raises(ConfigError, match="response-store"):
        ResponseStore(path)

    assert path.read_text().startswith("my notes")


def test_a_deleted_file_begins_anew_and_a_full_disk_fails_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "s"
    client = make_client(path)
    first = make(client)
    assert client.get(f"{PATH}/{first['id']}").status_code == 200
    for file in tmp_path.iterdir():
        file.unlink()
    assert client.get(f"{PATH}/{first['id']}").status_code == 404
    second = make(client)
    assert client.get(f"{PATH}/{second['id']}").status_code == 200

    def fail(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(sqlite3, "connect", fail)
    assert make(client)["status"] == "completed"
    monkeypatch.undo()
    client.get(f"{PATH}/{second['id']}")  # waits for the store's thread
    assert "response_not_stored" in caplog.text


def test_the_count_is_that_of_the_prompt_that_would_run(tmp_path: Path) -> None:
    engine = FakeEngine()
    tools: Any = [{"type": "function", "name": "f"}]
    with serve(engine, ServerConfig(port=0, response_store=tmp_path / "store")) as live:
        client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)
        first = client.responses.create(model="tiny", input="hi")
        conversation = client.conversations.create(items=[{"role": "user", "content": "é"}]).id
        for fields in (
            {"input": "hi"},
            {"input": [{"role": "user", "content": "x"}], "instructions": "Be kind."},
            {"input": "go on", "previous_response_id": first.id},
            {"input": "and on", "conversation": conversation},
            {"input": "hi", "tools": tools, "tool_choice": "required"},
        ):
            body: Any = {"model": "tiny", **fields}
            # First, since what is answered joins the conversation.
            count = client.responses.input_tokens.count(**body)
            made = client.responses.create(**body)
            assert count.object == "response.input_tokens"
            assert made.usage is not None
            assert count.input_tokens == made.usage.input_tokens

        alone = client.responses.input_tokens.count(previous_response_id=first.id)
        assert alone.input_tokens > 0
        with pytest.raises(openai.BadRequestError, match="personality"):
            client.responses.input_tokens.count(input="hi", personality="friendly")
        with pytest.raises(openai.NotFoundError):
            client.responses.input_tokens.count(input="hi", model="other")
        with pytest.raises(openai.BadRequestError, match="does not compact"):
            client.responses.compact(model="gpt-5", input="hi")
        client.close()
