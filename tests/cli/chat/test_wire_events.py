"""Answers of servers, whole and broken, out of bytes in any pieces."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pippin.cli.chat.backend import Delta, End, Usage
from pippin.cli.chat.wire_events import WireEvents, error_text
from pippin.core.errors import PippinError


def event(**body: object) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


def choice(**fields: object) -> bytes:
    return event(choices=[fields])


STREAM = b"".join(
    [
        b": comment\n\n",
        choice(delta={"role": "assistant", "content": None}),
        choice(delta={"reasoning_content": "thought \u2028"}),
        choice(delta={"reasoning": "more"}),
        choice(delta={"content": "日本"}),
        choice(delta={"refusal": "no"}),
        choice(delta={}, finish_reason="stop"),
        event(
            choices=[],
            usage={
                "prompt_tokens": 7,
                "completion_tokens": 5,
                "prompt_tokens_details": {"cached_tokens": 3},
                "completion_tokens_details": {"reasoning_tokens": 2},
            },
        ),
        b"data: [DONE]\n\n",
    ]
)


@given(st.lists(st.integers(0, len(STREAM))))
def test_any_cut_of_a_stream_reads_the_same(cuts: list[int]) -> None:
    events, deltas, start = WireEvents(is_stream=True), list[Delta](), 0
    for end in [*sorted(cuts), len(STREAM)]:
        deltas += events.feed(STREAM[start:end])
        start = end
    assert deltas == [
        Delta("thought \u2028", is_reasoning=True),
        Delta("more", is_reasoning=True),
        Delta("日本"),
        Delta("no"),
    ]
    usage = Usage(prompt_tokens=7, cached_tokens=3, output_tokens=5, reasoning_tokens=2)
    assert events.end() == End("stop", usage)


def test_a_server_that_does_not_stream_is_read_too() -> None:
    events = WireEvents(is_stream=False)
    message = {"content": "hi", "reasoning": "hm"}
    body = {"choices": [{"message": message, "finish_reason": "length"}], "usage": None}
    assert [*events.feed(json.dumps(body).encode())] == [Delta("hm", True), Delta("hi")]
    assert events.end() == End("length", Usage())


def test_halves_of_surrogate_pairs_become_something_that_can_be_written() -> None:
    part = b'data: {"choices": [{"delta": {"content": "\\ud83d\\ude00 \\ud83d"}}]}\n\n'
    assert [*WireEvents(is_stream=True).feed(part)] == [Delta("\U0001f600 \ufffd")]


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (event(error={"message": "out of\nmemory"}), "the server broke off: out of memory"),
        (event(error="boom"), "the server broke off: boom"),
        (b"data: <html>\n\n", "something else than an answer"),
        (b"data: []\n\n", "something else than an answer"),
        (b"data: 1\n\n", "something else than an answer"),
        (event(choices=[1]), "something else than an answer"),
        (event(choices=5), "something else than an answer"),
        (choice(delta={"content": 5}), "something else than an answer"),
        (choice(delta="x"), "something else than an answer"),
        (b"data: \xff\n\n", "something else than an answer"),
    ],
)
def test_what_is_no_answer_is_said(part: bytes, said: str) -> None:
    with pytest.raises(PippinError, match=said):
        list(WireEvents(is_stream=True).feed(part))


def test_a_stream_without_an_end_is_broken() -> None:
    events = WireEvents(is_stream=True)
    assert [*events.feed(choice(delta={"content": "a"}))] == [Delta("a")]
    with pytest.raises(PippinError, match="ended the answer in the middle"):
        events.end()


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"error": {"message": "a", "type": "b"}}, "a"),
        ({"error": "a"}, "a"),
        ({"detail": "a"}, "a"),
        ({"detail": [{"msg": "a"}]}, '[{"msg": "a"}]'),
        ({"message": "a\n b"}, "a b"),
        ("x" * 1000, "x" * 300),
        (None, "null"),
    ],
)
def test_servers_say_errors_in_many_ways(body: object, text: str) -> None:
    assert error_text(body) == text
