"""A model in this process answers."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import asdict, replace

from pippin.core.config import EngineConfig, Speculation
from pippin.core.errors import PippinError
from pippin.core.llm import Answer, AsyncLLM, ChatOptions, Sampling
from pippin.core.models.source import resolve_source
from pippin.core.parsing.events import ContentDelta, ReasoningDelta
from pippin.core.sampling_params import SamplingParams

from ..completion import complete_models
from ..errors import INTERRUPTED
from ..load_display import LoadDisplay
from .backend import Delta, End, Settings, Usage, WireMessages
from .screen import Screen


class LocalBackend:
    """A `ChatBackend` with an engine of its own. `switch` loads the first model, too."""

    def __init__(self, config: EngineConfig, screen: Screen) -> None:
        self._config = config
        self._screen = screen
        self._llm: AsyncLLM | None = None
        self._source = ""
        self._first = ""

    @property
    def model(self) -> str:
        """Its name, as a server would have it."""
        return self._loaded().model_card.model_id

    @property
    def max_model_len(self) -> int | None:
        """As loaded."""
        return self._loaded().model_card.max_model_len

    async def ask(
        self, messages: WireMessages, settings: Settings
    ) -> AsyncGenerator[Delta | End, None]:
        """See `ChatBackend.ask`."""
        sampling, options = _split(settings)
        events = self._loaded().stream_chat(messages, sampling, **options)
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Answer):
                    yield End(event.finish_reason, Usage(**asdict(event.usage)))
                elif isinstance(event, ContentDelta | ReasoningDelta):
                    yield Delta(event.text, isinstance(event, ReasoningDelta))

    async def count_tokens(self, messages: WireMessages, settings: Settings) -> int:
        """See `ChatBackend.count_tokens`."""
        _, options = _split(settings)
        return await self._loaded().count_tokens(messages, **options)

    def known_models(self) -> Sequence[str]:
        """Those that need not be fetched."""
        return complete_models("")

    async def switch(self, model: str) -> None:
        """Load a model in place of the one that is loaded: both may not fit."""
        resolve_source(model)
        old = self._source
        await self.close()
        try:
            await self._load(model)
        except PippinError:
            if old:
                await self._load(old)
            raise
        except asyncio.CancelledError:
            # Nothing can stop a load, and an orderly exit would wait for it.
            self._screen.say("interrupted")
            sys.stdout.flush()
            os._exit(INTERRUPTED)

    async def close(self) -> None:
        """Unload."""
        llm, self._llm = self._llm, None
        if llm is not None:
            await llm.close()

    async def _load(self, model: str) -> None:
        self._first = self._first or model
        config = self._config
        if model != self._first and config.speculation not in (Speculation.OFF, Speculation.NGRAM):
            # A draft model or head goes with the model that it was named for.
            config = replace(config, draft_model=None, speculation=Speculation.OFF)
        with LoadDisplay(self._screen.talk) as display:
            self._llm = await AsyncLLM.load(model, config, progress=display)
        self._source = model

    def _loaded(self) -> AsyncLLM:
        if self._llm is None:
            raise PippinError("no model is loaded; /model NAME loads one")
        return self._llm


def _split(settings: Settings) -> tuple[Sampling, ChatOptions]:
    sampling = {name: value for name, value in settings.items() if name in SamplingParams.__slots__}
    options: ChatOptions = {}
    if "reasoning_effort" in settings:
        options["reasoning_effort"] = settings["reasoning_effort"]
    if "thinking_budget" in settings:
        options["thinking_budget"] = settings["thinking_budget"]
    if "thinking" in settings:
        options["template_kwargs"] = {"enable_thinking": settings["thinking"]}
    return sampling, options  # type: ignore[return-value]  # checked when they were set
