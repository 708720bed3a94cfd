"""Drives the core `Engine` step by step on the test's own thread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pippin.core.config import CacheConfig, EngineConfig, SchedulerConfig, Speculation
from pippin.core.engine.engine import Engine
from pippin.core.engine.factory import BuiltEngine, build_engine
from pippin.core.engine.speculator import Speculator
from pippin.core.models.loader import LoadedModel
from pippin.core.request import FinishReason, PositionLogprobs, Request, RequestOutput
from pippin.core.runner.model_adapter import describe_layout
from pippin.core.sampling_params import SamplingParams

_MOST_STEPS = 200_000


@dataclass
class Answer:
    """All that came of one answer of one request."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: str | None = None

    def take(self, output: RequestOutput) -> None:
        """Add what one step had to tell."""
        assert self.finish_reason is None, "an output after the last one"
        self.token_ids += output.token_ids
        self.text += output.text
        self.logprobs += output.logprobs
        self.num_cached_tokens = output.num_cached_tokens
        self.num_output_tokens = output.num_output_tokens
        self.finish_reason = output.finish_reason
        self.stop_reason = output.stop_reason
        self.error = output.error


def greedy(num_tokens: int, **changes: Any) -> SamplingParams:
    """Always the likeliest token, never an early end."""
    fields = {"max_tokens": num_tokens, "temperature": 0.0, "ignore_eos": True, **changes}
    return SamplingParams(**fields)


def make_request(
    request_id: str, prompt: Sequence[int], params: SamplingParams, *, n: int = 1
) -> Request:
    """A request as `PromptBuilder` would make it."""
    return Request(
        request_id=request_id,
        prompt_token_ids=tuple(prompt),
        params=params,
        num_sequences=n,
    )


def build(  # noqa: PLR0913 -- one for each setting that some test turns
    loaded: LoadedModel,
    *,
    block_size: int = 16,
    num_tokens: int | None = 8192,
    max_num_seqs: int = 16,
    prefill_chunk: int = 2048,
    mixed_prefill_chunk: int | None = None,
    max_queue: int = 1024,
    max_model_len: int | None = None,
    draft: LoadedModel | None = None,
    least_states: int = 256,
    verifies: bool = False,
) -> BuiltEngine:
    """An engine whose KV cache holds about ``num_tokens`` tokens in all its layers.

    With a draft model it verifies drafts whatever they cost; with ``verifies`` it is ready for
    those of the test. For ``least_states`` saved states of recurrent layers the cache may become
    larger.
    """
    models = (loaded,) if draft is None else (loaded, draft)
    per_token = sum(map(bytes_per_token, models))
    max_bytes = None if num_tokens is None else num_tokens * per_token
    state_bytes = describe_layout(loaded.model)[0].state_bytes
    if max_bytes is not None and state_bytes:
        # Saved states get three tenths of what running ones leave.
        left = max(least_states * state_bytes * 10 // 3, max_bytes * 10 // 7)
        max_bytes = 2 * max_num_seqs * state_bytes + left
    speculation = Speculation.NGRAM if verifies else Speculation.OFF
    config = EngineConfig(
        max_model_len=max_model_len,
        speculation=speculation if draft is None else Speculation.DRAFT,
        draft_model=None if draft is None else draft.model_id,
        cache=CacheConfig(block_size=block_size, max_bytes=max_bytes),
        scheduler=SchedulerConfig(
            max_num_seqs=max_num_seqs,
            prefill_chunk=prefill_chunk,
            mixed_prefill_chunk=min(mixed_prefill_chunk or 512, prefill_chunk),
            max_queue=max_queue,
        ),
    )
    built = build_engine(loaded, config, draft=draft)
    if draft is not None:
        speculator = built.engine._speculator
        assert speculator is not None
        built.engine._speculator = AlwaysOn(speculator._source, max_tokens=7)
    return built


class AlwaysOn(Speculator):
    """Whatever it costs."""

    def is_on(self, num_sequences: int) -> bool:
        """Whether anybody runs."""
        return num_sequences > 0


def bytes_per_token(loaded: LoadedModel) -> int:
    """Bytes that one token takes in all layers, or 1 where that cannot be said."""
    layout, _ = describe_layout(loaded.model)
    return sum(layer.bytes_per_token for layer in layout.layers) or 1


class EngineDriver:
    """Adds requests, steps, and keeps what comes back.

    The pool's integrity is checked after every step.

    Attributes:
        answers: By request id and index.
        prompt_logprobs: By request id.
        num_preempted: Over all steps.
        num_prefill_tokens: Tokens that ran in chunks.
        num_decode_tokens: Tokens that were drawn.
        most_running: Most sequences that ran together.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.answers: dict[tuple[str, int], Answer] = {}
        self.prompt_logprobs: dict[str, Sequence[PositionLogprobs | None]] = {}
        self.num_preempted = 0
        self.num_prefill_tokens = 0
        self.num_decode_tokens = 0
        self.most_running = 0
        self.num_steps = 0

    def add(self, request: Request) -> None:
        """Queue a request."""
        self.engine.add(request)
        for index in range(request.num_sequences):
            self.answers[request.request_id, index] = Answer()

    def step(self) -> list[RequestOutput]:
        """One step of the engine."""
        result = self.engine.step()
        self.num_steps += 1
        self.engine.scheduler.check_integrity()
        for output in result.outputs:
            self.answers[output.request_id, output.index].take(output)
        self.prompt_logprobs.update(result.prompt_logprobs)
        if result.stats is not None:
            self.num_preempted += result.stats.num_preempted
            self.num_prefill_tokens += result.stats.num_prefill_tokens
            self.num_decode_tokens += result.stats.num_decode_tokens
        self.most_running = max(self.most_running, self.engine.scheduler.num_running)
        return result.outputs

    def finish(self) -> None:
        """Step until nothing is left."""
        for _ in range(_MOST_STEPS):
            if not self.engine.has_work:
                break
            self.step()
        assert not self.engine.has_work, "the engine never came to an end"
        self.check_idle()

    def check_idle(self) -> None:
        """Nothing runs, so every block must be free or evictable."""
        stats = self.engine.stats()
        assert (stats.num_running, stats.num_waiting) == (0, 0)
        assert stats.num_free_blocks + stats.num_evictable_blocks == stats.num_blocks

    def run(self, requests: Iterable[Request]) -> dict[tuple[str, int], Answer]:
        """Run requests that all arrive at once."""
        for request in requests:
            self.add(request)
        self.finish()
        return self.answers

    def run_staggered(
        self, requests: Sequence[Request], *, gaps: Sequence[int] = (0, 3, 0, 1, 7)
    ) -> Mapping[tuple[str, int], Answer]:
        """Run requests that arrive one after another, with so many steps in between, in turn."""
        for index, request in enumerate(requests):
            self.add(request)
            for _ in range(gaps[index % len(gaps)]):
                if self.engine.has_work:
                    self.step()
        self.finish()
        return self.answers
