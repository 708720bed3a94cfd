"""An `EngineClient` that plays a script, so that tests decide what happens and when.

Tokens are UTF-8 bytes. All answers of a request get the same script. Safe to steer from another
thread than the event loop's: `release`, and the events to wait on.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from pippin.core.engine.client import ModelCard
from pippin.core.engine.stats import EngineStats
from pippin.core.errors import InvalidRequestError
from pippin.core.messages import ChatPrompt, Prompt, TextPrompt
from pippin.core.parsing.events import ContentDelta, ReasoningDelta, ReplyEvent
from pippin.core.parsing.output_parser import OutputParser, Piece
from pippin.core.reply_rules import ReplyRules
from pippin.core.request import FinishReason, PositionLogprobs, RequestOutput, TokenLogprob
from pippin.core.sampling_params import SamplingParams


class Hold:
    """Wait here until the test calls `FakeEngine.release`."""


@dataclass(frozen=True)
class Fail:
    """The answer ends with ``FinishReason.ERROR``."""

    message: str


@dataclass(frozen=True)
class Together:
    """Texts that arrive at once: one yield with several outputs of each answer."""

    texts: Sequence[str]


# An event is played as one token, and read back by the answer's parser.
Step = str | ReplyEvent | Together | Hold | Fail | Exception
_EVENT = "\0event"


def make_card(**changes: object) -> ModelCard:
    """A card of a small model called ``tiny/model``."""
    fields = {
        "model_id": "tiny/model",
        "aliases": ("tiny",),
        "created_unix": 1_700_000_000,
        "max_model_len": 4096,
        "vocab_size": 256,
        "details": {"device": "fake"},
    }
    return ModelCard(**{**fields, **changes})  # type: ignore[arg-type]


@dataclass
class Submission:
    """One call of `FakeEngine.submit`."""

    prompt: Prompt
    params: SamplingParams
    request_id: str
    num_sequences: int
    cache_salt: str
    rules: ReplyRules | None
    generation: FakeGeneration = field(init=False)


class FakeEngine:
    """Plays ``script`` for every request, then ends each answer with ``finish_reason``.

    Attributes:
        submissions: In order.
        submitted: Set at the first submission.
        holding: Set when a generation has come to a `Hold`.
        aborted: Set at the first abort that came before the end of the script.
    """

    def __init__(
        self,
        script: Sequence[Step] = ("Hel", "lo"),
        *,
        card: ModelCard | None = None,
        finish_reason: FinishReason = FinishReason.STOP,
        submit_error: Exception | None = None,
    ) -> None:
        self.script = script
        self.card = card or make_card()
        self.finish_reason = finish_reason
        self.submit_error = submit_error
        self.num_cached_tokens = 0
        self.logprob = -0.5
        self.engine_stats = EngineStats(
            num_running=1, num_waiting=2, num_blocks=10, num_free_blocks=4, num_evictable_blocks=1
        )
        self.healthy = True
        self.submissions: list[Submission] = []
        self.submitted = threading.Event()
        self.holding = threading.Event()
        self.aborted = threading.Event()
        self._released: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def model_card(self) -> ModelCard:
        """As given."""
        return self.card

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
        """Record the call and begin the script, or raise ``submit_error``.

        Raises:
            InvalidRequestError: The prompt is empty.
        """
        self._loop = asyncio.get_running_loop()
        self._released = self._released or asyncio.Event()
        submission = Submission(prompt, params, request_id, num_sequences, cache_salt, rules)
        submission.generation = FakeGeneration(self, submission)
        self.submissions.append(submission)
        self.submitted.set()
        if self.submit_error is not None:
            raise self.submit_error
        if not submission.generation.prompt_token_ids:
            raise InvalidRequestError("The prompt is empty.", param="prompt")
        return submission.generation

    async def tokenize(self, prompt: Prompt) -> list[int]:
        """Bytes of the text; of a conversation, of its texts in lines."""
        return _tokens_of(prompt)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """The other way."""
        if any(not 0 <= token_id < 256 for token_id in token_ids):
            raise InvalidRequestError("outside the vocabulary", param="tokens")
        return bytes(token_ids).decode(errors="replace")

    async def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        """Each byte alone."""
        return [bytes([token_id]).decode(errors="replace") for token_id in token_ids]

    def stats(self) -> EngineStats:
        """As set."""
        return self.engine_stats

    def is_healthy(self) -> bool:
        """As set."""
        return self.healthy

    def release(self) -> None:
        """Let every `Hold` pass, from any thread."""
        assert self._loop is not None
        assert self._released is not None
        self._loop.call_soon_threadsafe(self._released.set)

    async def wait_for_release(self) -> None:
        """What a generation does at a `Hold`."""
        assert self._released is not None
        self.holding.set()
        await self._released.wait()


class _EventParser:
    def __init__(self, script: Sequence[Step]) -> None:
        self._script = script
        self._last: ReplyEvent | None = None
        self.pieces: Sequence[Piece] = ()

    @property
    def is_reasoning(self) -> bool:
        """Whether the last event was reasoning."""
        return isinstance(self._last, ReasoningDelta)

    def feed(self, text: str) -> list[ReplyEvent]:
        """See `OutputParser.feed`."""
        if text.startswith(_EVENT):
            event = self._script[int(text.removeprefix(_EVENT))]
            assert isinstance(event, ReplyEvent)
            self._last = event
        elif text:
            self._last = ContentDelta(text)
        else:
            return []
        is_content, is_reasoning = isinstance(self._last, ContentDelta), self.is_reasoning
        self.pieces = [Piece(text, is_content, is_reasoning)]
        return [self._last]

    def close(self) -> list[ReplyEvent]:
        """Nothing is held."""
        self.pieces = ()
        return []


class FakeGeneration:
    """One play of the script."""

    def __init__(self, engine: FakeEngine, submission: Submission) -> None:
        self._engine = engine
        self._submission = submission
        self._ended = False
        self.num_aborts = 0
        self.prompt_token_ids: Sequence[int] = _tokens_of(submission.prompt)
        self.prompt_logprobs: Sequence[PositionLogprobs | None] | None = None
        if submission.params.num_prompt_logprobs is not None:
            self.prompt_logprobs = self._score_prompt(submission.params.num_prompt_logprobs)

    def make_parser(self) -> OutputParser:
        """Reads the events of the script."""
        return _EventParser(self._engine.script)

    def abort(self) -> None:
        """Count it; before the script's end also tell the engine's watcher."""
        self.num_aborts += 1
        if not self._ended:
            self._engine.aborted.set()

    async def __aiter__(self) -> AsyncIterator[Sequence[RequestOutput]]:
        """Play."""
        num_tokens = 0
        num_chars = 0
        max_tokens = self._submission.params.max_tokens
        for step in self._engine.script:
            if max_tokens is not None and num_tokens >= max_tokens:
                break
            if isinstance(step, Hold):
                await self._engine.wait_for_release()
            elif isinstance(step, Exception):
                self._ended = True
                raise step
            elif isinstance(step, Fail):
                self._ended = True
                yield self._last(FinishReason.ERROR, num_tokens, step.message)
                return
            else:
                outputs: list[RequestOutput] = []
                for text in step.texts if isinstance(step, Together) else (step,):
                    if not isinstance(text, str):
                        text = f"{_EVENT}{self._engine.script.index(step)}"
                    num_tokens += 1
                    outputs.extend(self._outputs(text, num_tokens, num_chars))
                    num_chars += len(text)
                yield outputs
        self._ended = True
        is_cut = max_tokens is not None and num_tokens >= max_tokens
        reason = FinishReason.LENGTH if is_cut else self._engine.finish_reason
        yield self._last(reason, num_tokens)

    def _outputs(self, text: str, num_tokens: int, num_chars: int) -> list[RequestOutput]:
        num_logprobs = self._submission.params.num_logprobs
        logprobs: tuple[PositionLogprobs, ...] = ()
        if num_logprobs is not None:
            logprobs = (self._position(text, num_logprobs, num_chars),)
        return [
            RequestOutput(
                request_id=self._submission.request_id,
                index=index,
                text=text,
                token_ids=(7,),
                text_offsets=(num_chars,),
                num_output_tokens=num_tokens,
                num_cached_tokens=self._engine.num_cached_tokens,
                logprobs=logprobs,
            )
            for index in range(self._submission.num_sequences)
        ]

    def _last(
        self, reason: FinishReason, num_tokens: int, error: str | None = None
    ) -> list[RequestOutput]:
        return [
            RequestOutput(
                request_id=self._submission.request_id,
                index=index,
                text="",
                token_ids=(),
                num_output_tokens=num_tokens,
                num_cached_tokens=self._engine.num_cached_tokens,
                finish_reason=reason,
                error=error,
            )
            for index in range(self._submission.num_sequences)
        ]

    def _position(self, text: str, num_top: int, num_chars: int) -> PositionLogprobs:
        chosen = TokenLogprob(7, text, text.encode(), self._engine.logprob)
        others = [TokenLogprob(i, f"alt{i}", f"alt{i}".encode(), -1.0 - i) for i in range(20)]
        end = num_chars + len(text)
        return PositionLogprobs(chosen, (chosen, *others)[:num_top], num_chars, end)

    def _score_prompt(self, num_top: int) -> list[PositionLogprobs | None]:
        texts = [bytes([token_id]).decode(errors="replace") for token_id in self.prompt_token_ids]
        scored = [self._position(text, num_top, offset) for offset, text in enumerate(texts)]
        return [None, *scored[1:]]


def _tokens_of(prompt: Prompt) -> list[int]:
    if isinstance(prompt, TextPrompt):
        return list(prompt.text.encode())
    if isinstance(prompt, ChatPrompt):
        lines = [f"{message.role}: {message.text}\n" for message in prompt.messages]
        return list("".join(lines).encode())
    return list(prompt.token_ids)
