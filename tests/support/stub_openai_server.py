"""A server whose every latency is known: it sends tokens when it was told to, and logs when it did.

Plain asyncio in a thread of its own. The log's times are of ``time.perf_counter``, which all
processes of a machine share, so what a client reports can be held against what was really sent.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

_TIMEOUT_S = 20
_CHUNK_END = b"0\r\n\r\n"


@dataclass(frozen=True, kw_only=True)
class Script:
    """How a request is answered.

    Attributes:
        prefill_s: From the request to the first token.
        gap_s: From one token to the next.
        num_tokens: ``None`` takes the request's ``max_tokens``.
        num_reasoning: So many of the first tokens are reasoning.
        tokens_per_chunk: In one event.
        has_usage: Whether the server counts.
        cached_tokens: ``None`` says nothing of a cache.
        status: Other than 200: an error, at once.
        breaks_after: Ends the connection after so many tokens.
        error_after: Sends an error in the stream after so many tokens.
        body: Sent as it is, as the whole body of an answer that is no stream.
    """

    prefill_s: float = 0.0
    gap_s: float = 0.0
    num_tokens: int | None = None
    num_reasoning: int = 0
    tokens_per_chunk: int = 1
    has_usage: bool = True
    cached_tokens: int | None = 0
    status: int = 200
    breaks_after: int | None = None
    error_after: int | None = None
    body: bytes | None = None


@dataclass(slots=True)
class Sent:
    """What was really done for one request."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    received_at: float
    token_times: list[float] = field(default_factory=list)
    ended_at: float = 0.0


class StubServer:
    """Attributes:
    scripts: Asked for each request, in order of arrival, with its number and body.
    pages: What ``GET`` answers with, by path.
    log: Of every ``POST``.
    """

    def __init__(self, scripts: Callable[[int, dict[str, Any]], Script]) -> None:
        self.scripts = scripts
        self.pages: dict[str, object] = {
            "/v1/models": {"object": "list", "data": [{"id": "stub"}]},
            "/version": {"version": "1.2.3"},
        }
        self.header = "stub/1"
        self.log: list[Sent] = []
        self.port = 0

    @property
    def url(self) -> str:
        """Without a path."""
        return f"http://127.0.0.1:{self.port}"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                received_at = time.perf_counter()
                first, *lines = head.decode().strip().split("\r\n")
                method, path, _ = first.split(" ")
                headers = {
                    name.lower(): value
                    for name, _, value in (line.partition(": ") for line in lines)
                }
                content = await reader.readexactly(int(headers.get("content-length", "0")))
                if method == "GET":
                    page = self.pages.get(path)
                    self._send(writer, 404 if page is None else 200, page or {})
                    continue
                sent = Sent(path, json.loads(content), headers, received_at)
                self.log.append(sent)
                await self._play(writer, sent, self.scripts(len(self.log) - 1, sent.body))
                sent.ended_at = time.perf_counter()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _play(self, writer: asyncio.StreamWriter, sent: Sent, script: Script) -> None:
        if script.status != 200:
            self._send(writer, script.status, {"error": {"message": "the stub refuses"}})
            return
        if script.body is not None or not sent.body.get("stream"):
            await _sleep_until(sent.received_at + script.prefill_s)
            embedded = {"data": [{"embedding": [0.0]} for _ in sent.body.get("input", ())]}
            usage = {"usage": self._usage(sent.body, script, 0)} if script.has_usage else {}
            self._send(writer, 200, script.body or {**embedded, **usage})
            return
        writer.write(
            f"HTTP/1.1 200 OK\r\nServer: {self.header}\r\nContent-Type: text/event-stream\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        is_chat = "messages" in sent.body
        num_tokens = script.num_tokens or sent.body.get("max_tokens", 1)
        due = sent.received_at + script.prefill_s
        if is_chat:
            _event(writer, {"choices": [{"index": 0, "delta": {"role": "assistant"}}]})
        for first in range(0, num_tokens, script.tokens_per_chunk):
            await _sleep_until(due)
            if script.breaks_after is not None and first >= script.breaks_after:
                raise ConnectionError
            if script.error_after is not None and first >= script.error_after:
                _event(writer, {"error": {"message": "the stub broke"}})
                writer.write(_CHUNK_END)
                return
            text = "x" * min(script.tokens_per_chunk, num_tokens - first)
            kind = "reasoning_content" if first < script.num_reasoning else "content"
            choice = {"delta": {kind: text}} if is_chat else {"text": text}
            _event(writer, {"choices": [{"index": 0, **choice}]})
            sent.token_times.append(time.perf_counter())
            await writer.drain()  # which ends this if the client has gone
            due += script.gap_s * script.tokens_per_chunk
        _event(writer, {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
        if script.has_usage and (sent.body.get("stream_options") or {}).get("include_usage"):
            _event(writer, {"choices": [], "usage": self._usage(sent.body, script, num_tokens)})
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n" + _CHUNK_END)

    def _usage(self, body: Mapping[str, Any], script: Script, num_tokens: int) -> dict[str, Any]:
        details = {"prompt_tokens_details": {"cached_tokens": script.cached_tokens}}
        return {
            "prompt_tokens": count_tokens(body),
            "completion_tokens": num_tokens,
            **(details if script.cached_tokens is not None else {}),
        }

    def _send(self, writer: asyncio.StreamWriter, status: int, body: object) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        writer.write(
            f"HTTP/1.1 {status} -\r\nServer: {self.header}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n".encode()
            + content
        )


def count_tokens(body: Mapping[str, Any]) -> int:
    """One for two letters, spaces too, and ten for the template of a chat."""
    if "messages" in body:
        texts: Sequence[Any] = [message["content"] for message in body["messages"]]
        parts = [text if isinstance(text, str) else text[0]["text"] for text in texts]
        return 10 + sum(map(len, parts)) // 2
    if "input" in body:
        return sum(map(len, body["input"])) // 2
    return len(body["prompt"]) // 2


def _event(writer: asyncio.StreamWriter, event: object) -> None:
    data = b"data: " + json.dumps(event).encode() + b"\n\n"
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))


async def _sleep_until(at: float) -> None:
    await asyncio.sleep(max(0.0, at - time.perf_counter()))


@contextmanager
def stub_server(
    scripts: Script | Callable[[int, dict[str, Any]], Script] = Script(),
) -> Iterator[StubServer]:
    """Run one for as long as the block lasts.

    Args:
        scripts: One for all requests, or what chooses.
    """
    server = StubServer(scripts if callable(scripts) else lambda _number, _body: scripts)
    loop = asyncio.new_event_loop()
    started, stop = threading.Event(), asyncio.Event()

    async def run() -> None:
        async with await asyncio.start_server(server.answer, "127.0.0.1", 0) as listening:
            server.port = listening.sockets[0].getsockname()[1]
            started.set()
            await stop.wait()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    assert started.wait(_TIMEOUT_S)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(_TIMEOUT_S)
        loop.close()
