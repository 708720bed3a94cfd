"""What a caller holds of a request under way: outputs as they arrive, and the way to give up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from ..parsing.output_parser import OutputParser
from ..request import PositionLogprobs, Request, RequestOutput


class AsyncGeneration:
    """A submitted request, seen from the loop. Only ever touched on the loop's thread."""

    def __init__(self, request: Request, abort: Callable[[], None]) -> None:
        self._request = request
        self._abort = abort
        self._arrived: list[RequestOutput] = []
        self._waiting: asyncio.Future[None] | None = None
        self._num_unfinished = request.num_sequences
        self._error: Exception | None = None
        self._prompt_logprobs: Sequence[PositionLogprobs | None] | None = None

    @property
    def prompt_token_ids(self) -> Sequence[int]:
        """The prompt as it runs."""
        return self._request.prompt_token_ids

    def make_parser(self) -> OutputParser:
        """What reads the text of one answer."""
        return self._request.make_parser()

    @property
    def prompt_logprobs(self) -> Sequence[PositionLogprobs | None] | None:
        """One entry per prompt token once the first output is there, if asked for."""
        return self._prompt_logprobs

    @property
    def is_done(self) -> bool:
        """Whether every answer has ended."""
        return self._num_unfinished <= 0 or self._error is not None

    def deliver(self, output: RequestOutput) -> None:
        """Take what a step had to tell of one answer."""
        self._arrived.append(output)
        if output.finish_reason is not None:
            self._num_unfinished -= 1
        self._wake()

    def set_prompt_logprobs(self, logprobs: Sequence[PositionLogprobs | None]) -> None:
        """Take the prompt's log probabilities."""
        self._prompt_logprobs = logprobs

    def fail(self, error: Exception) -> None:
        """End with an error: nothing more will come."""
        self._error = error
        self._wake()

    def abort(self) -> None:
        """Give up. Harmless when everything has arrived."""
        if not self.is_done:
            self._num_unfinished = 0
            self._wake()
            self._abort()

    async def __aiter__(self) -> AsyncIterator[Sequence[RequestOutput]]:
        """Yield whatever has arrived since the last time."""
        while True:
            if self._arrived:
                arrived, self._arrived = self._arrived, []
                yield arrived
            elif self._error is not None:
                raise self._error
            elif self._num_unfinished <= 0:
                return
            else:
                # An event would do the same, at three times the cost, for every token.
                self._waiting = asyncio.get_running_loop().create_future()
                await self._waiting

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
