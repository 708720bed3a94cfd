"""One answer in progress.

The only mutable part of a request. The scheduler moves its status and its computed count; tokens
are appended by `Scheduler.update` alone. Lengths are derived wherever they can be.
"""

from __future__ import annotations

import enum

from ..cache.kv_cache_manager import SequenceCache
from ..request import FinishReason, Request


class SequenceStatus(enum.Enum):
    """Where a sequence is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Sequence:
    """Progress of one answer.

    Token positions fall into consecutive ranges::

        [0, num_prompt_tokens)                       prompt
        [num_prompt_tokens, num_tokens)              drawn, ids known here
        [num_tokens, num_tokens + num_pending)       drawn on the device, ids not read back yet

    and, independently, ``[0, num_computed_tokens)`` have their keys and values in the cache or in
    a step that is under way.

    Attributes:
        key: Identifies the sequence among all running ones.
        num_prompt_tokens: Length of the prompt.
        max_output_tokens: Most tokens of the answer; the scheduler sets it.
        wants_prompt_logprobs: Whether this sequence computes the prompt's logprobs.
    """

    def __init__(self, request: Request, index: int, *, seed: int, cache: SequenceCache) -> None:
        self.request = request
        self.params = request.params
        # What is asked for in every step and never changes is kept, not worked out.
        self.key = (request.request_id, index)
        self.num_prompt_tokens = request.num_prompt_tokens
        self.max_output_tokens = 0
        # The first one does it for all.
        self.wants_prompt_logprobs = request.params.num_prompt_logprobs is not None and index == 0
        self.index = index
        self.seed = seed
        self.cache = cache
        # Follows the answer's tokens, so it stays what it is when blocks are lost.
        self.constraint = None if request.constraint is None else request.constraint()
        self.constraint_fault: str | None = None
        self.token_ids: list[int] = list(request.prompt_token_ids)
        self.status = SequenceStatus.WAITING
        self.finish_reason: FinishReason | None = None
        self.stop_token_id: int | None = None
        self.num_computed_tokens = 0
        # Before the newest token: they ran, but the states behind them are not the sequence's.
        self.num_replayed = 0
        self.num_pending = 0
        self.num_told_tokens = 0
        self.num_cached_tokens: int | None = None
        self.first_scheduled_at: float | None = None
        self.first_token_at: float | None = None
        self.last_token_at: float | None = None
        self.queue_time_told = False

    @property
    def num_tokens(self) -> int:
        """Tokens whose ids are known: prompt and answer."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Tokens of the answer whose ids are known."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_total_tokens(self) -> int:
        """Known and pending tokens."""
        return len(self.token_ids) + self.num_pending

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens still to run; while decoding 1, and those to be replayed."""
        return self.num_total_tokens - self.num_computed_tokens

    @property
    def is_decoding(self) -> bool:
        """Whether all that is left to run is its newest token, and those to be replayed."""
        num_total = len(self.token_ids) + self.num_pending
        return num_total - self.num_computed_tokens == 1 + self.num_replayed

    @property
    def num_untold_tokens(self) -> int:
        """Tokens of the answer that the output processor has not seen."""
        return len(self.token_ids) - self.num_prompt_tokens - self.num_told_tokens

    @property
    def untold_token_ids(self) -> list[int]:
        """The end of the answer that the output processor has not seen."""
        return self.token_ids[self.num_prompt_tokens + self.num_told_tokens :]

    @property
    def is_finished(self) -> bool:
        """Whether nothing more will come."""
        return self.status is SequenceStatus.FINISHED

    @property
    def output_token_ids(self) -> list[int]:
        """The answer so far."""
        return self.token_ids[self.num_prompt_tokens :]

    def __repr__(self) -> str:
        return (
            f"Sequence({self.request.request_id}/{self.index}, {self.status.value}, "
            f"{self.num_computed_tokens}/{self.num_tokens}+{self.num_pending})"
        )
