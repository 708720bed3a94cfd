"""Answers as messages: the stream and the whole say the same, in Anthropic's own types."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from pippin.core.parsing.events import (
    ContentDelta,
    ReasoningDelta,
    ReplyEvent,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)
from pippin.core.parsing.reply_reader import ReplyReader
from pippin.core.request import FinishReason, RequestOutput
from pippin.server.adapters.anthropic_reply import (
    SIGNATURE,
    MessageCollector,
    MessageEvents,
    MessageWriter,
)

LARGEST = sys.float_info.max
_EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


class _ScriptParser:
    """Reads "3" as the script's fourth event."""

    is_reasoning = False
    pieces = ()

    def __init__(self, script: Sequence[ReplyEvent]) -> None:
        self._script = script

    def feed(self, text: str) -> list[ReplyEvent]:
        return [self._script[int(index)] for index in text.split()]

    def close(self) -> list[ReplyEvent]:
        return []


def _events(script: Sequence[ReplyEvent], *, omit_thinking: bool = False) -> MessageEvents:
    return MessageEvents(
        ReplyReader(_ScriptParser(script)),
        reply_id="msg_1",
        model="m",
        num_prompt_tokens=10,
        max_tokens=5,
        omit_thinking=omit_thinking,
    )


def _outputs(
    script: Sequence[ReplyEvent],
    reason: FinishReason = FinishReason.STOP,
    *,
    stop_reason: str | int | None = None,
    num_output_tokens: int = 3,
) -> Iterable[RequestOutput]:
    for index in range(len(script) + 1):
        is_last = index == len(script)
        yield RequestOutput(
            request_id="r",
            index=0,
            text="" if is_last else str(index),
            token_ids=(7,),
            num_output_tokens=num_output_tokens,
            num_cached_tokens=4,
            finish_reason=reason if is_last else None,
            stop_reason=stop_reason if is_last else None,
        )


def _whole(events: MessageEvents, outputs: Iterable[RequestOutput]) -> dict[str, Any]:
    collector = MessageCollector(events)
    for output in outputs:
        collector.feed(0, output)
    reply = collector.reply()
    Message.model_validate(reply, strict=True, extra="forbid")
    return reply


def _streamed(events: MessageEvents, outputs: Iterable[RequestOutput]) -> dict[str, Any]:
    """What Anthropic's client makes of the stream."""
    writer = MessageWriter(events)
    frames = b"".join([*(writer.write(0, output) for output in outputs), writer.close()])
    message: Any = None
    buffers: dict[int, bytes] = {}
    for frame in frames.decode().split("\n\n")[:-1]:
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        if event["type"] != "ping":
            typed = _EVENT.validate_python(event, strict=True, extra="forbid")
            message = accumulate_event(event=typed, current_snapshot=message, json_bufs=buffers)
    whole = Message.model_validate(message.to_dict(), extra="forbid").to_dict(exclude_none=True)
    # The client makes an object of its own of every call.
    return json.loads(json.dumps(whole))  # type: ignore[no-any-return]


_TEXT = st.text(max_size=4)
_INPUT = st.dictionaries(_TEXT, st.integers() | _TEXT | st.lists(_TEXT, max_size=2), max_size=3)


@st.composite
def _calls(draw: st.DrawFn) -> list[ReplyEvent]:
    text = json.dumps(draw(_INPUT), ensure_ascii=False)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=3)))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    return [ToolCallStart(0, "c", "f"), *(ToolCallDelta(0, it) for it in parts), ToolCallEnd(0)]


_SCRIPTS = st.lists(
    _TEXT.map(lambda text: [ReasoningDelta(text)])
    | _TEXT.map(lambda text: [ContentDelta(text)])
    | _calls(),
    max_size=6,
).map(lambda parts: [event for part in parts for event in part])


@given(script=_SCRIPTS, num_kept=st.integers(0, 40), omit=st.booleans())
def test_the_stream_and_the_whole_are_equal_wherever_the_answer_is_cut(
    script: list[ReplyEvent], num_kept: int, omit: bool
) -> None:
    script = script[:num_kept]

    whole = _whole(_events(script, omit_thinking=omit), _outputs(script))
    streamed = _streamed(_events(script, omit_thinking=omit), _outputs(script))

    assert {name: value for name, value in whole.items() if value is not None} == streamed


