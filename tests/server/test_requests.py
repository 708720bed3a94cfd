"""Seeing what runs, and cancelling it by the id that the client saw, over real sockets."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine, Hold
from live_server import TIMEOUT_S, posted, read_to_end, read_until, serve

from .conftest import MakeClient

HI = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, object]] = {
    "/v1/chat/completions": {"model": "tiny", "messages": HI, "n": 2},
    "/v1/completions": {"model": "tiny", "prompt": ["one", "two"]},
    "/v1/messages": {"model": "tiny", "messages": HI, "max_tokens": 5},
    "/v1/responses": {"model": "tiny", "input": "hi"},
}


def cancel(url: str, reply_id: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/requests/{reply_id}/cancel")


def listed(url: str) -> list[dict[str, Any]]:
    page = httpx.get(f"{url}/v1/requests").json()
    assert page["object"] == "list"
    data: list[dict[str, Any]] = page["data"]
    return data


@pytest.mark.parametrize("path", BODIES)
def test_a_stream_ends_with_an_error(path: str) -> None:
    engine = FakeEngine(("a", Hold(), "b"))
    with serve(engine) as server:
        with posted(server.port, path, {**BODIES[path], "stream": True}) as connection:
            begun = read_until(connection, b'"a"')
            found = re.search(r'"id":"((?:chatcmpl-|cmpl-|msg_|resp_)\w+)"', begun.decode())
            assert found is not None

            first, second = cancel(server.url, found[1]), cancel(server.url, "chatcmpl")
            engine.release()
            rest = read_to_end(connection)
        server.wait_idle()
        third = cancel(server.url, found[1])

    assert first.json() == {"id": found[1], "object": "request", "cancelled": True}
    assert all(it.generation.num_aborts for it in engine.submissions)
    # A response has a status for it.
    mark = b'"status":"cancelled"' if "responses" in path else b"The request was cancelled."
    assert mark in rest
    assert b"[DONE]" not in rest
    for answer, unknown in ((second, "chatcmpl"), (third, found[1])):
        assert answer.status_code == 404
        assert answer.json()["error"] == {
            "message": f"No request '{unknown}' is running.",
            "type": "invalid_request_error",
            "param": None,
            "code": "request_not_found",
        }


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_whole_reply_becomes_an_error(path: str) -> None:
    engine = FakeEngine(("a", Hold(), "b"))
    with serve(engine) as server, posted(server.port, path, BODIES[path]) as connection:
        assert engine.holding.wait(TIMEOUT_S)

        cancel(server.url, engine.submissions[0].request_id)
        engine.release()
        answer = read_to_end(connection)

    assert answer.startswith(b"HTTP/1.1 499")
    assert b"The request was cancelled." in answer


def test_only_the_one_is_cancelled() -> None:
    engine = FakeEngine(("a", Hold(), "b"))
    body = {**BODIES["/v1/completions"], "stream": True}
    with (
        serve(engine) as server,
        posted(server.port, "/v1/completions", body) as staying,
        posted(server.port, "/v1/completions", body) as leaving,
    ):
        read_until(staying, b'"a"')
        found = re.search(r"cmpl-\w+", read_until(leaving, b'"a"').decode())
        assert found is not None

        cancel(server.url, found[0])
        engine.release()

        assert b"[DONE]" in read_to_end(staying)
        assert b"[DONE]" not in read_to_end(leaving)


def test_what_holds_up_a_drain_is_seen_and_can_be_cancelled() -> None:
    engine = FakeEngine((Hold(), "b"))
    path = "/v1/chat/completions"
    with serve(engine) as server, posted(server.port, path, BODIES[path]):
        assert engine.holding.wait(TIMEOUT_S)
        server.begin_drain()

        (shown,) = listed(server.url)
        answer = cancel(server.url, shown["id"])
        engine.release()

        assert answer.status_code == 200
        server.wait_idle()


@pytest.mark.parametrize("path", [*BODIES, "/api/chat"])
def test_what_runs_is_listed(path: str) -> None:
    engine = FakeEngine(("a", "b", "c", Hold()))
    engine.num_cached_tokens = 2
    body = BODIES.get(path, {"model": "tiny", "messages": HI})
    with serve(engine) as server:
        with posted(server.port, path, body):
            assert engine.holding.wait(TIMEOUT_S)
            (shown,) = listed(server.url)
            engine.release()
        server.wait_idle()
        left = listed(server.url)

    assert left == []
    num_prompts = len(engine.submissions)
    num_answers = num_prompts * engine.submissions[0].num_sequences
    assert shown["endpoint"] == path
    assert engine.submissions[0].request_id.startswith(shown["id"])
    assert shown["state"] == "answering"
    assert shown["prompt_tokens"] == sum(
        len(it.generation.prompt_token_ids) for it in engine.submissions
    )
    assert shown["cached_tokens"] == 2 * num_prompts
    assert shown["output_tokens"] == 3 * num_answers
    assert 0 <= shown["ttft_s"] <= shown["age_s"]
    assert shown["output_tokens_per_s"] > 0


def test_what_has_no_token_yet_is_listed_as_such() -> None:
    engine = FakeEngine((Hold(),))
    path = "/v1/chat/completions"
    with serve(engine) as server, posted(server.port, path, BODIES[path]):
        assert engine.holding.wait(TIMEOUT_S)
        (shown,) = listed(server.url)
        engine.release()

    assert (shown["state"], shown["output_tokens"]) == ("starting", 0)
    assert shown["cached_tokens"] is shown["ttft_s"] is shown["output_tokens_per_s"] is None


def test_the_list_needs_a_key(make_client: MakeClient) -> None:
    assert make_client(api_keys=("one",)).get("/v1/requests").status_code == 401


def test_a_chat_can_be_rendered_without_an_answer(make_client: MakeClient) -> None:
    engine = FakeEngine()
    client = make_client(engine)

    answer = client.post("/apply-template", json={"messages": HI, "temperature": 0.5})
    strange = client.post("/apply-template", json={"messages": HI, "model": "other"})

    assert answer.json() == {"prompt": "user: hi\n"}
    assert strange.status_code == 404
    assert not engine.submissions


def test_props_are_where_clients_of_llama_server_look(make_client: MakeClient) -> None:
    props = make_client().get("/props").json()

    assert props["default_generation_settings"]["n_ctx"] == 4096
    assert props["model_alias"] == "tiny/model"
    assert {"total_slots", "chat_template", "modalities", "model_path"} < set(props)
