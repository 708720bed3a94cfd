"""From running generations to an answer: as one object, or as a stream of events.

Both ways notice a caller that leaves and abort what runs for it, whether or not the first token
is there. Wire formats are the adapters' business, statuses `errors.py`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol, cast

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from pippin.core.engine.client import Generation
from pippin.core.errors import PippinError
from pippin.core.request import RequestOutput

from .errors import CLIENT_GONE_STATUS, HttpError, to_http_error
from .merge import merge_outputs
from .running import RunningReply
from .service import Service
from .sse import encode_event

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStyle:
    """How an API's streams look, beside what a `ChunkWriter` writes.

    Attributes:
        keepalive: Sent while there is nothing else to send; if empty, nothing is.
        encode_error: Frames that end a stream that failed.
    """

    media_type: str = "text/event-stream"
    keepalive: bytes = b": keep-alive\n\n"
    encode_error: Callable[[HttpError], bytes] = lambda error: encode_event(error.body())


OPENAI_STREAM = StreamStyle()


class ReplyCollector(Protocol):
    """Makes one object of all outputs."""

    def feed(self, prompt_index: int, output: RequestOutput) -> None:
        """Take in one output."""

    def reply(self) -> dict[str, Any]:
        """The object, after the last output."""


class ChunkWriter(Protocol):
    """Makes frames of outputs."""

    def write(self, prompt_index: int, output: RequestOutput) -> bytes:
        """Frames of one output, maybe none."""

    def close(self) -> bytes:
        """What ends a stream that went well."""


async def answer_at_once(
    request: Request,
    generations: Sequence[Generation],
    collector: ReplyCollector,
    service: Service,
    *,
    reply_id: str,
) -> Response:
    """Wait for the whole answer.

    Args:
        reply_id: What it can be cancelled by.

    Raises:
        RequestCancelledError: It was.
        GenerationError: One of the answers failed.
        EngineStoppedError: The engine went away.
    """
    endpoint = request.url.path
    outcome = "failed"
    with service.running.track(reply_id, endpoint, generations) as running:
        collecting = asyncio.ensure_future(_collect(generations, collector, running))
        leaving = asyncio.ensure_future(_wait_until_gone(request))
        try:
            await asyncio.wait((collecting, leaving), return_when=asyncio.FIRST_COMPLETED)
            running.check()
            if not collecting.done():
                outcome = "client_gone"
                return Response(status_code=CLIENT_GONE_STATUS)
            collecting.result()
            reply = collector.reply()
            outcome = "completed"
            return JSONResponse(reply)
        finally:
            collecting.cancel()
            leaving.cancel()
            for generation in generations:
                generation.abort()
            service.metrics.observe_request(endpoint, outcome)


class GenerationStream(EventSourceResponse):
    """Streams what generations yield; all that has arrived goes out in one message.

    Args:
        generations: One for each prompt. They are aborted when the stream ends, however it ends.
        reply_id: What it can be cancelled by.
        style: What differs between APIs.
    """

    def __init__(
        self,
        request: Request,
        generations: Sequence[Generation],
        writer: ChunkWriter,
        service: Service,
        *,
        reply_id: str,
        style: StreamStyle = OPENAI_STREAM,
    ) -> None:
        self._style = style
        self._generations = generations
        self._endpoint = request.url.path
        self._tracked = service.running.track(reply_id, self._endpoint, generations)
        self._writer = writer
        self._metrics = service.metrics
        self._request_id: str = request.state.request_id
        self._outcome = "client_gone"
        super().__init__(
            self._frames(),
            media_type=style.media_type,
            ping=service.config.sse_keepalive_s if style.keepalive else 0,
            # Sent as it is, although declared to be another type.
            ping_message_factory=lambda: cast("ServerSentEvent", style.keepalive),
            sep="\n",
            # Without it the library cuts all streams on uvicorn's first exit signal.
            shutdown_grace_period=service.config.drain_timeout_s,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        try:
            with self._tracked as self._running:
                await super().__call__(scope, receive, send)
        finally:
            # Not in `_frames`: its clean-up does not run if the caller left before it began.
            for generation in self._generations:
                generation.abort()
            self._metrics.observe_request(self._endpoint, self._outcome)

    async def _frames(self) -> AsyncIterator[bytes]:
        write = self._writer.write
        try:
            async with aclosing(merge_outputs(self._generations)) as arrivals:
                async for prompt_index, outputs in arrivals:
                    failure = None
                    frames = []
                    for output in outputs:
                        failure = output.failure
                        if failure is not None:
                            break
                        self._running.observe(prompt_index, output)
                        frames.append(write(prompt_index, output))
                    data = b"".join(frames)
                    if data:
                        yield data
                    if failure is not None:
                        raise failure
            self._running.check()
            yield self._writer.close()
            self._outcome = "completed"
        except Exception as error:
            # The status has been sent: an event is all that is left to tell it by.
            self._outcome = "failed"
            logger.warning(
                "stream_failed request_id=%s error=%r",
                self._request_id,
                error,
                exc_info=not isinstance(error, PippinError),
            )
            yield self._style.encode_error(to_http_error(error))


async def _collect(
    generations: Sequence[Generation], collector: ReplyCollector, running: RunningReply
) -> None:
    async with aclosing(merge_outputs(generations)) as arrivals:
        async for prompt_index, outputs in arrivals:
            for output in outputs:
                failure = output.failure
                if failure is not None:
                    raise failure
                running.observe(prompt_index, output)
                collector.feed(prompt_index, output)


async def _wait_until_gone(request: Request) -> None:
    # The body has been read, so that a disconnect is the only message that can still come.
    while (await request.receive())["type"] != "http.disconnect":
        pass
