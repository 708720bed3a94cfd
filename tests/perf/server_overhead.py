"""How many streamed chunks per second the HTTP layer can write, with an engine that costs nothing.

Run by hand: ``python tests/perf/server_overhead.py``. The server runs in a process of its own, on
one core where the system can pin; 64 raw sockets in another process read. Every chunk is one
token of one answer, made available alone, as an engine's decode step does: the stub hands over one
token per turn of the event loop, so that nothing is joined but what a slow reader leaves behind.
The text is read as that of a model that reasons and calls tools.
``--joined K`` hands over K tokens at a time instead.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from fake_engine import FakeEngine, FakeGeneration, Submission

from pippin.core.messages import Prompt
from pippin.core.parsing.detect import make_parser
from pippin.core.parsing.output_parser import OutputParser
from pippin.core.reply_rules import ReplyRules
from pippin.core.request import FinishReason, RequestOutput
from pippin.core.sampling_params import SamplingParams
from pippin.server.config import ServerConfig
from pippin.server.run import run_server

_LINE = b'data: {"id"'


class InstantGeneration(FakeGeneration):
    """Yields prepared outputs, and lets the other answers run in between."""

    def __init__(self, engine: InstantEngine, submission: Submission) -> None:
        super().__init__(engine, submission)
        self.num_joined = engine.num_joined
        self.num_tokens = submission.params.max_tokens or 1
        self.request_id = submission.request_id

    async def __aiter__(self) -> AsyncIterator[Sequence[RequestOutput]]:
        """One yield per turn of the loop."""
        outputs = [self._output(" token")] * self.num_joined
        for _ in range(self.num_tokens // self.num_joined):
            await asyncio.sleep(0)
            yield outputs
        yield [self._output("", FinishReason.LENGTH)]

    def make_parser(self) -> OutputParser:
        """As for most models."""
        return make_parser("hermes", "think")

    def _output(self, text: str, reason: FinishReason | None = None) -> RequestOutput:
        return RequestOutput(
            request_id=self.request_id,
            index=0,
            text=text,
            token_ids=(7,),
            text_offsets=(0,),
            num_output_tokens=self.num_tokens,
            num_cached_tokens=0,
            finish_reason=reason,
        )


class InstantEngine(FakeEngine):
    """Costs nothing."""

    def __init__(self, num_joined: int) -> None:
        super().__init__()
        self.num_joined = num_joined

    async def submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        request_id: str,
        num_sequences: int = 1,
        cache_salt: str = "",
        rules: ReplyRules | None = None,
    ) -> FakeGeneration:
        """Begin at once."""
        submission = Submission(prompt, params, request_id, num_sequences, cache_salt, rules)
        return InstantGeneration(self, submission)


def _serve(pipe: Connection, num_joined: int, profile: str | None) -> None:
    _pin(0)

    def on_started(host: str, port: int) -> None:
        pipe.send(port)

    config = ServerConfig(port=0)
    if profile is None:
        begun_s = time.thread_time()
        run_server(InstantEngine(num_joined), config, on_started=on_started)
        pipe.send(time.thread_time() - begun_s)
        return
    import cProfile

    profiler = cProfile.Profile()
    profiler.enable()
    run_server(InstantEngine(num_joined), config, on_started=on_started)
    profiler.disable()
    profiler.dump_stats(profile)


def _pin(core: int) -> bool:
    if not hasattr(os, "sched_setaffinity"):
        return False  # macOS has no such call
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[core % len(cores)]})
    return True


async def _read_stream(port: int, num_tokens: int) -> int:
    """Chunks of one streamed answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps(
        {
            "model": "tiny/model",
            "messages": [{"role": "user", "content": "go"}],
            "stream": True,
            "max_tokens": num_tokens,
        }
    ).encode()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    num_chunks = 0
    rest = b""
    while received := await reader.read(65536):
        text = rest + received
        num_chunks += text.count(_LINE)
        rest = text[-(len(_LINE) - 1) :]  # too short to hold one, long enough for a cut one
    assert b"[DONE]" in text, text[-200:]
    writer.close()
    return num_chunks


async def _measure(port: int, num_connections: int, num_tokens: int) -> tuple[int, float]:
    begun_at = time.perf_counter()
    counts = await asyncio.gather(*(_read_stream(port, num_tokens) for _ in range(num_connections)))
    return sum(counts), time.perf_counter() - begun_at


def main() -> None:
    """Measure, and print one JSON line at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=2000, help="per connection")
    parser.add_argument("--joined", type=int, default=1, help="tokens that arrive together")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", help="write the server's cProfile to this file")
    args = parser.parse_args()

    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=_serve, args=(theirs, args.joined, args.profile))
    server.start()
    try:
        port = ours.recv()
        is_pinned = _pin(1)
        import uvloop

        rates = []
        num_all_chunks, _ = uvloop.run(_measure(port, args.connections, 50))
        for _ in range(args.rounds):
            num_chunks, seconds = uvloop.run(_measure(port, args.connections, args.tokens))
            rates.append(num_chunks / seconds)
            num_all_chunks += num_chunks
            print(f"{num_chunks} chunks in {seconds:.2f} s: {rates[-1]:.0f} chunks/s", flush=True)
    finally:
        server.terminate()
        server.join(10)
    cpu_s = ours.recv() if args.profile is None else None
    result = {
        "cpu_us_per_chunk": cpu_s and round(cpu_s / num_all_chunks * 1e6, 1),
        "chunks_per_s_median": round(sorted(rates)[len(rates) // 2]),
        "chunks_per_s_best": round(max(rates)),
        "connections": args.connections,
        "tokens_per_connection": args.tokens,
        "tokens_joined": args.joined,
        "pinned": is_pinned,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
