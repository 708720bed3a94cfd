"""What is sent to servers of many kinds, and how their refusals read."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from stub_openai_server import Script, stub_server

from pippin.cli.chat.backend import Delta, End, Settings, Usage
from pippin.cli.chat.remote import ServerBackend
from pippin.core.errors import ConfigError, PippinError

ANSWER = b'data: {"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}]}\n\n'
MESSAGES = [{"role": "user", "content": "hi"}]
Handler = Callable[[httpx.Request], httpx.Response]


def ask(handler: Handler, **settings: Any) -> list[Delta | End]:
    async def run() -> list[Delta | End]:
        client = httpx.AsyncClient(
            transport=httpx.MockTransport(handler), base_url="http://server/v1"
        )
        async with client:
            backend = ServerBackend(client, "m")
            # Twice: what was learned of the server is kept.
            [_ async for _ in backend.ask(MESSAGES, settings)]
            return [event async for event in backend.ask(MESSAGES, settings)]

    return asyncio.run(run())


def connect(url: str, *, key: str | None = None, model: str | None = None) -> ServerBackend:
    async def run() -> ServerBackend:
        backend = await ServerBackend.connect(url, key, model)
        await backend.close()
        return backend

    return asyncio.run(run())


def test_settings_go_out_under_their_names_on_the_wire() -> None:
    bodies: list[dict[str, Any]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        return httpx.Response(200, content=ANSWER)

    settings: Settings = {"temperature": 0.5, "thinking_budget": 9, "thinking": False}
    assert ask(handler, **settings) == [Delta("a"), End("stop", Usage())]
    assert bodies[0] == {
        "model": "m",
        "messages": MESSAGES,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "thinking_token_budget": 9,
        "chat_template_kwargs": {"enable_thinking": False},
    }


def test_a_server_is_asked_again_without_what_it_does_not_know() -> None:
    bodies: list[dict[str, Any]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        for name, reason in (
            ("stream_options", "extra field stream_options"),
            ("max_tokens", "use max_completion_tokens instead"),
        ):
            if name in bodies[-1]:
                return httpx.Response(400, json={"error": {"message": reason}})
        return httpx.Response(200, content=ANSWER)

    ask(handler, max_tokens=5)
    assert len(bodies) == 4
    assert bodies[-1]["max_completion_tokens"] == 5


def test_a_refusal_that_nothing_helps_against_ends() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        text = "stream_options and max_completion_tokens are nothing for me"
        return httpx.Response(422, json={"detail": text})

    with pytest.raises(PippinError, match=r"the server refused it \(422\): stream_options"):
        ask(handler, max_tokens=5)


def test_a_server_that_answers_without_a_stream_is_understood() -> None:
    body = {"choices": [{"message": {"content": "all"}, "finish_reason": "stop"}]}
    assert ask(lambda _: httpx.Response(200, json=body)) == [Delta("all"), End("stop", Usage())]


def test_the_first_listed_model_answers_and_its_length_is_known() -> None:
    with stub_server() as stub:
        listed = [
            {"id": "one", "max_model_len": 99},
            {"id": "two"},
            {"id": "x", "max_model_len": "y"},
        ]
        stub.pages["/v1/models"] = {"data": listed}
        for url in (stub.url, f"{stub.url}/", f"{stub.url}/v1", f"{stub.url}/v1/"):
            backend = connect(url)
            assert (backend.model, backend.max_model_len) == ("one", 99)
        assert backend.known_models() == ("one", "two", "x")
        assert connect(stub.url, model="x").max_model_len is None


def test_a_named_model_needs_no_list() -> None:
    with stub_server() as stub:
        stub.pages.clear()
        assert connect(stub.url, model="m").model == "m"
        with pytest.raises(PippinError, match="refused it"):
            connect(stub.url)
        stub.pages["/v1/models"] = {"data": []}
        with pytest.raises(PippinError, match="lists no model; name one"):
            connect(stub.url)
        stub.pages["/v1/models"] = ["what?"]
        with pytest.raises(PippinError, match="something else than OpenAI's API"):
            connect(stub.url)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", "http://host:port", ""])
def test_what_is_no_address_is_misuse(url: str) -> None:
    with pytest.raises(ConfigError, match="is no address of a server"):
        connect(url)


def test_nobody_there_is_said_with_the_address() -> None:
    with stub_server() as stub:
        url = stub.url
    with pytest.raises(PippinError, match=f"{url}/v1/? cannot be reached"):
        connect(url)


@pytest.mark.parametrize(
    ("script", "text", "said"),
    [
        (Script(num_tokens=4, breaks_after=2), "xx", "broke off"),
        (Script(num_tokens=4, error_after=2), "xx", "the server broke off: the stub broke"),
        (Script(status=500), "", r"the server refused it \(500\): the stub refuses"),
        (Script(status=401), "", "the stub refuses; --api-key gives a key"),
        (Script(body=b"<html>"), "", "something else than an answer"),
    ],
)
def test_what_came_before_a_failure_is_kept(script: Script, text: str, said: str) -> None:
    came: list[Delta | End] = []

    async def run(url: str) -> None:
        backend = await ServerBackend.connect(url, None, None)
        try:
            async for event in backend.ask(MESSAGES, {}):
                came.append(event)
        finally:
            await backend.close()

    with stub_server(script) as stub, pytest.raises(PippinError, match=said):
        asyncio.run(run(stub.url))
    assert "".join(event.text for event in came if isinstance(event, Delta)) == text


def test_tokens_are_counted_where_the_server_can() -> None:
    async def run(handler: Handler) -> int | None:
        transport = httpx.MockTransport(handler)
        async with httpx.AsyncClient(transport=transport, base_url="http://s/v1") as client:
            return await ServerBackend(client, "m").count_tokens(MESSAGES, {})

    seen: list[httpx.Request] = []

    def counts(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"count": 12})

    assert asyncio.run(run(counts)) == 12
    assert seen[0].url == "http://s/tokenize"
    assert json.loads(seen[0].content) == {"model": "m", "messages": MESSAGES}
    for other in (
        httpx.Response(404, json={"count": 1}),
        httpx.Response(200, text="<html>"),
        httpx.Response(200, json=[]),
        httpx.Response(200, json={"count": "many"}),
    ):
        assert asyncio.run(run(lambda _, other=other: other)) is None  # type: ignore[misc]
