"""Reading answers: streams in pieces of any size, and what foreign servers may send."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pippin.cli.bench.answer import (
    Answer,
    EventSplitter,
    StreamReader,
    check_status,
    read_embeddings,
)
from pippin.cli.bench.http_client import RequestFailedError, Response

STREAM = (
    b': hello\r\ndata: {"a": 1}\r\n\r\nevent: x\ndata:first\ndata: second\n\n\ndata: [DONE]\n\n'
)
EVENTS = [b'{"a": 1}', b"first\nsecond", b"[DONE]"]


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_events_are_the_same_however_the_bytes_are_cut(cuts: list[int]) -> None:
    splitter = EventSplitter()
    edges = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[a:b] for a, b in itertools.pairwise(edges)]
    assert [event for piece in pieces for event in splitter.feed(piece)] == EVENTS


def read(*events: object, end: bool = True) -> Answer:
    """An answer whose events come one second after another."""
    answer = Answer("", started_at=0.0)
    reader = StreamReader(answer, keep_text=True)
    for at, event in enumerate([*events, *(["[DONE]"] if end else [])], start=1):
        data = event if isinstance(event, str) else json.dumps(event)
        reader.feed(float(at), f"data: {data}\n\n".encode())
    reader.close()
    return answer


def chat(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def test_every_kind_of_piece_is_a_token() -> None:
    answer = read(
        chat(role="assistant", content=""),
        chat(reasoning="r"),
        chat(reasoning_content="r"),
        chat(tool_calls=[{"index": 0}]),
        chat(content="c"),
        chat(refusal="no"),
        chat(finish="stop"),
        {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 5}},
    )
    assert answer.failure is None
    assert list(answer.piece_times) == [2, 3, 4, 5, 6]
    assert (answer.first_answer_at, answer.has_reasoning, answer.text) == (4, True, "c")
    assert (answer.prompt_tokens, answer.output_tokens, answer.cached_tokens) == (9, 5, None)


def test_completions_are_read_too() -> None:
    answer = read({"choices": [{"index": 0, "text": "a"}]}, {"choices": [{"text": "b"}]})
    assert (list(answer.piece_times), answer.has_reasoning) == ([1, 2], False)


def test_an_end_without_done_is_one_if_the_answer_said_so() -> None:
    assert read(chat(content="a", finish="length"), end=False).failure is None


@pytest.mark.parametrize(
    ("events", "end", "kind"),
    [
        ([chat(content="a")], False, "stream ended early"),
        ([chat(finish="stop")], True, "empty answer"),
        ([chat(content="a"), {"error": {"message": "out of memory"}}], True, "error in the stream"),
        (["{", chat(content="a")], True, "broken event"),
        (["[]"], True, "broken event"),
        ([{"choices": [7]}], True, "broken event"),
        ([{"choices": 7}], True, "broken event"),
    ],
)
def test_what_is_wrong_with_a_stream_is_its_failure(
    events: list[object], end: bool, kind: str
) -> None:
    failure = read(*events, end=end).failure
    assert failure is not None
    assert failure.kind == kind


def test_what_is_no_count_counts_nothing() -> None:
    answer = Answer("", 0.0)
    counts = {"prompt_tokens": "9", "completion_tokens": True, "prompt_tokens_details": 4}
    usages: tuple[object, ...] = (None, [], counts)
    for usage in usages:
        answer.read_usage(usage)
    assert answer.prompt_tokens is answer.output_tokens is answer.cached_tokens is None


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"error": {"message": "too  long"}}', "HTTP 400: too long"),
        ('{"detail": [{"loc": 1}]}', 'HTTP 400: [{"loc": 1}]'),
        ("<html>", "HTTP 400: <html>"),
        ("", "HTTP 400"),
    ],
)
def test_a_refusal_is_in_the_servers_words(body: str, said: str) -> None:
    with pytest.raises(RequestFailedError) as caught:
        check_status(Response(400, {}, body.encode(), 0.0))
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"data": [{}, {}], "usage": {"prompt_tokens": 3}}', None),
        (b'{"data": [{}]}', "wrong number of embeddings"),
        (b"{}", "no embeddings"),
        (b"[]", "no embeddings"),
        (b"<", "not JSON"),
    ],
)
def test_embeddings_are_checked(body: bytes, kind: str | None) -> None:
    answer = Answer("", 0.0)
    read_embeddings(answer, Response(200, {}, body, 0.0), 2)
    assert (answer.failure.kind if answer.failure else None) == kind
