"""Streams at the level of ASGI messages, where a test can see each of them."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing

import pytest
from fake_engine import FakeEngine, Hold
from starlette.types import Message

from pippin.core.messages import TextPrompt
from pippin.core.sampling_params import SamplingParams
from pippin.server.app import create_app
from pippin.server.config import ServerConfig
from pippin.server.merge import merge_outputs

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Exchange:
    """One POST. Sent messages queue up in ``sent``; ``leave`` is the caller going away."""

    def __init__(self, engine: FakeEngine, config: ServerConfig, body: dict[str, object]) -> None:
        self.sent: asyncio.Queue[Message] = asyncio.Queue()
        self._received: asyncio.Queue[Message] = asyncio.Queue()
        self._received.put_nowait(
            {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}
        )
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/completions",
            "headers": [],
            "query_string": b"",
        }
        app = create_app(engine, config)
        self.task = asyncio.ensure_future(app(scope, self._received.get, self.sent.put))

    def leave(self) -> None:
        self._received.put_nowait({"type": "http.disconnect"})


BODY: dict[str, object] = {"model": "tiny", "prompt": "x", "stream": True}


async def test_silence_is_filled_with_comments() -> None:
    engine = FakeEngine((Hold(), "a"))
    exchange = Exchange(engine, ServerConfig(sse_keepalive_s=0.001), BODY)

    assert (await exchange.sent.get())["status"] == 200
    async with asyncio.timeout(10):  # less than the library's own interval
        for _ in range(2):
            assert (await exchange.sent.get())["body"] == b": keep-alive\n\n"
    engine.release()
    await exchange.task
    rest = b"".join([exchange.sent.get_nowait()["body"] for _ in range(exchange.sent.qsize())])
    assert b'"text":"a"' in rest
    assert rest.endswith(b"data: [DONE]\n\n")


async def test_no_comments_if_not_wanted() -> None:
    exchange = Exchange(FakeEngine(), ServerConfig(sse_keepalive_s=0), BODY)

    await exchange.task

    sent = [exchange.sent.get_nowait() for _ in range(exchange.sent.qsize())]
    assert not any(b": keep-alive" in message.get("body", b"") for message in sent)


async def test_leaving_before_the_stream_has_begun_aborts() -> None:
    engine = FakeEngine((Hold(), "a"))
    exchange = Exchange(engine, ServerConfig(), BODY)
    exchange.leave()

    await exchange.task

    assert engine.submissions[0].generation.num_aborts


@pytest.mark.parametrize("stream", [True, False])
async def test_cancelling_the_handler_aborts(stream: bool) -> None:
    engine = FakeEngine(("a", Hold(), "b"))
    exchange = Exchange(engine, ServerConfig(), {**BODY, "stream": stream})
    await asyncio.to_thread(engine.holding.wait, 20)

    exchange.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await exchange.task

    assert engine.aborted.is_set()


async def test_leaving_a_whole_answer_is_logged_as_such() -> None:
    engine = FakeEngine((Hold(), "a"))
    exchange = Exchange(engine, ServerConfig(), {**BODY, "stream": False})
    await asyncio.to_thread(engine.holding.wait, 20)
    exchange.leave()

    assert (await exchange.sent.get())["status"] == 499
    await exchange.task
    assert engine.aborted.is_set()


async def test_an_error_event_is_the_last_thing_in_a_stream() -> None:
    exchange = Exchange(FakeEngine(("a", RuntimeError("a secret"))), ServerConfig(), BODY)

    await exchange.task

    sent = [exchange.sent.get_nowait() for _ in range(exchange.sent.qsize())]
    body = b"".join(message.get("body", b"") for message in sent)
    *_, last, empty = body.decode().split("\n\n")
    assert empty == ""
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "internal_error"
    assert "secret" not in body.decode()
    assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_generations_do_not_wait_for_each_other() -> None:
    engine = FakeEngine(("a", Hold(), "b"))
    slow = await engine.submit(TextPrompt("x"), SamplingParams(), request_id="slow")
    quick = await FakeEngine(("c", "d")).submit(
        TextPrompt("x"), SamplingParams(), request_id="quick"
    )
    texts: list[list[str]] = [[], []]

    async for index, outputs in merge_outputs([slow, quick]):
        texts[index].extend(output.text for output in outputs)
        if outputs[-1].finish_reason is not None and index == 1:
            assert texts[0] == ["a"]
            engine.release()

    assert texts == [["a", "b", ""], ["c", "d", ""]]


async def test_leaving_a_merge_early_leaves_no_task_behind() -> None:
    engine = FakeEngine((Hold(), "a"))
    slow = await engine.submit(TextPrompt("x"), SamplingParams(), request_id="slow")
    quick = await FakeEngine().submit(TextPrompt("x"), SamplingParams(), request_id="quick")
    before = asyncio.all_tasks()

    async with aclosing(merge_outputs([slow, quick])) as arrivals:
        index, _ = await anext(arrivals)

    assert index == 1
    assert asyncio.all_tasks() == before
