"""Arguments of calls leave as JSON text that every parser takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic_core import from_json

from pippin.core.parsing.event_writer import EventWriter, long_id
from pippin.core.parsing.events import ToolCallDelta, ToolCallStart


def write(pieces: Sequence[str], *, is_whole: bool = True) -> str:
    out = EventWriter(long_id, str, list, starts_in_reasoning=False)
    out.start("f")
    events = out.take()
    for piece in pieces:
        out.arguments(piece)
        events += out.take()
    if is_whole:
        out.end()
    else:
        out.leave()
    return "".join(it.arguments for it in events + out.take() if isinstance(it, ToolCallDelta))


UNITS = (r"\ud83d", r"\uDE00", r"\u00e9", "\\\\", r"\n", "u", "d83d", "é", "🙂", "\ud800", "\udc00")


@given(st.lists(st.sampled_from(UNITS), max_size=6), st.lists(st.integers(0, 40), max_size=5))
@example([r"\ud83d", r"\uDE00"], range(20))
@example(["\\\\", "u", "d83d"], range(20))
def test_halves_of_pairs_are_mended_however_they_are_cut(
    units: list[str], places: Sequence[int]
) -> None:
    text = f'{{"a": "{"".join(units)}"}}'
    borders = sorted({0, len(text), *(it % len(text) for it in places)})
    written = write([text[a:b] for a, b in pairwise(borders)])
    assert written == write([text])

    meant = json.loads(text)["a"].encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if "\ud800" not in units and "\udc00" not in units:  # beside escapes they may make a pair
        assert from_json(written.encode()) == {"a": meant}
    if r"\ud83d" not in units and r"\uDE00" not in units:
        assert written == text.replace("\ud800", "\ufffd").replace("\udc00", "\ufffd")
    from_json(written.encode())


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ('{"a": "\\ud83d', '{"a": "\\ufffd'),
        ('{"a": "\\ud83d\\', '{"a": "\\ufffd\\'),
        ("{\\u", "{\\u"),
    ],
)
def test_a_call_that_breaks_off_leaves_what_it_held(text: str, written: str) -> None:
    assert write(list(text), is_whole=False) == written


def test_an_id_that_is_no_text_is_replaced() -> None:
    out = EventWriter(long_id, str, list, starts_in_reasoning=False)
    out.start("f", "a\ud800")
    (start,) = out.take()
    assert isinstance(start, ToolCallStart)
    start.call_id.encode()
