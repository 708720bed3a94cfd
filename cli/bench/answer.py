"""One measured request: what came when, what the server said it was, and how it failed.

A token's moment is when its piece of text left the socket; a piece of reasoning or of a tool call
is as good as one of the answer.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .http_client import RequestFailedError, Response

EMPTY_ANSWER = "empty answer"
_MAX_DETAIL = 300


@dataclass(slots=True)
class Answer:
    """Times are of ``time.perf_counter``, in seconds.

    Attributes:
        label: Of its turn.
        late_s: How long after its due time it was sent, if it had one.
        piece_times: One for each chunk with text.
        first_answer_at: The first chunk that was no reasoning.
        prompt_tokens: By the server's usage, as are the other two; ``None`` if it said nothing.
    """

    label: str
    started_at: float
    late_s: float | None = None
    piece_times: array[float] = field(default_factory=lambda: array("d"))
    first_answer_at: float | None = None
    ended_at: float = 0.0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    failure: RequestFailedError | None = None
    text: str = ""

    @property
    def has_reasoning(self) -> bool:
        """Whether something came before the answer itself."""
        return bool(self.piece_times) and self.first_answer_at != self.piece_times[0]

    def read_usage(self, usage: Any) -> None:
        """Take the counts over; what is no count is as good as absent."""
        if not isinstance(usage, dict):
            return
        details = usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else None
        for name, value in (
            ("prompt_tokens", usage.get("prompt_tokens")),
            ("cached_tokens", cached),
            ("output_tokens", usage.get("completion_tokens")),
        ):
            if type(value) is int:
                setattr(self, name, value)

    def fail(self, error: RequestFailedError) -> None:
        """Keep the first failure."""
        if self.failure is None:
            self.failure = error


class EventSplitter:
    """Server-sent events' data, out of bytes in any pieces.

    Source: WHATWG HTML, section 9.2 "Server-sent events".
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, part: bytes) -> Iterator[bytes]:
        """The data of every event that is complete now."""
        *lines, self._rest = (self._rest + part).split(b"\n")
        for line in lines:
            line = line.rstrip(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                yield b"\n".join(self._data)
                self._data.clear()


class StreamReader:
    """Reads the stream of a chat or of a completion into an answer.

    Args:
        keep_text: For the next turn of a conversation.
    """

    def __init__(self, answer: Answer, *, keep_text: bool) -> None:
        self._answer = answer
        self._splitter = EventSplitter()
        self._keep_text = keep_text
        self._is_done = False
        self._is_finished = False

    def feed(self, at: float, part: bytes) -> None:
        """Take in bytes; what is wrong with them becomes the answer's failure."""
        for data in self._splitter.feed(part):
            if data == b"[DONE]":
                self._is_done = True
                continue
            try:
                self._read(at, json.loads(data))
            except RequestFailedError as error:
                self._answer.fail(error)
            # Of any shape: a foreign server sent it.
            except (ValueError, TypeError, AttributeError, KeyError) as error:
                self._answer.fail(RequestFailedError("broken event", repr(error)))

    def close(self) -> None:
        """Say what the answer lacks."""
        if not self._is_done and not self._is_finished:
            self._answer.fail(RequestFailedError("stream ended early"))
        elif not self._answer.piece_times:
            self._answer.fail(RequestFailedError(EMPTY_ANSWER))

    def _read(self, at: float, event: dict[str, Any]) -> None:
        if error := event.get("error"):
            raise RequestFailedError("error in the stream", error_message(error))
        has_text = False
        for choice in event.get("choices") or ():
            self._is_finished |= bool(choice.get("finish_reason"))
            delta = choice.get("delta") or {}
            text = choice.get("text") or delta.get("content")
            is_answer = text or delta.get("tool_calls") or delta.get("refusal")
            if is_answer and self._answer.first_answer_at is None:
                self._answer.first_answer_at = at
            has_text |= bool(is_answer or delta.get("reasoning_content") or delta.get("reasoning"))
            if text and self._keep_text:
                self._answer.text += text
        if has_text:
            self._answer.piece_times.append(at)
        self._answer.read_usage(event.get("usage"))


def read_embeddings(answer: Answer, response: Response, num_inputs: int) -> None:
    """Check and take over what is no stream."""
    try:
        body = response.json()
        answer.read_usage(body.get("usage"))
        if len(body["data"]) != num_inputs:
            raise RequestFailedError("wrong number of embeddings")
    except RequestFailedError as error:
        answer.fail(error)
    except (TypeError, AttributeError, KeyError) as error:
        answer.fail(RequestFailedError("no embeddings", repr(error)))


def check_status(response: Response) -> None:
    """Raises RequestFailedError with the server's words if it refused."""
    if response.status != 200:
        text = response.body.decode(errors="replace")
        try:
            body = json.loads(text)
            error = body.get("error", body.get("detail", text)) if isinstance(body, dict) else text
        except ValueError:
            error = text
        raise RequestFailedError(f"HTTP {response.status}", error_message(error))


def error_message(error: Any) -> str:
    """The words of an error object, or what else it is, in one line."""
    message = error.get("message") if isinstance(error, dict) else error
    shown = message if isinstance(message, str) else json.dumps(error, ensure_ascii=False)
    return " ".join(shown.split())[:_MAX_DETAIL]
