"""A model in this process, for programs with an event loop."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeAlias, Unpack, cast

from ..config import EngineConfig
from ..engine.async_engine import AsyncEngine
from ..engine.client import Generation, ModelCard
from ..engine.stats import EngineStats
from ..errors import (
    EngineStoppedError,
    GenerationError,
    InvalidRequestError,
    UnsupportedFeatureError,
)
from ..messages import Prompt
from ..models.progress import Progress
from ..reply_rules import ReplyRules, ResponseFormat
from ..sampling_params import SamplingParams
from .answer import Answer, AnswerBuilder, StreamEvent
from .conversation import ChatOptions, Conversation, to_chat, to_format
from .prompts import TextOrTokens, is_conversation, to_conversations, to_prompt, to_prompts
from .sampling import Sampling, to_params

# What reads one prompt: it may be wrong, without the others being so.
_Ask: TypeAlias = Callable[[], tuple[Prompt, ReplyRules | None]]


class AsyncLLM:
    """A loaded model. Make one with `load`, use it from one event loop, and `close` it.

    Calls run side by side and are batched; more than the engine's queue holds wait for their turn.
    Leaving a call or a stream before its end, by a break or by cancellation, aborts what runs for
    it.

    Where sampling settings are taken, a dictionary names some and the model's own advice fills in
    the rest; a `SamplingParams` is taken as it is.
    """

    def __init__(self, engine: AsyncEngine, *, max_in_flight: int = 512) -> None:
        self._engine = engine
        self._ids = itertools.count()
        self._max_in_flight = max_in_flight
        self._slots = asyncio.Semaphore(max_in_flight)
        self._turn = asyncio.Lock()

    @classmethod
    async def load(
        cls,
        model: str = "demo",
        config: EngineConfig | None = None,
        *,
        progress: Progress | None = None,
    ) -> AsyncLLM:
        """Fetch a model where that is needed, load it and start its engine.

        Args:
            model: ``demo``, a folder, a ``.gguf`` file, or a hub id.
            progress: Told what happens meanwhile, from other threads.

        Raises:
            PippinError: It could not be fetched or loaded, or does not fit.
        """
        config = config or EngineConfig()
        loading: Future[AsyncEngine] = Future()
        loading.set_running_or_notify_cancel()  # it cannot be stopped

        def start() -> None:
            try:
                loading.set_result(AsyncEngine.start(model, config, progress=progress))
            except BaseException as error:
                loading.set_exception(error)

        # Of its own and daemonic: neither the loop's end nor the process's waits for it.
        threading.Thread(target=start, name="pippin-load", daemon=True).start()
        try:
            engine = await asyncio.wrap_future(loading)
        except asyncio.CancelledError:
            loading.add_done_callback(_close_loaded)
            raise
        # For the engine one counts twice for a moment, as on its way and as waiting.
        return cls(engine, max_in_flight=max(1, config.scheduler.max_queue // 2))

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Unload. Whatever runs ends with `EngineStoppedError`. Harmless twice."""
        await asyncio.to_thread(self._engine.close)

    @property
    def model_card(self) -> ModelCard:
        """What can be said about the model."""
        return self._engine.model_card

    def stats(self) -> EngineStats:
        """The engine's numbers as of its last step."""
        return self._engine.stats()

    async def generate(
        self,
        prompts: TextOrTokens | Sequence[TextOrTokens],
        params: SamplingParams | Sampling | None = None,
        *,
        n: int = 1,
        response_format: ResponseFormat | Mapping[str, Any] | None = None,
        return_errors: bool = False,
    ) -> list[Answer]:
        """Continue texts, all of them together.

        Args:
            prompts: One or more, each a text or token ids.
            n: Answers to each.
            response_format: What each must be: a `ResponseFormat`, or OpenAI's shape of it.
            return_errors: Whether the answer to a prompt that fails says so. Else the first failure
                ends all.

        Returns:
            One answer a prompt, in order, also if there is one prompt only.

        Raises:
            InvalidRequestError: A prompt or a setting cannot be served.
            GenerationError: The engine failed on a prompt.
            OverloadedError: `n` is more than the engine's queue holds.
            EngineStoppedError: The model is closed.
        """
        rules = _plain_rules(response_format)
        asks = [partial(_as_given, prompt, rules) for prompt in to_prompts(prompts)]
        return await self._answer_all(asks, params, n=n, return_errors=return_errors)

    async def chat(
        self,
        conversations: Conversation | Sequence[Conversation],
        params: SamplingParams | Sampling | None = None,
        *,
        n: int = 1,
        return_errors: bool = False,
        **options: Unpack[ChatOptions],
    ) -> list[Answer]:
        """Answer conversations, all of them together; else as `generate`.

        Args:
            conversations: One or more, each a list of messages, as `Message` or as OpenAI shapes
                them, or one text of the user.
        """
        asks = [partial(to_chat, it, options) for it in to_conversations(conversations)]
        return await self._answer_all(asks, params, n=n, return_errors=return_errors)

    def stream_generate(
        self,
        prompt: TextOrTokens,
        params: SamplingParams | Sampling | None = None,
        *,
        response_format: ResponseFormat | Mapping[str, Any] | None = None,
    ) -> AsyncGenerator[StreamEvent, None]:
        """Continue one text, as it comes; see `generate`.

        Whoever may leave early should do so under `contextlib.aclosing`, to have the request
        aborted at once and not when the iterator is collected.
        """
        return self._stream(
            to_prompt(prompt), _plain_rules(response_format), self._settings(params)
        )

    def stream_chat(
        self,
        conversation: Conversation,
        params: SamplingParams | Sampling | None = None,
        **options: Unpack[ChatOptions],
    ) -> AsyncGenerator[StreamEvent, None]:
        """Answer one conversation, as it comes; see `chat` and `stream_generate`."""
        prompt, rules = to_chat(conversation, options)
        return self._stream(prompt, rules, self._settings(params))

    async def embed(self, texts: str | Sequence[str]) -> list[list[float]]:
        """Vectors of texts, one each.

        Raises:
            UnsupportedFeatureError: The model has none: none that is served today has.
        """
        raise UnsupportedFeatureError(
            f"The model '{self.model_card.model_id}' writes text; it makes no embeddings.",
            param="model",
        )

    async def count_tokens(
        self, prompt: TextOrTokens | Conversation, **options: Unpack[ChatOptions]
    ) -> int:
        """Tokens that a prompt takes: of a text as `generate` runs it, of messages as `chat` does.

        Raises:
            InvalidRequestError: The prompt cannot be tokenized.
            EngineStoppedError: The model is closed.
        """
        if not self._engine.is_healthy():
            raise EngineStoppedError("The engine has stopped.")
        if is_conversation(prompt):
            only: Prompt = to_chat(prompt, options)[0]
        else:
            only = to_prompt(cast("TextOrTokens", prompt))
        return len(await self._engine.tokenize(only))

    def _settings(self, given: SamplingParams | Sampling | None) -> SamplingParams:
        return to_params(given, self.model_card.default_sampling)

    async def _answer_all(
        self,
        asks: Sequence[_Ask],
        params: SamplingParams | Sampling | None,
        *,
        n: int,
        return_errors: bool,
    ) -> list[Answer]:
        settings = self._settings(params)

        async def answer(index: int, ask: _Ask) -> Answer:
            try:
                return await self._answer(*ask(), settings, n)
            except (InvalidRequestError, GenerationError) as error:
                if return_errors:
                    return Answer(finish_reason="error", error=error)
                if len(asks) > 1:
                    error.add_note(f"This is about number {index} of {len(asks)}, from 0.")
                raise

        tasks = [asyncio.ensure_future(answer(*item)) for item in enumerate(asks)]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(
        self, prompt: Prompt, rules: ReplyRules | None, params: SamplingParams, n: int
    ) -> Answer:
        async with self._submitted(prompt, rules, params, n) as generation:
            builders = [_builder(generation, params) for _ in range(n)]
            async for outputs in generation:
                for output in outputs:
                    builders[output.index].feed(output)
        first, *others = builders
        return first.answer([other.answer() for other in others])

    async def _stream(
        self, prompt: Prompt, rules: ReplyRules | None, params: SamplingParams
    ) -> AsyncGenerator[StreamEvent, None]:
        async with self._submitted(prompt, rules, params) as generation:
            builder = _builder(generation, params)
            async for outputs in generation:
                for output in outputs:
                    for event in builder.feed(output):
                        yield event
            yield builder.answer()

    @asynccontextmanager
    async def _submitted(
        self, prompt: Prompt, rules: ReplyRules | None, params: SamplingParams, n: int = 1
    ) -> AsyncIterator[Generation]:
        if n < 1:
            raise InvalidRequestError(f"n must be at least 1, got {n}.", param="n")
        async with self._room(n):
            request_id = f"llm-{next(self._ids)}"
            generation = await self._engine.submit(
                prompt, params, request_id=request_id, num_sequences=n, rules=rules
            )
            try:
                yield generation
            finally:
                generation.abort()

    @asynccontextmanager
    async def _room(self, num_sequences: int) -> AsyncIterator[None]:
        num_taken = 0
        try:
            # One takes at a time: two that had half of what they need would wait for ever.
            async with self._turn:
                while num_taken < min(num_sequences, self._max_in_flight):
                    await self._slots.acquire()
                    num_taken += 1
            yield
        finally:
            for _ in range(num_taken):
                self._slots.release()


def _close_loaded(loading: Future[AsyncEngine]) -> None:
    if loading.exception() is None:
        loading.result().close()


def _plain_rules(response_format: ResponseFormat | Mapping[str, Any] | None) -> ReplyRules | None:
    form = to_format(response_format)
    return None if form is None else ReplyRules(response_format=form)


def _as_given(prompt: Prompt, rules: ReplyRules | None) -> tuple[Prompt, ReplyRules | None]:
    return prompt, rules


def _builder(generation: Generation, params: SamplingParams) -> AnswerBuilder:
    return AnswerBuilder(generation, with_logprobs=params.num_logprobs is not None)