def test_blocks_begin_and_end_with_what_the_model_does() -> None:
    script: list[ReplyEvent] = [
        ReasoningDelta("h"), ReasoningDelta("m"), ContentDelta("a"), ContentDelta("b"),
        ToolCallStart(0, "c0", "f"), ToolCallDelta(0, '{"x":'), ToolCallDelta(0, "1}"),
        ToolCallEnd(0), ToolCallStart(1, "c1", "g"), ToolCallEnd(1), ContentDelta("z"),
    ]  # fmt: skip

    message = _whole(_events(script), _outputs(script))

    assert message["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": SIGNATURE},
        {"type": "text", "text": "ab"},
        {"type": "tool_use", "id": "c0", "name": "f", "input": {"x": 1}},
        {"type": "tool_use", "id": "c1", "name": "g", "input": {}},
        {"type": "text", "text": "z"},
    ]


def test_the_line_break_that_stands_for_a_call_is_in_no_block() -> None:
    call = (ToolCallStart(0, "c", "f"), ToolCallEnd(0))
    script: list[ReplyEvent] = [ContentDelta("a"), *call, ContentDelta("\nb"), ContentDelta("\nc")]
    texts = [block.get("text") for block in _whole(_events(script), _outputs(script))["content"]]
    assert texts == ["a", None, "b\nc"]


@pytest.mark.parametrize(
    ("arguments", "sound"),
    [
        ("", {}),
        ('{"a": 1, "b": tr', {"a": 1}),
        ('{"a": "x", "b": tru}}', {"a": "x"}),
        ('{"a": [1, 2], b}', {"a": [1, 2]}),
        ('{"a": ' + "[" * 50_000, {}),
        ('{"a": ' + "[" * 300 + "]" * 300 + "}", {"a": json.loads("[" * 300 + "]" * 300)}),
        ('{"a":' * 50_000 + "1" + "}" * 50_000, {}),
        ('{"a": 1e999, "b": -1e999, "c": NaN}', {"a": LARGEST, "b": -LARGEST, "c": None}),
        ('{"a": 1' + "0" * 5000 + "}", {"a": LARGEST}),
        ('"b": 1}', {}),
    ],
)
def test_a_call_that_breaks_off_has_what_makes_sense_of_its_input(
    arguments: str, sound: dict[str, Any]
) -> None:
    script: list[ReplyEvent] = [
        *(ToolCallStart(0, "c", "f"), ToolCallDelta(0, arguments), ContentDelta("z"))
    ]

    message = _whole(_events(script), _outputs(script))

    assert message["content"] == [
        {"type": "tool_use", "id": "c", "name": "f", "input": sound},
        {"type": "text", "text": "z"},
    ]
    assert message["stop_reason"] == "end_turn"


def test_omitted_thoughts_leave_their_signature() -> None:
    script: list[ReplyEvent] = [ReasoningDelta("hm"), ContentDelta("a")]

    message = _whole(_events(script, omit_thinking=True), _outputs(script))

    assert message["content"][0] == {"type": "thinking", "thinking": "", "signature": SIGNATURE}


def test_the_counts_of_input_make_up_the_prompt() -> None:
    usage = _whole(_events([]), _outputs([]))["usage"]

    assert usage == {
        "input_tokens": 6,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 4,
        "output_tokens": 3,
        "output_tokens_details": {"thinking_tokens": 0},
    }


CALL = [ToolCallStart(0, "c", "f"), ToolCallEnd(0)]


@pytest.mark.parametrize(
    ("script", "end", "expected"),
    [
        ([], {}, ("end_turn", None)),
        (CALL, {}, ("tool_use", None)),
        (CALL[:1], {}, ("end_turn", None)),
        ([], {"stop_reason": "\n\n"}, ("stop_sequence", "\n\n")),
        (CALL, {"stop_reason": "x"}, ("stop_sequence", "x")),
        ([], {"stop_reason": 7}, ("end_turn", None)),
        (CALL, {"reason": FinishReason.LENGTH, "num_output_tokens": 5}, ("max_tokens", None)),
        ([], {"reason": FinishReason.LENGTH}, ("model_context_window_exceeded", None)),
    ],
)
def test_stop_reasons(
    script: list[ReplyEvent], end: dict[str, Any], expected: tuple[str, str | None]
) -> None:
    message = _whole(_events(script), _outputs(script, **end))

    assert (message["stop_reason"], message["stop_sequence"]) == expected
