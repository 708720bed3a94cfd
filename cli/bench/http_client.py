"""HTTP/1.1 for measuring: every part of a body comes with the moment it left the socket.

Connections are kept and used again, as a client's library does. Nothing is sent twice, but for one
case: a kept connection that the server had closed before a byte of the answer came.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import SplitResult, urlsplit

import httptools

from pippin.core.errors import ConfigError

BodyPart = Callable[[float, bytes], None]


class RequestFailedError(Exception):
    """No whole answer came.

    Attributes:
        kind: Under which it is counted.
        detail: What else is known, if anything is.
    """

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Response:
    """What is known when an answer has ended.

    Attributes:
        headers: By name in small letters.
        body: Empty if it went to `on_part`.
        ended_at: By ``time.perf_counter``.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    ended_at: float

    def json(self) -> Any:
        """Raises RequestFailedError if it is none."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise RequestFailedError("not JSON", str(error)) from error


class _Exchange:
    """One answer, as the parser calls for it."""

    def __init__(self, on_part: BodyPart | None) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.parser = httptools.HttpResponseParser(self)
        self.headers: dict[str, str] = {}
        self.body = bytearray()
        self.status = 0
        self.at = 0.0
        self.has_begun = False
        self.is_kept = False
        self._on_part = on_part

    def receive(self, data: bytes) -> None:
        self.at = time.perf_counter()
        self.has_begun = True
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.fail(RequestFailedError("not HTTP", str(error)))

    def lose(self, error: Exception | None) -> None:
        length_known = {"content-length", "transfer-encoding"} & self.headers.keys()
        if self.status and not length_known and error is None:  # such a body ends so
            self.end()
        else:
            self.fail(RequestFailedError("connection lost", str(error or "")))

    def fail(self, error: RequestFailedError) -> None:
        if not self.done.done():
            self.done.set_exception(error)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self.parser.get_status_code()

    def on_body(self, part: bytes) -> None:
        if self._on_part is not None and self.status == 200:
            self._on_part(self.at, part)
        else:
            self.body += part

    def on_message_complete(self) -> None:
        self.is_kept = self.parser.should_keep_alive()  # which the parser then forgets
        self.end()

    def end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.exchange: _Exchange | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        if self.exchange is not None:
            self.exchange.receive(data)
        else:
            self.close()  # nothing was asked

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self.exchange is not None:
            self.exchange.lose(exc)

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class HttpClient:
    """Talks to one server.

    Args:
        url: With or without the ``/v1`` at its end.

    Raises:
        ConfigError: The address is none of a server.
    """

    def __init__(self, url: str, *, api_key: str | None, timeout_s: float) -> None:
        parts, self._port = _split(url)
        self._host = parts.hostname or ""
        self.root = parts.path.rstrip("/").removesuffix("/v1")
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._timeout_s = timeout_s
        self._idle: list[_Connection] = []
        host = parts.netloc.rpartition("@")[2]
        key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        self._head = f"Host: {host}\r\nAccept: */*\r\n{key}"

    async def exchange(
        self, method: str, path: str, *, body: bytes = b"", on_part: BodyPart | None = None
    ) -> Response:
        """Send a request and wait for the end of its answer, whatever its status.

        Args:
            path: Behind the server's address.
            on_part: Takes the body of an answer with status 200 as it comes.

        Raises:
            RequestFailedError: There was no whole answer.
        """
        request = (
            f"{method} {self.root}{path} HTTP/1.1\r\n{self._head}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body
        try:
            async with asyncio.timeout(self._timeout_s):
                while self._idle:
                    connection = self._idle.pop()
                    if connection.transport is None:
                        continue
                    exchange = _Exchange(on_part)
                    try:
                        return await self._ask(connection, exchange, request)
                    except RequestFailedError:
                        if exchange.has_begun:
                            raise
                return await self._ask(await self._connect(), _Exchange(on_part), request)
        except TimeoutError as error:
            raise RequestFailedError("timeout", f"after {self._timeout_s:g} s") from error

    def close(self) -> None:
        """Close what is kept."""
        for connection in self._idle:
            connection.close()

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(
                _Connection, self._host, self._port, ssl=self._tls
            )
        except ConnectionRefusedError as error:
            raise RequestFailedError("connection refused", "nobody listens there") from error
        except TimeoutError:
            raise
        except OSError as error:
            raise RequestFailedError("no connection", error.strerror or str(error)) from error
        return connection

    async def _ask(self, connection: _Connection, exchange: _Exchange, request: bytes) -> Response:
        connection.exchange = exchange
        try:
            if connection.transport is None:
                raise RequestFailedError("connection lost")
            connection.transport.write(request)
            await exchange.done
        finally:
            connection.exchange = None
            if exchange.is_kept:
                self._idle.append(connection)
            else:
                connection.close()
        return Response(exchange.status, exchange.headers, bytes(exchange.body), exchange.at)


def _split(url: str) -> tuple[SplitResult, int]:
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        parts, port = urlsplit(""), 0
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"'{url}' is no address of a server; write it like http://127.0.0.1:8000")
    return parts, port
