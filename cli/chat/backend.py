"""The seam between a chat and what answers it: a model in this process, or a server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

Settings: TypeAlias = dict[str, Any]
"""Values by the names of `settings.SETTINGS`; what is absent is the model's default."""

WireMessages: TypeAlias = Sequence[Mapping[str, Any]]
"""Messages in the shape of OpenAI's chat API."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts of one answer; ``None`` where nobody said."""

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of an answer."""

    text: str
    is_reasoning: bool = False


@dataclass(frozen=True, slots=True)
class End:
    """The last event of an answer."""

    finish_reason: str
    usage: Usage


class ChatBackend(Protocol):
    """What answers."""

    @property
    def model(self) -> str:
        """Name of the model that answers now."""

    @property
    def max_model_len(self) -> int | None:
        """Most tokens of prompt and answer together, if known."""

    def ask(self, messages: WireMessages, settings: Settings) -> AsyncGenerator[Delta | End, None]:
        """Answer a conversation. Closing the generator stops the answer.

        Raises:
            PippinError: It is refused, or breaks off.
        """

    async def count_tokens(self, messages: WireMessages, settings: Settings) -> int | None:
        """Tokens of a conversation as a prompt; ``None`` if the server cannot count.

        Raises:
            PippinError: It cannot be made a prompt.
        """

    def known_models(self) -> Sequence[str]:
        """Names to choose from."""

    async def switch(self, model: str) -> None:
        """Answer with another model from now on; with the old one if it cannot be had.

        Raises:
            PippinError: It cannot be had.
        """

    async def close(self) -> None:
        """Give back what it holds."""
