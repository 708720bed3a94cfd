"""A load generator for streaming chat servers: N clients, each asks, reads to the end, asks again.

A program of its own, so that reading costs the server under test as little as it can: raw sockets,
and nothing is parsed before the last answer has ended. ``serve_comparison.py`` runs it; by hand::

    python tests/perf/stream_load.py --port 8000 --clients 2 < jobs.json > samples.json

``jobs.json`` is a list of request bodies. Client ``i`` of ``n`` sends the jobs ``i``, ``i + n``,
``i + 2n`` and so on, one after another. The answer is a list of samples, one per job, in order.
Nothing is sent twice: a refused or broken request is a failed sample. Two keys of a body are not
sent: ``path`` is where it goes if not to chat completions, and ``start_after`` has it wait until
every job without that key has had so many events, or has ended.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

# What openai-python waits for a connection before it gives up.
_CONNECT_TIMEOUT_S = 5.0
_POLL_INTERVAL_S = 0.002
_UNSENT = ("path", "start_after")


class FailedRequestError(Exception):
    """The server did not answer with a whole stream."""


async def _body_parts(reader: asyncio.StreamReader, *, chunked: bool) -> AsyncIterator[bytes]:
    """The body as it arrives, without the framing of chunks."""
    if not chunked:
        while part := await reader.read(65536):
            yield part
        return
    while size := int((await reader.readline()).split(b";")[0] or b"0", 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)  # the line end behind a chunk


@dataclass(slots=True)
class _Answer:
    """What came of a job; every event with the moment at which it was complete."""

    job: dict[str, Any]
    sent_at: float = 0.0
    events: list[tuple[float, bytes]] = field(default_factory=list)
    error: Exception | None = None
    has_ended: bool = False


async def _exchange(port: int, answer: _Answer) -> None:
    """Send one request and take in its events."""
    connecting = asyncio.open_connection("127.0.0.1", port)
    reader, writer = await asyncio.wait_for(connecting, _CONNECT_TIMEOUT_S)
    try:
        body = {key: value for key, value in answer.job.items() if key not in _UNSENT}
        content = json.dumps(body).encode()
        path = answer.job.get("path", "/v1/chat/completions")
        writer.write(
            b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            % (path.encode(), len(content))
        )
        writer.write(content)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        status = head.split(None, 2)[1]
        if status != b"200":
            raise FailedRequestError(f"status {status.decode()}")
        rest = b""
        async for part in _body_parts(reader, chunked=b"transfer-encoding: chunked" in head):
            *lines, rest = (rest + part).split(b"\n")
            now = time.monotonic()
            answer.events += [
                (now, line[5:].strip()) for line in lines if line.startswith(b"data:")
            ]
    finally:
        writer.close()


def _summarise(answer: _Answer) -> dict[str, Any]:
    """One sample.

    Raises:
        FailedRequestError: The stream holds an error, no text, or ends too early.
    """
    if answer.error is not None:
        raise answer.error
    events = answer.events
    if not events or events[-1][1] != b"[DONE]":
        raise FailedRequestError("the stream ended early")
    text, text_times, usage = "", [], None
    for at, data in events[:-1]:
        event = json.loads(data)
        if "error" in event:
            raise FailedRequestError(f"error event: {event['error']}")
        usage = event.get("usage") or usage
        for choice in event["choices"]:
            if piece := choice["text"] if "text" in choice else choice["delta"].get("content"):
                text += piece
                text_times.append(at)
    if not text_times:
        raise FailedRequestError("no text")
    # llama-cpp-python tells no usage while it streams, and sends a token at a time.
    usage = usage or {"prompt_tokens": 0, "completion_tokens": len(text_times)}
    return {
        "error": None,
        "sent_at": answer.sent_at,
        "first_at": text_times[0],
        "done_at": events[-1][0],
        "gaps": [later - at for at, later in itertools.pairwise(text_times)],
        "text": text,
        "prompt_tokens": usage["prompt_tokens"],
        "cached_tokens": (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
        "output_tokens": usage["completion_tokens"],
    }


async def _run_client(
    port: int, mine: Sequence[_Answer], leaders: Sequence[_Answer], timeout_s: float
) -> None:
    for answer in mine:
        wanted = answer.job.get("start_after", 0)
        # An event for every reader to set would cost them more.
        while wanted and any(  # noqa: ASYNC110
            len(leader.events) < wanted and not leader.has_ended for leader in leaders
        ):
            await asyncio.sleep(_POLL_INTERVAL_S)
        answer.sent_at = time.monotonic()
        try:
            await asyncio.wait_for(_exchange(port, answer), timeout_s)
        # Failures are what is counted here, whatever their kind.
        except Exception as error:
            answer.error = error
        answer.has_ended = True


def _to_sample(answer: _Answer) -> dict[str, Any]:
    try:
        return _summarise(answer)
    # A foreign server may send anything.
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}".rstrip(": ")}


async def _run(port: int, num_clients: int, jobs: list[Any], timeout_s: float) -> dict[str, Any]:
    answers = [_Answer(job) for job in jobs]
    leaders = [answer for answer in answers if "start_after" not in answer.job]
    begun_at = time.monotonic()
    clients = (answers[first::num_clients] for first in range(num_clients))
    await asyncio.gather(*(_run_client(port, mine, leaders, timeout_s) for mine in clients))
    wall_s = time.monotonic() - begun_at
    return {"wall_s": wall_s, "samples": [_to_sample(answer) for answer in answers]}


def main() -> None:
    """Read jobs, run them, write samples."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for one answer")
    args = parser.parse_args()
    jobs = json.load(sys.stdin)
    json.dump(asyncio.run(_run(args.port, args.clients, jobs, args.timeout)), sys.stdout)


if __name__ == "__main__":
    main()
