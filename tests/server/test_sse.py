from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pippin.server.sse import TEXT_SLOT, EventTemplate, encode_event

# What a tokenizer can give: any text but lone surrogates, which UTF-8 cannot carry.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(TEXTS, TEXTS)
def test_a_filled_template_is_the_encoded_event(name: str, text: str) -> None:
    name = name.replace("\0", "")
    template = EventTemplate({"model": name, "delta": {"content": TEXT_SLOT}, "end": None})

    frame = template.fill(text)

    assert frame == encode_event({"model": name, "delta": {"content": text}, "end": None})
    assert json.loads(frame.removeprefix(b"data: "))["delta"]["content"] == text


@given(TEXTS)
def test_a_template_may_hold_the_text_twice(text: str) -> None:
    template = EventTemplate({"reasoning_content": TEXT_SLOT, "reasoning": TEXT_SLOT})

    assert template.fill(text) == encode_event({"reasoning_content": text, "reasoning": text})


@given(TEXTS)
def test_a_frame_is_one_line_and_an_empty_one(text: str) -> None:
    frame = encode_event({"text": text})

    assert frame.startswith(b"data: {")
    assert frame.endswith(b"}\n\n")
    assert b"\n" not in frame[:-2]
    assert b"\r" not in frame


def test_json_that_clients_cannot_read_is_never_sent() -> None:
    with pytest.raises(ValueError, match="Out of range"):
        encode_event({"logprob": float("-inf")})
