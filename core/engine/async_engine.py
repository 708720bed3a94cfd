"""The bridge between event loops and the engine thread. The one file that knows both worlds.

The engine thread loads the model and owns every mlx object from then on. Commands reach it through
an inbox; outputs go back once per step, all streams in one call into the loop.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from ..config import EngineConfig
from ..errors import EngineStoppedError, OverloadedError
from ..messages import Prompt
from ..models.progress import NullProgress, Progress
from ..reply_rules import ReplyRules
from ..request import Request
from ..sampling_params import SamplingParams
from .async_generation import AsyncGeneration
from .client import ModelCard
from .engine import Engine, StepResult
from .model_card import load_engine
from .prompt_builder import PromptBuilder
from .stats import EngineStats, StepObserver, StepStats

logger = logging.getLogger(__name__)

_TOKENIZER_THREADS = 2


@dataclass(frozen=True, slots=True)
class _Add:
    request: Request


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


_Command: TypeAlias = _Add | _Abort | _Stop


class AsyncEngine:
    """An engine on its own thread. Make one with `start`."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._inbox: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._executor = ThreadPoolExecutor(_TOKENIZER_THREADS, thread_name_prefix="pippin-text")
        self._generations: dict[str, AsyncGeneration] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._observers: list[StepObserver] = []
        self._stats = EngineStats()
        self._num_adding = 0
        self._failure: BaseException | None = None
        self._is_stopping = False
        self._thread: threading.Thread | None = None
        self._card: ModelCard | None = None
        self._prompts: PromptBuilder | None = None

    @classmethod
    def start(
        cls,
        source: str,
        config: EngineConfig,
        *,
        served_model_name: str | None = None,
        progress: Progress | None = None,
    ) -> AsyncEngine:
        """Load a model on a new engine thread and wait until it can serve.

        Args:
            source: ``demo``, a folder, a ``.gguf`` file, or a hub id.

        Raises:
            PippinError: The model could not be fetched or loaded, or does not fit.
        """
        engine = cls(config)
        ready: Future[None] = Future()
        engine._thread = threading.Thread(
            target=engine._run,
            args=(source, served_model_name, progress or NullProgress(), ready),
            name="pippin-engine",
            daemon=True,
        )
        engine._thread.start()
        # The process must not take mlx down while the thread is in it.
        atexit.register(engine.close)
        try:
            ready.result()
        except Exception:
            atexit.unregister(engine.close)
            raise
        return engine

    @property
    def model_card(self) -> ModelCard:
        """The model that is served."""
        assert self._card is not None
        return self._card

    def observe(self, observer: StepObserver) -> None:
        """Call ``observer`` on the engine thread after every step."""
        self._observers.append(observer)

    def stats(self) -> EngineStats:
        """Numbers as of the last step."""
        return self._stats

    def is_healthy(self) -> bool:
        """Whether the engine thread runs."""
        return self._thread is not None and self._thread.is_alive() and self._failure is None

    async def submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        request_id: str,
        num_sequences: int = 1,
        cache_salt: str = "",
        rules: ReplyRules | None = None,
    ) -> AsyncGeneration:
        """Render, tokenize, check and queue a request; see `EngineClient.submit`."""
        self._check_running()
        arrival_at = time.monotonic()
        self._check_queue(num_sequences)
        loop = asyncio.get_running_loop()
        assert self._prompts is not None
        builder = self._prompts
        request = await loop.run_in_executor(
            self._executor,
            lambda: builder.build(
                prompt,
                params,
                request_id=request_id,
                num_sequences=num_sequences,
                cache_salt=cache_salt,
                arrival_at=arrival_at,
                rules=rules,
            ),
        )
        self._check_running()
        self._check_queue(num_sequences)
        self._loop = loop
        generation = AsyncGeneration(request, lambda: self._inbox.put(_Abort(request_id)))
        self._generations[request_id] = generation
        self._num_adding += num_sequences
        self._inbox.put(_Add(request))
        return generation

    async def tokenize(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, exactly as `submit` would run them."""
        assert self._prompts is not None
        builder = self._prompts
        loop = asyncio.get_running_loop()
        return list(await loop.run_in_executor(self._executor, builder.tokenize, prompt))

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, special tokens included."""
        assert self._prompts is not None
        builder = self._prompts
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, builder.detokenize, token_ids)

    async def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        """Each token decoded alone."""
        assert self._prompts is not None
        return self._prompts.token_strings(token_ids)

    def close(self) -> None:
        """Stop the engine thread; running requests end with `EngineStoppedError`."""
        self._is_stopping = True
        self._inbox.put(_Stop())
        if self._thread is not None:
            self._thread.join()
        # What is in it runs on, only to find the engine stopped.
        self._executor.shutdown(wait=False)
        atexit.unregister(self.close)

    def _check_running(self) -> None:
        if self._failure is not None:
            raise EngineStoppedError("The engine has stopped.") from self._failure
        if self._is_stopping or not self.is_healthy():
            raise EngineStoppedError("The engine has stopped.")

    def _check_queue(self, num_sequences: int) -> None:
        limit = self._config.scheduler.max_queue
        if self._stats.num_waiting + self._num_adding + num_sequences > limit:
            raise OverloadedError(
                f"The waiting queue is full ({limit} sequences); try again later."
            )

    # Below here: the engine thread.

    def _run(
        self, source: str, served_model_name: str | None, progress: Progress, ready: Future[None]
    ) -> None:
        try:
            served = load_engine(
                source, self._config, served_model_name=served_model_name, progress=progress
            )
        except BaseException as error:
            self._failure = error
            ready.set_exception(error)
            return
        self._card = served.card
        self._prompts = served.prompts
        self._stats = served.engine.stats()
        ready.set_result(None)
        try:
            self._serve(served.engine)
        except BaseException as error:
            logger.exception("engine thread died")
            self._failure = error
        finally:
            served.engine.close()
            self._publish_end()

    def _serve(self, engine: Engine) -> None:
        may_sleep = False
        while self._take_commands(engine, may_sleep=may_sleep):
            if engine.has_work:
                result = engine.step()
                # Before publishing: whoever sees the last output may look at the numbers next.
                self._stats = engine.stats()
                self._publish(result)
            else:
                may_sleep = not engine.use_idle_time()

    def _take_commands(self, engine: Engine, *, may_sleep: bool) -> bool:
        """Carry out all commands that are there, after a sleep if there is no work."""
        took_any = False
        while True:
            try:
                is_idle = may_sleep and not (engine.has_work or took_any)
                command = self._inbox.get(block=is_idle)
            except queue.Empty:
                break
            took_any = True
            match command:
                case _Add(request):
                    self._add(engine, request)
                case _Abort(request_id):
                    ended = engine.abort(request_id)
                    self._tell_observers(StepStats(finished=tuple(ended)))
                    self._call_loop(partial(self._generations.pop, request_id, None))
                case _Stop():
                    return False
        if took_any:
            self._stats = engine.stats()
        return True

    def _add(self, engine: Engine, request: Request) -> None:
        try:
            engine.add(request)
        except OverloadedError as refusal:
            error = refusal  # the name of an except clause is gone when the loop calls
            self._call_loop(lambda: self._fail(request.request_id, error))
        self._call_loop(lambda: self._added(request.num_sequences))

    def _publish(self, result: StepResult) -> None:
        if result.stats is not None:
            self._tell_observers(result.stats)
        if result.outputs:
            self._call_loop(lambda: self._deliver(result))

    def _tell_observers(self, stats: StepStats) -> None:
        for observer in self._observers:
            observer(stats)

    def _publish_end(self) -> None:
        self._call_loop(self._fail_all)

    def _call_loop(self, callback: Callable[[], object]) -> None:
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        try:
            loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the loop closed in between: nobody is left to tell
            logger.debug("event loop is gone")

    # Below here: the event loop again, called from the engine thread.

    def _added(self, num_sequences: int) -> None:
        self._num_adding -= num_sequences

    def _deliver(self, result: StepResult) -> None:
        for request_id, logprobs in result.prompt_logprobs.items():
            if (generation := self._generations.get(request_id)) is not None:
                generation.set_prompt_logprobs(logprobs)
        for output in result.outputs:
            generation = self._generations.get(output.request_id)
            if generation is None:
                continue
            generation.deliver(output)
            if output.finish_reason is not None and generation.is_done:
                del self._generations[output.request_id]

    def _fail(self, request_id: str, error: Exception) -> None:
        if (generation := self._generations.pop(request_id, None)) is not None:
            generation.fail(error)

    def _fail_all(self) -> None:
        error = EngineStoppedError("The engine has stopped.")
        error.__cause__ = self._failure
        for request_id in list(self._generations):
            self._fail(request_id, error)
