"""Outputs to Ollama's replies: one object, or a stream with one JSON object a line.

Source: docs.ollama.com/api.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from pippin.core.engine.client import Generation
from pippin.core.parsing.events import (
    ContentDelta,
    ReasoningDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)
from pippin.core.parsing.reply_reader import ReplyReader
from pippin.core.request import PositionLogprobs, RequestOutput, TokenLogprob

from .call_arguments import salvage_arguments
from .reply import finish_reason_to_wire, logprob_to_wire

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def encode_line(data: object) -> bytes:
    """A JSON object and a newline."""
    return _encode(data).encode() + b"\n"


def timestamp(unix_s: float) -> str:
    """A time as Ollama writes it: RFC 3339, in UTC."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat().replace("+00:00", "Z")


class OllamaReply:
    """Reads one answer: a `ReplyCollector` and a `ChunkWriter`, of which one is used.

    Args:
        model: As the caller named it.
        begun_ns: When the request came, by `time.perf_counter_ns`.
        is_chat: Whether the text is in a message, or the response itself.
    """

    def __init__(self, model: str, generation: Generation, *, begun_ns: int, is_chat: bool) -> None:
        self._model = model
        self._num_prompt_tokens = len(generation.prompt_token_ids)
        self._reader = ReplyReader(generation.make_parser())
        self._begun_ns = begun_ns
        self._first_output_ns = 0
        self._is_chat = is_chat
        self._last: RequestOutput | None = None
        self._call = ToolCallStart(0, "", "")
        self._arguments: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._parts: dict[str, list[Any]] = {"content": [""]}

    def feed(self, prompt_index: int, output: RequestOutput) -> None:
        """Take in one output."""
        for delta in self._deltas(output):
            for name, value in delta.items():
                self._parts.setdefault(name, []).append(value)

    def reply(self) -> dict[str, Any]:
        """The whole object, after the last output."""
        fields = {
            name: "".join(parts)
            if isinstance(parts[0], str)
            else [it for part in parts for it in part]
            for name, parts in self._parts.items()
        }
        return self._body(fields) | self._ending()

    def write(self, prompt_index: int, output: RequestOutput) -> bytes:
        """Lines of one output."""
        return b"".join(
            encode_line(self._body({"content": ""} | delta) | {"done": False})
            for delta in self._deltas(output)
        )

    def close(self) -> bytes:
        """The last line of a stream that went well."""
        return encode_line(self._body({"content": ""}) | self._ending())

    def _deltas(self, output: RequestOutput) -> Iterator[dict[str, Any]]:
        """What an output adds to fields of the reply."""
        self._first_output_ns = self._first_output_ns or time.perf_counter_ns()
        self._last = output
        self._logprobs += [_logprob(position) for position in output.logprobs]
        for event in self._reader.read(output):
            match event:
                case ReasoningDelta(text):
                    yield {"thinking": text}
                case ContentDelta(text):
                    yield {"content": text}
                case ToolCallStart():
                    self._call, self._arguments = event, []
                case ToolCallDelta():
                    self._arguments.append(event.arguments)
                case ToolCallEnd(index):
                    function = {
                        "index": index,
                        "name": self._call.name,
                        "arguments": salvage_arguments("".join(self._arguments)),
                    }
                    yield {"tool_calls": [{"id": self._call.call_id, "function": function}]}

    def _body(self, fields: dict[str, Any]) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self._model, "created_at": timestamp(time.time())}
        if self._is_chat:
            body["message"] = {"role": "assistant", **fields}
        else:
            content = fields.pop("content")
            body |= {"response": content, **fields}
        # Those of markers and of what a parser held go with the text that came next.
        if self._logprobs:
            body["logprobs"] = self._logprobs
            self._logprobs = []
        return body

    def _ending(self) -> dict[str, Any]:
        assert self._last is not None, "an engine ends every answer"
        assert self._last.finish_reason is not None, "an engine ends every answer"
        now_ns = time.perf_counter_ns()
        return {
            "done": True,
            "done_reason": finish_reason_to_wire(self._last.finish_reason),
            "total_duration": now_ns - self._begun_ns,
            "load_duration": 0,
            "prompt_eval_count": self._num_prompt_tokens,
            "prompt_eval_duration": self._first_output_ns - self._begun_ns,
            "eval_count": self._last.num_output_tokens,
            "eval_duration": now_ns - self._first_output_ns,
        }


def _logprob(position: PositionLogprobs) -> dict[str, Any]:
    top = [_candidate(token) for token in position.top]
    return _candidate(position.chosen) | {"top_logprobs": top}


def _candidate(token: TokenLogprob) -> dict[str, Any]:
    logprob = logprob_to_wire(token.logprob)
    return {"token": token.text, "logprob": logprob, "bytes": list(token.raw)}
