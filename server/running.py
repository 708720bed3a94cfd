"""Replies under way, by the id that the client saw, so that they can be cancelled by it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pippin.core.engine.client import Generation

from .errors import RequestCancelledError


class RunningReply:
    """One reply and what is generated for it."""

    def __init__(self, generations: Sequence[Generation]) -> None:
        self._generations = generations
        self._is_cancelled = False

    def cancel(self) -> None:
        """End all its generations, without a last output."""
        self._is_cancelled = True
        for generation in self._generations:
            generation.abort()

    def check(self) -> None:
        """Raises RequestCancelledError if it was cancelled."""
        if self._is_cancelled:
            raise RequestCancelledError


class RunningReplies:
    """All of them. Only ever touched on the event loop's thread."""

    def __init__(self) -> None:
        self._by_id: dict[str, RunningReply] = {}

    @contextmanager
    def track(
        self, reply_id: str | None, generations: Sequence[Generation]
    ) -> Iterator[RunningReply]:
        """Let a reply be cancelled for as long as the block lasts; one without an id cannot be."""
        reply = RunningReply(generations)
        if reply_id is None:
            yield reply
            return
        self._by_id[reply_id] = reply
        try:
            yield reply
        finally:
            del self._by_id[reply_id]

    def cancel(self, reply_id: str) -> bool:
        """Cancel a reply, whatever it has got to; False if none of that id runs."""
        reply = self._by_id.get(reply_id)
        if reply is not None:
            reply.cancel()
        return reply is not None
