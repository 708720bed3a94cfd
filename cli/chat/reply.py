"""One answer: followed from its first event to its end, timed, and kept if it breaks off."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

from pippin.core.errors import PippinError

from ..console import format_duration
from .backend import Delta, End, Usage

INTERRUPTED = "interrupted"
_REFRESH_S = 1 / 12


class ReplyView(Protocol):
    """Shows an answer as it comes. Use it as a context manager."""

    def feed(self, delta: Delta) -> None:
        """Take in more of it."""

    def refresh(self) -> None:
        """Show what has come, and how long nothing has."""


@dataclass(slots=True)
class Reply:
    """What came of it.

    Attributes:
        finish_reason: As the model's side says it, ``interrupted``, or empty if it broke off.
        ttft_s: Seconds to the first text, reasoning or not.
        decode_s: From there to the last.
        error: Why it broke off.
    """

    text: str = ""
    reasoning: str = ""
    finish_reason: str = ""
    usage: Usage = field(default_factory=Usage)
    ttft_s: float | None = None
    decode_s: float = 0.0
    total_s: float = 0.0
    error: PippinError | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing came."""
        return not self.text and not self.reasoning

    @property
    def is_whole(self) -> bool:
        """Whether it came to its own end."""
        return self.error is None and self.finish_reason != INTERRUPTED

    @property
    def tokens_per_s(self) -> float | None:
        """After the first token; ``None`` if nobody counted them or they came at once."""
        count = self.usage.output_tokens
        return (count - 1) / self.decode_s if count and count > 1 and self.decode_s else None

    def stats_line(self) -> str:
        """What people want to know of it."""
        usage, facts = self.usage, list[str]()
        rate = self.tokens_per_s
        if usage.output_tokens is not None:
            counted = f"{usage.output_tokens:,} token{'' if usage.output_tokens == 1 else 's'}"
            digits = 1 if rate is not None and rate < 100 else 0
            speed = "" if rate is None else f" at {rate:,.{digits}f} tokens/s"
            facts.append(f"{counted}{speed}")
        if self.ttft_s is not None:
            facts.append(f"TTFT {format_duration(self.ttft_s)}")
        if usage.prompt_tokens is not None:
            facts.append(f"prompt {usage.prompt_tokens:,}")
        if usage.cached_tokens is not None:
            facts.append(f"cached {usage.cached_tokens:,}")
        if self.finish_reason == "length":
            facts.append("cut off at the most tokens")
        elif self.finish_reason != "stop":
            facts.append(self.finish_reason or "broken off")
        return " · ".join(facts)

    def to_json(self, model: str) -> dict[str, Any]:
        """What ``--json`` prints."""
        rate = self.tokens_per_s
        return {
            "model": model,
            "text": self.text,
            "reasoning": self.reasoning,
            "finish_reason": self.finish_reason,
            "usage": {name: getattr(self.usage, name) for name in Usage.__slots__},
            "timings": {
                "ttft_s": None if self.ttft_s is None else round(self.ttft_s, 4),
                "total_s": round(self.total_s, 4),
                "tokens_per_s": None if rate is None else round(rate, 2),
            },
        }


async def follow_reply(
    events: AsyncGenerator[Delta | End, None],
    view: ReplyView,
    *,
    on_progress: Callable[[Reply], None] = lambda reply: None,
) -> Reply:
    """Show an answer to its end. A cancellation ends it as a failure does: by what has come.

    Args:
        on_progress: Called with every piece, before it is shown.
    """
    reply = Reply()
    started_at = time.monotonic()
    # Here and not in a thread of the view's: what it shows must not change while it is drawn.
    clock = asyncio.create_task(_refresh(view))
    try:
        async with aclosing(events):
            async for event in events:
                if isinstance(event, End):
                    reply.finish_reason, reply.usage = event.finish_reason, event.usage
                    continue
                elapsed_s = time.monotonic() - started_at
                if reply.ttft_s is None:
                    reply.ttft_s = elapsed_s
                reply.decode_s = elapsed_s - reply.ttft_s
                if event.is_reasoning:
                    reply.reasoning += event.text
                else:
                    reply.text += event.text
                on_progress(reply)
                view.feed(event)
    except asyncio.CancelledError:
        reply.finish_reason = INTERRUPTED
    except PippinError as error:
        reply.error = error
    finally:
        clock.cancel()
    reply.total_s = time.monotonic() - started_at
    return reply


async def _refresh(view: ReplyView) -> None:
    while True:
        view.refresh()
        await asyncio.sleep(_REFRESH_S)
