"""A model in this process, for scripts, threads and notebooks."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from typing import Any, TypeVar, Unpack

from ..config import EngineConfig
from ..engine.client import ModelCard
from ..engine.stats import EngineStats
from ..errors import EngineStoppedError
from ..models.progress import Progress
from ..reply_rules import ResponseFormat
from ..sampling_params import SamplingParams
from .answer import Answer, StreamEvent
from .async_llm import AsyncLLM
from .conversation import ChatOptions, Conversation
from .prompts import TextOrTokens
from .sampling import Sampling

T = TypeVar("T")


class LLM:
    """A loaded model; see `AsyncLLM`, whose methods these are. Any number of threads may call them.

    It runs on an event loop of its own, so that it is at home beside a running one, too. Ctrl-C
    aborts the call that waits.

    Args:
        model: ``demo``, a folder, a ``.gguf`` file, or a hub id.
        progress: Told what happens while it loads, from other threads.

    Raises:
        PippinError: It could not be fetched or loaded, or does not fit.
    """

    def __init__(
        self,
        model: str = "demo",
        config: EngineConfig | None = None,
        *,
        progress: Progress | None = None,
    ) -> None:
        ready: Future[AsyncLLM] = Future()
        self._lock = threading.Lock()
        self._is_closed = False
        self._closing = asyncio.Event()
        loading = AsyncLLM.load(model, config, progress=progress)
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(loading, ready)), name="pippin-llm", daemon=True
        )
        self._thread.start()
        self._llm = ready.result()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unload. Whatever runs ends with `EngineStoppedError`. Harmless twice."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    @property
    def model_card(self) -> ModelCard:
        """See `AsyncLLM.model_card`."""
        return self._llm.model_card

    def stats(self) -> EngineStats:
        """See `AsyncLLM.stats`."""
        return self._llm.stats()

    def generate(
        self,
        prompts: TextOrTokens | Sequence[TextOrTokens],
        params: SamplingParams | Sampling | None = None,
        *,
        n: int = 1,
        response_format: ResponseFormat | Mapping[str, Any] | None = None,
        return_errors: bool = False,
    ) -> list[Answer]:
        """See `AsyncLLM.generate`."""
        return self._run(
            self._llm.generate(
                prompts,
                params,
                n=n,
                response_format=response_format,
                return_errors=return_errors,
            )
        )

    def chat(
        self,
        conversations: Conversation | Sequence[Conversation],
        params: SamplingParams | Sampling | None = None,
        *,
        n: int = 1,
        return_errors: bool = False,
        **options: Unpack[ChatOptions],
    ) -> list[Answer]:
        """See `AsyncLLM.chat`."""
        return self._run(
            self._llm.chat(conversations, params, n=n, return_errors=return_errors, **options)
        )

    def stream_generate(
        self,
        prompt: TextOrTokens,
        params: SamplingParams | Sampling | None = None,
        *,
        response_format: ResponseFormat | Mapping[str, Any] | None = None,
    ) -> Generator[StreamEvent, None, None]:
        """See `AsyncLLM.stream_generate`. Closing the iterator, or dropping it, aborts."""
        return self._iterate(
            self._llm.stream_generate(prompt, params, response_format=response_format)
        )

    def stream_chat(
        self,
        conversation: Conversation,
        params: SamplingParams | Sampling | None = None,
        **options: Unpack[ChatOptions],
    ) -> Generator[StreamEvent, None, None]:
        """See `AsyncLLM.stream_chat`. Closing the iterator, or dropping it, aborts."""
        return self._iterate(self._llm.stream_chat(conversation, params, **options))

    def embed(self, texts: str | Sequence[str]) -> list[list[float]]:
        """See `AsyncLLM.embed`."""
        return self._run(self._llm.embed(texts))

    def count_tokens(
        self, prompt: TextOrTokens | Conversation, **options: Unpack[ChatOptions]
    ) -> int:
        """See `AsyncLLM.count_tokens`."""
        return self._run(self._llm.count_tokens(prompt, **options))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        running = self._start(work)
        try:
            return running.result()
        finally:
            running.cancel()  # for whoever was interrupted while waiting

    def _iterate(
        self, events: AsyncGenerator[StreamEvent, None]
    ) -> Generator[StreamEvent, None, None]:
        arrived: queue.SimpleQueue[StreamEvent | Future[None]] = queue.SimpleQueue()

        async def pump() -> None:
            async with aclosing(events):
                async for event in events:
                    arrived.put(event)

        running = self._start(pump())
        running.add_done_callback(arrived.put)
        try:
            while not isinstance(event := arrived.get(), Future):
                yield event
            event.result()
        finally:
            running.cancel()

    def _start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        with self._lock:
            if not self._is_closed:
                return asyncio.run_coroutine_threadsafe(work, self._loop)
        work.close()
        raise EngineStoppedError("The engine has stopped.")

    async def _serve(self, loading: Coroutine[Any, Any, AsyncLLM], ready: Future[AsyncLLM]) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            llm = await loading
        except BaseException as error:
            ready.set_exception(error)
            return
        ready.set_result(llm)
        async with llm:
            await self._closing.wait()
        # What ran has its error by now, and only needs its turn to say so.
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)
