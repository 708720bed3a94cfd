"""A load generator for streaming chat servers: N clients, each asks, reads to the end, asks again.

A program of its own, so that reading costs the server under test as little as it can: raw sockets,
and nothing is parsed before the last answer has ended. ``serve_comparison.py`` runs it; by hand::

    python tests/perf/stream_load.py --port 8000 --clients 2 < jobs.json > samples.json

``jobs.json`` is a list of request bodies. Client ``i`` of ``n`` sends the jobs ``i``, ``i + n``,
``i + 2n`` and so on, one after another. The answer is a list of samples, one per job, in order.
Nothing is sent twice: a refused or broken request is a failed sample.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

# What openai-python waits for a connection before it gives up.
_CONNECT_TIMEOUT_S = 5.0


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


async def _exchange(port: int, job: dict[str, Any]) -> list[tuple[float, bytes]]:
    """Send one request; return every event with the moment at which it was complete."""
    connecting = asyncio.open_connection("127.0.0.1", port)
    reader, writer = await asyncio.wait_for(connecting, _CONNECT_TIMEOUT_S)
    try:
        content = json.dumps(job).encode()
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(content)
        )
        writer.write(content)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        status = head.split(None, 2)[1]
        if status != b"200":
            raise FailedRequestError(f"status {status.decode()}")
        events: list[tuple[float, bytes]] = []
        rest = b""
        async for part in _body_parts(reader, chunked=b"transfer-encoding: chunked" in head):
            *lines, rest = (rest + part).split(b"\n")
            now = time.monotonic()
            events += [(now, line[5:].strip()) for line in lines if line.startswith(b"data:")]
        return events
    finally:
        writer.close()


def _summarise(sent_at: float, events: Sequence[tuple[float, bytes]]) -> dict[str, Any]:
    """One sample from the events of one answer.

    Raises:
        FailedRequestError: The stream holds an error, no text, no usage, or ends too early.
    """
    if not events or events[-1][1] != b"[DONE]":
        raise FailedRequestError("the stream ended early")
    text, text_times, usage = "", [], None
    for at, data in events[:-1]:
        event = json.loads(data)
        if "error" in event:
            raise FailedRequestError(f"error event: {event['error']}")
        usage = event.get("usage") or usage
        for choice in event["choices"]:
            if piece := choice["delta"].get("content"):
                text += piece
                text_times.append(at)
    if not text_times or usage is None:
        raise FailedRequestError("no text" if usage else "no usage")
    return {
        "error": None,
        "sent_at": sent_at,
        "first_at": text_times[0],
        "done_at": events[-1][0],
        "gaps": [later - at for at, later in itertools.pairwise(text_times)],
        "text": text,
        "prompt_tokens": usage["prompt_tokens"],
        "cached_tokens": (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
        "output_tokens": usage["completion_tokens"],
    }


async def _run_job(port: int, job: dict[str, Any], timeout_s: float) -> tuple[float, Any]:
    sent_at = time.monotonic()
    try:
        return sent_at, await asyncio.wait_for(_exchange(port, job), timeout_s)
    # Failures are what is counted here, whatever their kind.
    except Exception as error:
        return sent_at, error


async def _run_client(
    port: int, jobs: Sequence[dict[str, Any]], timeout_s: float
) -> list[tuple[float, Any]]:
    return [await _run_job(port, job, timeout_s) for job in jobs]


def _to_sample(sent_at: float, outcome: Any) -> dict[str, Any]:
    try:
        if isinstance(outcome, Exception):
            raise outcome
        return _summarise(sent_at, outcome)
    # A foreign server may send anything.
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}".rstrip(": ")}


async def _run(port: int, num_clients: int, jobs: list[Any], timeout_s: float) -> dict[str, Any]:
    begun_at = time.monotonic()
    clients = [jobs[first::num_clients] for first in range(num_clients)]
    answers = await asyncio.gather(*(_run_client(port, mine, timeout_s) for mine in clients))
    wall_s = time.monotonic() - begun_at
    samples: list[Any] = [None] * len(jobs)
    for first, answered in enumerate(answers):
        samples[first::num_clients] = [_to_sample(at, outcome) for at, outcome in answered]
    return {"wall_s": wall_s, "samples": samples}


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
