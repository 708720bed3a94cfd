"""The client against servers that frame, close and misbehave in all ways."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from pippin.cli.bench.http_client import HttpClient, RequestFailedError

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


@asynccontextmanager
async def talk(handler: Handler, timeout_s: float = 5.0) -> AsyncIterator[HttpClient]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = HttpClient(f"http://127.0.0.1:{port}", api_key=None, timeout_s=timeout_s)
        try:
            yield client
        finally:
            client.close()


def answers(*replies: bytes) -> Handler:
    """One reply for each request of a connection, and then its end."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for reply in replies:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(reply)

    return handle


@pytest.mark.parametrize(
    "reply",
    [
        HELLO,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x\r\nlo\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello",  # ends with its connection
        b"HTTP/1.0 200 OK\r\n\r\nhello",
    ],
)
def test_bodies_are_read_however_they_are_framed(reply: bytes) -> None:
    async def run() -> None:
        async with talk(answers(reply)) as client:
            assert (await client.exchange("GET", "/")).body == b"hello"

    asyncio.run(run())


def test_a_connection_is_kept_and_a_closed_one_replaced() -> None:
    connections = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        await answers(HELLO, HELLO)(reader, writer)
        await reader.readuntil(b"\r\n\r\n")  # taken, and never answered

    async def run() -> None:
        async with talk(handle) as client:
            for _ in range(5):
                assert (await client.exchange("GET", "/")).status == 200

    asyncio.run(run())
    assert len(connections) == 3


def test_an_answer_that_breaks_off_is_not_asked_for_again() -> None:
    requests = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for reply in (HELLO, HELLO[:-2]):
            requests.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(reply)

    async def run() -> None:
        async with talk(handle) as client:
            await client.exchange("GET", "/")
            with pytest.raises(RequestFailedError) as caught:
                await client.exchange("GET", "/")
            assert caught.value.kind == "connection lost"

    asyncio.run(run())
    assert len(requests) == 2


def test_parts_come_as_they_are_read_and_only_of_good_answers() -> None:
    async def run() -> None:
        parts: list[tuple[float, bytes]] = []
        seen = asyncio.Event()

        def on_part(at: float, part: bytes) -> None:
            parts.append((at, part))
            seen.set()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(HELLO[:-3])
            await seen.wait()
            writer.write(HELLO[-3:])
            await reader.readuntil(b"\r\n\r\n")
            writer.write(HELLO.replace(b"200 OK", b"500 No"))

        async with talk(handle) as client:
            good = await client.exchange("GET", "/", on_part=on_part)
            bad = await client.exchange("GET", "/", on_part=on_part)
        assert [part for _, part in parts] == [b"he", b"llo"]
        assert parts[0][0] < parts[1][0] == good.ended_at
        assert (good.body, bad.status, bad.body) == (b"", 500, b"hello")

    asyncio.run(run())


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (b"220 smtp ready\r\n", "not HTTP"),
        (b"", "connection lost"),
        (HELLO[:30], "connection lost"),
    ],
)
def test_what_is_no_answer_is_a_failure(reply: bytes, kind: str) -> None:
    async def run() -> None:
        async with talk(answers(reply)) as client:
            with pytest.raises(RequestFailedError) as caught:
                await client.exchange("GET", "/")
            assert caught.value.kind == kind

    asyncio.run(run())


def test_time_runs_out() -> None:
    async def handle(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reader.read()

    async def run() -> None:
        async with talk(handle, timeout_s=0.05) as client:
            with pytest.raises(RequestFailedError) as caught:
                await client.exchange("GET", "/")
            assert str(caught.value) == "timeout: after 0.05 s"

    asyncio.run(run())


def test_the_address_may_end_with_its_version() -> None:
    for url in ("http://h", "http://h/", "http://h/v1", "http://h/v1/"):
        assert HttpClient(url, api_key=None, timeout_s=1.0).root == ""
    assert HttpClient("https://h/api/v1", api_key=None, timeout_s=1.0).root == "/api"
