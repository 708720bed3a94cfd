"""Conversations: their own routes, responses that continue them, and what is refused."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest
from fake_engine import Fail, FakeEngine, Hold
from hypothesis import given, settings
from hypothesis import strategies as st
from live_server import posted, read_to_end, serve
from openai.types.conversations import (
    Conversation,
    ConversationDeletedResource,
    ConversationItem,
    ConversationItemList,
)
from openai.types.responses import Response
from pydantic import TypeAdapter
from starlette.testclient import TestClient

from pippin.core.request import FinishReason
from pippin.server.config import ServerConfig
from pippin.server.response_store import ResponseStore, StoredConversation, StoredResponse

from .test_openai_responses_store import (
    CALL,
    OUTPUT,
    TURNS,
    make,
    make_client,
    prompt_of,
)
from .test_openai_responses_stream import check_strictly

PATH = "/v1/conversations"
USER = {"role": "user", "content": "x"}
ITEM: TypeAdapter[Any] = TypeAdapter(ConversationItem)


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    return make_client(tmp_path / "s")


def begin(client: TestClient, **body: Any) -> str:
    answer = client.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    check_strictly(Conversation.model_validate(answer.json()))
    return answer.json()["id"]  # type: ignore[no-any-return]


def items_of(client: TestClient, conversation_id: str) -> list[dict[str, Any]]:
    answer = client.get(f"{PATH}/{conversation_id}/items?order=asc&limit=100")
    assert answer.status_code == 200, answer.text
    check_strictly(ConversationItemList.model_validate(answer.json()))
    for item in answer.json()["data"]:
        check_strictly(ITEM.validate_python(item))
    return answer.json()["data"]  # type: ignore[no-any-return]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def texts_of(items: list[dict[str, Any]]) -> list[str]:
    return [item["content"][0]["text"] for item in items]


@settings(max_examples=20, deadline=None)
@given(turns=TURNS)
def test_a_conversation_renders_as_its_items_sent_at_once(
    tmp_path_factory: pytest.TempPathFactory, turns: list[tuple[Any, str, bool]]
) -> None:
    engine = FakeEngine()
    client = make_client(tmp_path_factory.getbasetemp() / "conversations.sqlite", engine)
    whole: list[dict[str, Any]] = [{"role": "developer", "content": "rule"}]
    conversation_id = begin(client, items=whole)
    for script, text, stream in turns:
        engine.script = script
        kinds = [it.get("type") for it in whole]
        new: list[dict[str, Any]] = [{**USER, "content": text}]
        if kinds.count("function_call") > kinds.count("function_call_output"):
            # On its own, as a client that runs functions elsewhere would add it.
            answer = client.post(f"{PATH}/{conversation_id}/items", json={"items": [OUTPUT]})
            check_strictly(ConversationItemList.model_validate(answer.json()))
            whole.append(OUTPUT)
        whole += new
        response = make(client, input=new, conversation=conversation_id, stream=stream)
        check_strictly(Response.model_validate(response))
        assert response["conversation"] == {"id": conversation_id}
        continued = prompt_of(engine)
        make(client, input=whole, store=False)
        assert prompt_of(engine) == continued
        whole += response["output"]
    items = items_of(client, conversation_id)
    assert [it["type"] for it in items] == [it.get("type", "message") for it in whole]
    assert len({it["id"] for it in items}) == len(items)


def test_the_official_client_does_all_that_it_can(tmp_path: Path) -> None:
    with (
        serve(FakeEngine(), ServerConfig(port=0, response_store=tmp_path / "s")) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client,
    ):
        api = client.conversations
        empty = api.create()
        conversation = api.create(metadata={"a": "1"}, items=[{"role": "user", "content": "one"}])
        added = api.items.create(
            conversation.id,
            items=[
                {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "1", "output": "2"},
            ],
        )
        response = client.responses.create(
            model="tiny", input="two", conversation={"id": conversation.id}
        )
        forwards = list(api.items.list(conversation.id, order="asc", limit=2))
        backwards = list(api.items.list(conversation.id, limit=2))
        shown = api.items.retrieve(forwards[1].id or "", conversation_id=conversation.id)
        less = api.items.delete(forwards[0].id or "", conversation_id=conversation.id)
        left = api.items.list(conversation.id, order="asc")
        changed = api.update(conversation.id, metadata={"b": "2"})
        retrieved = api.retrieve(conversation.id)
        deleted = api.delete(conversation.id)
        with pytest.raises(openai.NotFoundError, match=conversation.id):
            api.retrieve(conversation.id)

    assert empty.metadata == {}
    assert [it.type for it in forwards] == [
        *("message", "function_call", "function_call_output", "message", "message"),
    ]
    assert backwards == forwards[::-1]
    assert added.data == forwards[1:3]
    assert shown == forwards[1]
    assert less == conversation
    assert left.data == forwards[1:]
    assert changed == retrieved == conversation.model_copy(update={"metadata": {"b": "2"}})
    assert response.conversation is not None
    assert response.conversation.id == conversation.id
    check_strictly(ConversationDeletedResource.model_validate(deleted.model_dump()))
    assert deleted.id == conversation.id


@pytest.mark.parametrize("stream", [False, True])
def test_two_responses_at_once_are_each_added_whole(tmp_path: Path, stream: bool) -> None:
    engine = FakeEngine(("A", Hold(), "B"))
    with (
        serve(engine, ServerConfig(port=0, response_store=tmp_path / "s")) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client,
    ):
        conversation = client.conversations.create().id
        body = {"model": "tiny", "conversation": conversation, "stream": stream}
        with (
            posted(server.port, "/v1/responses", {**body, "input": "one"}) as first,
            posted(server.port, "/v1/responses", {**body, "input": "two"}) as second,
        ):
            wait_for(lambda: len(engine.submissions) == 2)
            assert not list(client.conversations.items.list(conversation))
            engine.release()
            assert b"completed" in read_to_end(first)
            assert b"completed" in read_to_end(second)
        items: Any = list(client.conversations.items.list(conversation, order="asc"))

    texts = [item.content[0].text for item in items]
    assert texts in (["one", "AB", "two", "AB"], ["two", "AB", "one", "AB"])


def test_servers_that_share_a_file_lose_nothing(tmp_path: Path) -> None:
    def add(name: str) -> None:
        async def run() -> None:
            store = ResponseStore(tmp_path / "s")
            for index in range(20):
                item = {"id": f"{name}{index}"}
                await store.load_conversation(
                    "conv_1", partial(StoredConversation.with_more, items=[item])
                )

        asyncio.run(run())

    async def run() -> StoredConversation | None:
        store = ResponseStore(tmp_path / "s")
        await store.save(StoredConversation(conversation={"id": "conv_1"}, items=[]))
        with ThreadPoolExecutor() as threads:
            list(threads.map(add, "abc"))
        return await store.load_conversation("conv_1")

    stored = asyncio.run(run())
    assert stored is not None
    ids = [item["id"] for item in stored.items]
    assert sorted(ids) == sorted(f"{name}{index}" for name in "abc" for index in range(20))


@pytest.mark.parametrize(
    ("script", "finish", "body", "added"),
    [
        (("ok",), FinishReason.STOP, {"store": False}, ["x", "ok"]),
        (("cut",), FinishReason.LENGTH, {}, ["x", "cut"]),
        (("some", Fail("poisoned row")), FinishReason.STOP, {"stream": True}, []),
    ],
)
def test_only_answers_that_ended_well_are_added(
    tmp_path: Path, script: Any, finish: FinishReason, body: dict[str, Any], added: list[str]
) -> None:
    client = make_client(tmp_path / "s", FakeEngine(script, finish_reason=finish))
    conversation_id = begin(client)

    response = make(client, input="x", conversation=conversation_id, **body)

    assert texts_of(items_of(client, conversation_id)) == added
    stored = client.get(f"/v1/responses/{response['id']}")
    assert stored.status_code == (404 if body.get("store") is False else 200)


def test_ids_that_callers_choose_are_not_kept(client: TestClient) -> None:
    item = {**USER, "id": "msg_1", "type": "message"}
    conversation_id = begin(client, items=[item, item])
    client.post(f"{PATH}/{conversation_id}/items", json={"items": [item]})
    response = make(client, input=[item], conversation=conversation_id)

    ids = [it["id"] for it in items_of(client, conversation_id)]
    listed = client.get(f"/v1/responses/{response['id']}/input_items").json()["data"]

    assert len(set(ids) - {"msg_1"}) == len(ids) == 5
    assert [it["id"] for it in (*listed, *response["output"])] == ids[-2:]


def test_a_reference_puts_a_copy_into_a_conversation(client: TestClient) -> None:
    said = make(client)["output"][0]
    conversation_id = begin(client, items=[{"type": "item_reference", "id": said["id"]}])

    [copy] = items_of(client, conversation_id)

    assert copy == {**said, "id": copy["id"]}
    assert copy["id"] != said["id"]


def test_a_conversation_survives_a_restart_but_not_its_deletion(tmp_path: Path) -> None:
    engine = FakeEngine((Hold(), "late"))
    conversation_id = begin(make_client(tmp_path / "s"), items=[USER])
    with serve(engine, ServerConfig(port=0, response_store=tmp_path / "s")) as server:
        body = {"model": "tiny", "input": "y", "conversation": conversation_id, "stream": True}
        with posted(server.port, "/v1/responses", body) as connection:
            assert engine.holding.wait(10)
            client = make_client(tmp_path / "s")
            assert texts_of(items_of(client, conversation_id)) == ["x"]
            client.delete(f"{PATH}/{conversation_id}")
            engine.release()
            assert b"response.completed" in read_to_end(connection)

    assert client.get(f"{PATH}/{conversation_id}").status_code == 404


ROUTES: list[tuple[str, str, object]] = [
    ("GET", "{}", None),
    ("POST", "{}", {"metadata": {}}),
    ("DELETE", "{}", None),
    ("GET", "{}/items", None),
    ("POST", "{}/items", {"items": [USER]}),
    ("GET", "{}/items/msg_1", None),
    ("DELETE", "{}/items/msg_1", None),
]


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
def test_what_is_not_there_is_not_found(
    client: TestClient, method: str, path: str, body: object
) -> None:
    response, conversation_id = make(client), begin(client)
    codes = [
        ("conv_1", "conversation_not_found"),
        (response["id"], "conversation_not_found"),
        *([(conversation_id, "item_not_found")] if "msg_1" in path else []),
    ]
    for name, code in codes:
        answer = client.request(method, f"{PATH}/{path.format(name)}", json=body)
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == code
        assert answer.json()["error"]["type"] == "invalid_request_error"
    assert client.get(f"/v1/responses/{response['id']}").json() == response


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_conversation_is_no_response(client: TestClient, method: str) -> None:
    conversation_id = begin(client)

    answer = client.request(method, f"/v1/responses/{conversation_id}")

    assert answer.json()["error"]["code"] == "response_not_found"
    assert client.get(f"{PATH}/{conversation_id}").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", PATH, {}),
        *[(method, f"{PATH}/{path.format('conv_1')}", body) for method, path, body in ROUTES],
        *[
            ("POST", "/v1/responses", {"model": "tiny", "input": "x", "conversation": named})
            for named in ("conv_1", {"id": "conv_1"})
        ],
    ],
)
def test_without_a_store_all_of_it_is_refused_by_name(method: str, path: str, body: object) -> None:
    answer = make_client(None).request(method, path, json=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "unsupported_value"
    assert answer.json()["error"]["param"] == "conversation"


def test_responses_refuse_what_they_cannot_continue(client: TestClient) -> None:
    conversation_id = begin(client)
    inside = make(client, conversation=conversation_id)["id"]
    for changes, status, param in (
        ({"conversation": "conv_1"}, 404, None),
        ({"conversation": inside}, 404, None),
        ({"conversation": {"id": conversation_id, "x": 1}}, 400, "conversation.x"),
        ({"conversation": conversation_id, "previous_response_id": inside}, 400, "conversation"),
        ({"previous_response_id": inside}, 400, "previous_response_id"),
        ({"previous_response_id": conversation_id}, 400, "previous_response_id"),
        ({"conversation": conversation_id, "input": [OUTPUT]}, 400, "input.0.call_id"),
    ):
        answer = client.post("/v1/responses", json={"model": "tiny", "input": "x", **changes})
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    assert len(items_of(client, conversation_id)) == 2


def test_a_result_without_its_call_stops_responses_until_it_goes_too(tmp_path: Path) -> None:
    client = make_client(tmp_path / "s", FakeEngine(CALL))
    conversation_id = begin(client, items=[USER])
    make(client, conversation=conversation_id)
    client.post(f"{PATH}/{conversation_id}/items", json={"items": [OUTPUT]})
    call, result = items_of(client, conversation_id)[-2:]
    body = {"model": "tiny", "input": "x", "conversation": conversation_id}

    client.delete(f"{PATH}/{conversation_id}/items/{call['id']}")
    refused = client.post("/v1/responses", json=body)
    client.delete(f"{PATH}/{conversation_id}/items/{result['id']}")

    assert refused.json()["error"]["param"] == "conversation.call_id"
    assert client.post("/v1/responses", json=body).status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"items": [USER, {**USER, "content": [{"type": "input_image"}]}]}, "items.1.content.0"),
        ({"items": [OUTPUT]}, "items.0.call_id"),
        ({"items": [{"type": "web_search_call"}]}, "items.0.type"),
        ({"items": [{"type": "item_reference", "id": "msg_1"}]}, "items.0.id"),
        ({"items": [{"type": "reasoning", "encrypted_content": "g"}]}, "items.0.encrypted_content"),
        ({"items": [USER], "nonsense": 1}, "nonsense"),
    ],
)
def test_items_that_no_prompt_can_hold_are_refused(
    client: TestClient, body: dict[str, Any], param: str
) -> None:
    conversation_id = begin(client)

    for path in (PATH, f"{PATH}/{conversation_id}/items"):
        answer = client.post(path, json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"].startswith(param)

    assert items_of(client, conversation_id) == []


@pytest.mark.parametrize(
    ("path", "param"),
    [
        *(("?x=1", "x"), ("/items?include=a", "include"), ("/items?order=up", "order")),
        *(("/items?limit=101", "limit"), (f"/items?limit=1{'0' * 5000}", "limit")),
        *(("/items?after=msg_1", "after"), ("/items/msg_1?include=a", "include")),
    ],
)
def test_queries_are_checked(client: TestClient, path: str, param: str) -> None:
    answer = client.get(f"{PATH}/{begin(client)}{path}")

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_conversations_and_responses_share_the_limits(tmp_path: Path) -> None:
    async def run() -> tuple[object, ...]:
        store = ResponseStore(tmp_path / "s", max_responses=2)
        response = {"id": "resp_1", "previous_response_id": None}
        await store.save(StoredConversation(conversation={"id": "conv_1"}, items=[]))
        store.keep(StoredResponse(response=response, items=[]))
        store.keep_items("conv_1", [{"id": "msg_1"}])
        await store.save(StoredConversation(conversation={"id": "conv_2"}, items=[]))
        first = await store.load_conversation("conv_1")
        return first, await store.load_conversation("conv_2"), await store.load("resp_1")

    first, second, response = asyncio.run(run())

    assert first == StoredConversation(conversation={"id": "conv_1"}, items=[{"id": "msg_1"}])
    assert second is not None
    assert response is None


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Any], Any]:
    client = make_client(tmp_path_factory.mktemp("fuzz") / "s")
    conversation_id = begin(client)

    def post(path: str, body: Any) -> Any:
        # By hand, because JSON has no infinity, but our parser has.
        content = json.dumps(body).replace("Infinity", "1e999")
        return client.post(f"{PATH}{path.format(conversation_id)}", content=content)

    return post


KEYS = st.sampled_from(
    ["items", "metadata", "type", "role", "content", "text", "id", "call_id", "logprobs", "summary"]
)
LEAVES = st.one_of(
    st.none(),
    st.integers(),
    st.floats(),
    st.sampled_from(
        ["message", "user", "output_text", "assistant", "reasoning", "\ud800", "msg_1"]
    ),
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=10,
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.just("assistant")},
    optional={"id": JSON, "status": JSON, "phase": JSON},
) | st.builds(
    lambda logprobs: {
        "role": "assistant",
        "content": [{"type": "output_text", "text": "x", "logprobs": logprobs}],
    },
    JSON,
)
BODIES = st.dictionaries(KEYS, JSON, max_size=3) | st.builds(
    lambda items: {"items": items}, st.lists(MESSAGES | JSON, max_size=2)
)


@settings(max_examples=100, deadline=None)
@given(path=st.sampled_from(["", "/{}", "/{}/items"]), body=BODIES)
def test_any_body_gets_an_answer(
    fuzzed: Callable[[str, Any], Any], path: str, body: dict[str, Any]
) -> None:
    # A fault of the server's would be raised here by the test client.
    assert fuzzed(path, body).status_code in (200, 400)
