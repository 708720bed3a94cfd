"""A real uvicorn on 127.0.0.1, in a thread, and raw sockets to talk to it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from pippin.core.engine.client import EngineClient
from pippin.server.app import create_app
from pippin.server.config import ServerConfig
from pippin.server.drain import Drain
from pippin.server.metrics import Metrics
from pippin.server.run import DrainingServer

TIMEOUT_S = 20


@dataclass(frozen=True)
class LiveServer:
    """What tests need of it."""

    port: int
    server: DrainingServer
    loop: asyncio.AbstractEventLoop
    thread: threading.Thread
    drain: Drain

    @property
    def url(self) -> str:
        """Without a path."""
        return f"http://127.0.0.1:{self.port}"

    def begin_drain(self) -> None:
        """What the first signal does; returns when new work is refused."""
        begun = threading.Event()

        def begin() -> None:
            self.server.begin_drain()
            self.loop.call_soon(begun.set)  # behind the first step of the drain's task

        self.loop.call_soon_threadsafe(begin)
        assert begun.wait(TIMEOUT_S)

    def wait_idle(self) -> None:
        """Return when no request runs."""
        asyncio.run_coroutine_threadsafe(self.drain.wait_idle(), self.loop).result(TIMEOUT_S)


@contextmanager
def serve(
    engine: EngineClient, config: ServerConfig | None = None, *, metrics: Metrics | None = None
) -> Iterator[LiveServer]:
    """Run a server for as long as the block lasts, whatever still runs in it."""
    config = config or ServerConfig(port=0)
    started = threading.Event()
    bound: list[tuple[int, asyncio.AbstractEventLoop]] = []

    def on_started(host: str, port: int) -> None:
        bound.append((port, asyncio.get_running_loop()))
        started.set()

    drain = Drain()
    app = create_app(engine, config, metrics=metrics, drain=drain)
    server = DrainingServer(app, config, drain, on_started=on_started)
    thread = threading.Thread(target=server.run_until_drained)
    thread.start()
    assert started.wait(TIMEOUT_S)
    try:
        port, loop = bound[0]
        yield LiveServer(port, server, loop, thread, drain)
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(TIMEOUT_S)


@contextmanager
def posted(port: int, path: str, body: Mapping[str, object]) -> Iterator[socket.socket]:
    """A connection on which a request has been sent. Leaving the block closes it."""
    content = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection:
        connection.sendall(
            f"POST {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n"
            f"Content-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        yield connection


def read_until(connection: socket.socket, mark: bytes) -> bytes:
    """Everything up to the first read that completes ``mark``; to the end if it never comes."""
    received = b""
    while mark not in received:
        part = connection.recv(65536)
        if not part:
            break
        received += part
    return received


def read_to_end(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    received = b""
    while part := connection.recv(65536):
        received += part
    return received
