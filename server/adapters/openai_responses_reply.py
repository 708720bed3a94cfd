"""Outputs to a response object, and to the events that build it up.

One class does both, so a stream and a reply at once cannot disagree: its events are what it does,
and the reply is what they have added up to.

Source: platform.openai.com/docs/api-reference/responses-streaming; openresponses.org/specification.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pippin.core.parsing.events import (
    ContentDelta,
    ReasoningDelta,
    ReplyEvent,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)
from pippin.core.parsing.reply_reader import ReplyReader
from pippin.core.request import FinishReason, PositionLogprobs, RequestOutput, TokenLogprob
from pippin.core.sampling_params import SamplingParams

from ..errors import HttpError
from ..schemas.openai_responses import ResponsesRequest
from ..sse import encode_event
from .openai_responses import item_id, to_opaque
from .openai_responses_tools import OfferedTool, echo_tools, to_input
from .reply import ReplyHead, logprob_to_wire

Event = dict[str, Any]

# What an item's text is called in its events, and the type of the part that holds it.
_TEXT_NAMES = {
    "message": ("output_text", "output_text"),
    "reasoning": ("reasoning_text", "reasoning_text"),
    "function_call": ("function_call_arguments", None),
    "custom_tool_call": ("custom_tool_call_input", None),
}


class ResponseReply:
    """Follows the one answer of a response.

    Args:
        head: Identity; its id has the form ``resp_...``.
        echo: What the object repeats of the request; see `echo_of`.
        with_opaque_reasoning: Whether reasoning also goes out as ``encrypted_content``.
        keep: Called with the object once the answer has ended, however it ended. Calls that broke
            off are left out: a model that reads on there would choke on them.
        tools: Those that may be called, by the names that the model knows.
    """

    def __init__(
        self,
        head: ReplyHead,
        reader: ReplyReader,
        echo: dict[str, Any],
        *,
        num_prompt_tokens: int,
        with_opaque_reasoning: bool,
        keep: Callable[[dict[str, Any]], None],
        tools: Mapping[str, OfferedTool],
    ) -> None:
        self._head = head
        self._reader = reader
        self._echo = echo
        self._num_prompt_tokens = num_prompt_tokens
        self._with_opaque_reasoning = with_opaque_reasoning
        self._keep_whole = keep
        self._tools = tools
        self._items: list[_Item] = []
        self._last: RequestOutput | None = None
        self._num_events = 0

    def open(self) -> bytes:
        """How a stream begins, before the model has done anything."""
        response = self._response("in_progress")
        created, begun = "response.created", "response.in_progress"
        return self._frames([{"type": kind, "response": response} for kind in (created, begun)])

    def feed(self, prompt_index: int, output: RequestOutput) -> None:
        """Take in one output, for a reply at once."""
        self._step(output)

    def reply(self) -> dict[str, Any]:
        """The whole object, after the last output."""
        assert self._last is not None, "an engine ends every answer"
        is_cut = self._last.finish_reason is FinishReason.LENGTH
        response = self._response("incomplete" if is_cut else "completed")
        self._keep(response)
        return response

    def write(self, prompt_index: int, output: RequestOutput) -> bytes:
        """Take in one output, and give its events."""
        return self._frames(self._step(output))

    def close(self) -> bytes:
        """The end of a stream that went well."""
        response = self.reply()
        return self._frames([{"type": f"response.{response['status']}", "response": response}])

    def fail(self, error: HttpError) -> bytes:
        """The end of a stream that did not."""
        events = self._close_item("incomplete")
        if error.code == "request_cancelled":
            response = self.cancel()
        else:
            response = self._response("failed")
            response["error"] = {"code": "server_error", "message": error.message}
            self._keep(response)
        return self._frames([*events, {"type": "response.failed", "response": response}])

    def cancel(self) -> dict[str, Any]:
        """The object as it is left if nothing more is to come."""
        self._close_item("incomplete")
        response = self._response("cancelled")
        self._keep(response)
        return response

    def _frames(self, events: Sequence[Event]) -> bytes:
        frames = []
        for event in events:
            kind = event["type"]
            numbered = {"type": kind, "sequence_number": self._num_events, **event}
            frames.append(b"event: " + kind.encode() + b"\n" + encode_event(numbered))
            self._num_events += 1
        return b"".join(frames)

    def _step(self, output: RequestOutput) -> list[Event]:
        self._last = output
        events = [event for it in self._reader.read_scored(output) for event in self._take(*it)]
        if output.finish_reason is not None:
            if not self._items:
                events += self._open_item("message")  # clients look for one
            is_call = self._items[-1].is_call
            is_whole = output.finish_reason is FinishReason.STOP and not is_call
            events += self._close_item("completed" if is_whole else "incomplete")
        return events

    def _take(self, event: ReplyEvent, logprobs: Sequence[PositionLogprobs]) -> list[Event]:
        match event:
            case ReasoningDelta(text):
                return [*self._open_item("reasoning"), self._items[-1].add_text(text)]
            case ContentDelta(text):
                is_behind_call = bool(self._items) and self._items[-1].is_call
                if is_behind_call and text.startswith("\n"):  # it stood for the call
                    text = text[1:]
                    is_token = bool(logprobs) and logprobs[0].chosen.text == "\n"
                    logprobs = logprobs[is_token:]
                opening = self._open_item("message")
                return [*opening, self._items[-1].add_text(text, logprobs)]
            case ToolCallStart(_, call_id, name):
                closing = self._end_item()
                tool = self._tools.get(name)
                kind = tool.item_type if tool else "function_call"
                names = tool.item_fields if tool else {"name": name}
                return [*closing, *self._open_item(kind, call_id=call_id, **names)]
            case ToolCallDelta(_, arguments):
                delta = self._items[-1].add_text(arguments)
                # What a custom tool is given stands in the arguments once they are whole.
                return [] if self._items[-1].kind == "custom_tool_call" else [delta]
            case ToolCallEnd():
                return self._close_item("completed")

    def _open_item(self, kind: str, **fields: str) -> list[Event]:
        if self._items and self._items[-1].is_open and self._items[-1].kind == kind:
            return []
        closing = self._end_item()
        item = _Item(kind, self._head.reply_id, len(self._items), fields)
        self._items.append(item)
        return [*closing, *item.open()]

    def _end_item(self) -> list[Event]:
        """Close the item that something else follows: a call is not whole then."""
        is_call = bool(self._items) and self._items[-1].is_call
        return self._close_item("incomplete" if is_call else "completed")

    def _keep(self, response: dict[str, Any]) -> None:
        output = [
            item
            for item in response["output"]
            if "call_id" not in item or item["status"] != "incomplete"
        ]
        self._keep_whole({**response, "output": output})

    def _close_item(self, status: str) -> list[Event]:
        if not self._items or not self._items[-1].is_open:
            return []
        return self._items[-1].close(status, with_opaque_reasoning=self._with_opaque_reasoning)

    def _response(self, status: str) -> dict[str, Any]:
        is_cut = status == "incomplete"
        return {
            "id": self._head.reply_id,
            "object": "response",
            "created_at": self._head.created_unix,
            "status": status,
            "background": False,
            "completed_at": int(time.time()) if status == "completed" else None,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "model": self._head.model,
            **self._echo,
            "output": [item.data for item in self._items],
            "usage": None if status == "in_progress" else self._usage(),
        }

    def _usage(self) -> dict[str, Any] | None:
        if self._last is None:
            return None
        num_output_tokens = self._last.num_output_tokens
        return {
            "input_tokens": self._num_prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": self._last.num_cached_tokens,
                "cache_write_tokens": 0,
            },
            "output_tokens": num_output_tokens,
            "output_tokens_details": {"reasoning_tokens": self._reader.num_reasoning_tokens},
            "total_tokens": self._num_prompt_tokens + num_output_tokens,
        }


class _Item:
    """One output item while it is written. `data` is the item; nothing changes it once closed."""

    def __init__(self, kind: str, reply_id: str, index: int, fields: dict[str, str]) -> None:
        self.kind = kind
        self.is_open = True
        self.data: dict[str, Any] = {
            "id": item_id(kind, reply_id, index),
            "type": kind,
            "status": "in_progress",
            **fields,
        }
        if kind == "message":
            self.data |= {"role": "assistant", "content": []}
        elif kind == "reasoning":
            self.data |= {"summary": [], "content": []}
        self._index = index
        self._name, self._part_type = _TEXT_NAMES[kind]
        self.is_call = self._part_type is None
        if self.is_call:
            # The last word of the events' name: arguments, or input.
            self._field = self._name.rpartition("_")[2]
            self.data[self._field] = ""
        self._texts: list[str] = []
        self._logprobs: list[PositionLogprobs] = []

    def open(self) -> list[Event]:
        added = self._event("output_item.added", item=dict(self.data))
        if self._part_type is None:
            return [added]
        return [added, self._event("content_part.added", content_index=0, part=self._part())]

    def add_text(self, text: str, logprobs: Sequence[PositionLogprobs] = ()) -> Event:
        self._texts.append(text)
        self._logprobs += logprobs
        return self._event(f"{self._name}.delta", **self._position(logprobs), delta=text)

    def close(self, status: str, *, with_opaque_reasoning: bool) -> list[Event]:
        text = "".join(self._texts)
        events: list[Event] = []
        if self.is_call:
            if self.kind == "custom_tool_call":
                text = to_input(text)
                events = [self._event(f"{self._name}.delta", delta=text)] if text else []
            self.data[self._field] = text
            events.append(self._event(f"{self._name}.done", **{self._field: text}))
        else:
            part = self._part()
            self.data["content"] = [part]
            events = [
                self._event(f"{self._name}.done", **self._position(self._logprobs), text=text),
                self._event("content_part.done", content_index=0, part=part),
            ]
        if self.kind == "reasoning" and with_opaque_reasoning:
            self.data["encrypted_content"] = to_opaque(text)
        self.data["status"] = status
        self.is_open = False
        return [*events, self._event("output_item.done", item=self.data)]

    def _event(self, kind: str, **fields: Any) -> Event:
        where = {} if "item" in fields else {"item_id": self.data["id"]}
        return {"type": f"response.{kind}", **where, "output_index": self._index, **fields}

    def _position(self, logprobs: Sequence[PositionLogprobs]) -> dict[str, Any]:
        if self._part_type is None:
            return {}
        if self._part_type != "output_text":
            return {"content_index": 0}
        # Unlike parts, events have no bytes.
        return {"content_index": 0, "logprobs": [_logprobs(it, _plain) for it in logprobs]}

    def _part(self) -> dict[str, Any]:
        part: dict[str, Any] = {"type": self._part_type, "text": "".join(self._texts)}
        if self._part_type == "output_text":
            part["annotations"] = []
            part["logprobs"] = [_logprobs(it, _with_bytes) for it in self._logprobs]
        return part


def echo_of(wire: ResponsesRequest, params: SamplingParams, *, is_stored: bool) -> dict[str, Any]:
    """What a response object says about its request, defaults filled in."""
    effort = wire.reasoning.effort if wire.reasoning else None
    form = wire.text.format if wire.text else None
    shown_form = form.model_dump(by_alias=True, exclude_none=True) if form else {"type": "text"}
    choice = wire.tool_choice or "auto"
    conversation_id = wire.conversation_id
    return {
        **({} if conversation_id is None else {"conversation": {"id": conversation_id}}),
        "instructions": wire.instructions,
        "max_output_tokens": wire.max_output_tokens,
        "max_tool_calls": wire.max_tool_calls,
        "metadata": wire.metadata or {},
        "parallel_tool_calls": wire.parallel_tool_calls is not False,
        "previous_response_id": wire.previous_response_id,
        "prompt_cache_key": wire.prompt_cache_key,
        "reasoning": {"effort": effort, "summary": None},
        "safety_identifier": wire.safety_identifier,
        "service_tier": "default",
        "store": is_stored,
        "temperature": params.temperature,
        "text": {"format": shown_form, "verbosity": "medium"},
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(mode="json"),
        "tools": echo_tools(wire),
        "top_logprobs": wire.top_logprobs or 0,
        "top_p": params.top_p,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "truncation": wire.truncation or "disabled",
    }


def _logprobs(
    position: PositionLogprobs, show: Callable[[TokenLogprob], dict[str, Any]]
) -> dict[str, Any]:
    return {**show(position.chosen), "top_logprobs": [show(token) for token in position.top]}


def _plain(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.text, "logprob": logprob_to_wire(token.logprob)}


def _with_bytes(token: TokenLogprob) -> dict[str, Any]:
    return {**_plain(token), "bytes": list(token.raw)}
