"""What a server answers, out of the bytes of its stream; it may be any server, and send anything.

Source: platform.openai.com/docs/api-reference/chat/streaming; reasoning as DeepSeek
(``reasoning_content``) and OpenRouter (``reasoning``) name it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pippin.core.errors import PippinError

from ..bench.answer import EventSplitter
from .backend import Delta, End, Usage

_MAX_DETAIL = 300


class WireEvents:
    """Reads one answer: feed it the bytes, and ask for its end.

    Args:
        is_stream: Whether the bytes are events; else they are one JSON object, given at once.
    """

    def __init__(self, *, is_stream: bool) -> None:
        self._splitter = EventSplitter() if is_stream else None
        self._finish_reason = ""
        self._usage = Usage()

    def feed(self, part: bytes) -> Iterator[Delta]:
        """The text in it.

        Raises:
            PippinError: The server failed, or this is not an answer.
        """
        for data in self._splitter.feed(part) if self._splitter is not None else (part,):
            if data.strip() == b"[DONE]":
                continue
            try:
                yield from self._read(json.loads(data))
            except (ValueError, TypeError, AttributeError) as error:
                raise PippinError(f"the server sent something else than an answer: {error}") from (
                    error
                )

    def end(self) -> End:
        """How it ended.

        Raises:
            PippinError: It did not.
        """
        if not self._finish_reason:
            raise PippinError("the server ended the answer in the middle")
        return End(self._finish_reason, self._usage)

    def _read(self, body: dict[str, Any]) -> Iterator[Delta]:
        if body.get("error"):
            raise PippinError(f"the server broke off: {error_text(body)}")
        if isinstance(usage := body.get("usage"), dict):
            self._usage = _read_usage(usage)
        for choice in body.get("choices") or ():
            delta = choice.get("delta") or choice.get("message") or {}
            if thought := delta.get("reasoning_content") or delta.get("reasoning"):
                yield Delta(_mend(thought), is_reasoning=True)
            if text := delta.get("content") or delta.get("refusal"):
                yield Delta(_mend(text))
            self._finish_reason = str(choice.get("finish_reason") or self._finish_reason)


def error_text(body: Any) -> str:
    """What a server says in a body of one of the shapes that there are."""
    if isinstance(body, dict):
        for key in ("error", "message", "detail"):
            if body.get(key):
                return error_text(body[key])
    return " ".join((body if isinstance(body, str) else json.dumps(body)).split())[:_MAX_DETAIL]


def _read_usage(usage: dict[str, Any]) -> Usage:
    def count(table: Any, name: str) -> int | None:
        value = table.get(name) if isinstance(table, dict) else None
        return value if type(value) is int else None

    return Usage(
        prompt_tokens=count(usage, "prompt_tokens"),
        cached_tokens=count(usage.get("prompt_tokens_details"), "cached_tokens"),
        output_tokens=count(usage, "completion_tokens"),
        reasoning_tokens=count(usage.get("completion_tokens_details"), "reasoning_tokens"),
    )


def _mend(text: str) -> str:
    """Without halves of surrogate pairs, which JSON can hold and no file or terminal."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
