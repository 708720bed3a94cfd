"""Replies under way, by the id that the client saw: to look at, and to cancel."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pippin.core.engine.client import Generation
from pippin.core.request import RequestOutput

from .errors import RequestCancelledError


class RunningReply:
    """One reply, what is generated for it, and how far that has got."""

    def __init__(self, reply_id: str, endpoint: str, generations: Sequence[Generation]) -> None:
        self._reply_id = reply_id
        self._endpoint = endpoint
        self._generations = generations
        self._is_cancelled = False
        self._begun_at = time.monotonic()
        self._first_token_at: float | None = None
        self._num_first_tokens = 0
        self._num_output_tokens: dict[tuple[int, int], int] = {}
        self._num_cached_tokens: dict[int, int] = {}

    def observe(self, prompt_index: int, output: RequestOutput) -> None:
        """Take note of one output."""
        self._num_output_tokens[prompt_index, output.index] = output.num_output_tokens
        self._num_cached_tokens[prompt_index] = output.num_cached_tokens
        if self._first_token_at is None:
            self._first_token_at = time.monotonic()
            self._num_first_tokens = output.num_output_tokens

    def progress(self) -> dict[str, Any]:
        """For ``GET /v1/requests``.

        ``prompt_tokens`` of several prompts, and ``output_tokens`` of several answers, are sums.
        ``cached_tokens``, ``ttft_s`` and ``output_tokens_per_s`` (since the first token) are null
        for as long as nobody can know them.
        """
        now, first_at = time.monotonic(), self._first_token_at
        num_output_tokens = sum(self._num_output_tokens.values())
        num_since_first = num_output_tokens - self._num_first_tokens
        return {
            "id": self._reply_id,
            "object": "request",
            "endpoint": self._endpoint,
            # Whether it waits or its prompt runs is not known here.
            "state": "starting" if first_at is None else "answering",
            "age_s": now - self._begun_at,
            "prompt_tokens": sum(len(it.prompt_token_ids) for it in self._generations),
            "cached_tokens": None if first_at is None else sum(self._num_cached_tokens.values()),
            "output_tokens": num_output_tokens,
            "ttft_s": None if first_at is None else first_at - self._begun_at,
            "output_tokens_per_s": (
                num_since_first / (now - first_at)
                if first_at is not None and num_since_first
                else None
            ),
        }

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
    """All of them, oldest first. Only ever touched on the event loop's thread."""

    def __init__(self) -> None:
        self._by_id: dict[str, RunningReply] = {}

    def __iter__(self) -> Iterator[RunningReply]:
        return iter(self._by_id.values())

    @contextmanager
    def track(
        self, reply_id: str, endpoint: str, generations: Sequence[Generation]
    ) -> Iterator[RunningReply]:
        """List a reply, and let it be cancelled, for as long as the block lasts."""
        reply = self._by_id[reply_id] = RunningReply(reply_id, endpoint, generations)
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
