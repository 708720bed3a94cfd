"""What a server or a chat program needs from an engine. The one seam between HTTP and core."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..messages import Prompt
from ..parsing.output_parser import OutputParser
from ..reply_rules import ReplyRules
from ..request import PositionLogprobs, RequestOutput
from ..sampling_params import SamplingParams
from .stats import EngineStats


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What can be said about the model that an engine serves.

    Attributes:
        model_id: Name on the wire.
        aliases: Other names that are answered.
        created_unix: When it was loaded, in seconds since the epoch.
        max_model_len: Most tokens of prompt and answer together.
        default_sampling: Values of the model's ``generation_config.json``, keyed by
            `SamplingParams` field; a request field that is absent takes its value from here, else
            from the API's own default.
        chat_template: Its text; empty if there is none.
        details: Free-form facts for ``/health`` and panels (device, dtype, attention path, ...).
    """

    model_id: str
    aliases: tuple[str, ...] = ()
    created_unix: int
    max_model_len: int
    vocab_size: int
    default_sampling: Mapping[str, float] = field(default_factory=dict)
    chat_template: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


class Generation(Protocol):
    """A submitted request. Iterate over it once, and `abort` it when leaving early."""

    @property
    def prompt_token_ids(self) -> Sequence[int]:
        """The prompt as it runs."""

    @property
    def prompt_logprobs(self) -> Sequence[PositionLogprobs | None] | None:
        """One entry per prompt token, if asked for; the first token has none.

        Complete when the first output has arrived.
        """

    def make_parser(self) -> OutputParser:
        """What reads the text of one answer; each answer needs its own."""

    def __aiter__(self) -> AsyncIterator[Sequence[RequestOutput]]:
        """Yield whatever has arrived since the last time: one or more outputs, in order.

        Ends after the last answer's last output.

        Raises:
            EngineStoppedError: The engine went away in the middle.
        """

    def abort(self) -> None:
        """Give up: the engine frees what the request holds within one step. Harmless twice."""


class EngineClient(Protocol):
    """An engine, seen from an event loop."""

    @property
    def model_card(self) -> ModelCard:
        """The model that is served."""

    async def submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        request_id: str,
        num_sequences: int = 1,
        cache_salt: str = "",
        rules: ReplyRules | None = None,
    ) -> Generation:
        """Render, tokenize, check and queue a request.

        Args:
            rules: What the answer must be made of; ``None`` for plain text that nobody parses.

        Raises:
            InvalidRequestError: The prompt or the parameters cannot be served.
            OverloadedError: The waiting queue is full.
            EngineStoppedError: The engine does not run.
        """

    async def tokenize(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, exactly as `submit` would run them."""

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """Text of token ids.

        Raises:
            InvalidRequestError: An id lies outside the vocabulary.
        """

    async def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        """Each token decoded alone."""

    def stats(self) -> EngineStats:
        """Numbers as of the last step."""

    def is_healthy(self) -> bool:
        """Whether the engine thread runs."""
