"""Every token is placed at the character it belongs to."""

import byte_tokenizer as tokenizers
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pippin.core.text.token_spans import TokenSpan, TokenSpanTracker
from pippin.core.text.tokenizer import Tokenizer

EVERY = {
    "byte_level": Tokenizer(tokenizers.make_byte_tokenizer()),
    "strip": Tokenizer(tokenizers.make_sentencepiece_tokenizer(kind="strip")),
    "keep": Tokenizer(tokenizers.make_sentencepiece_tokenizer(kind="keep")),
    "wordpiece": Tokenizer(tokenizers.make_wordpiece_tokenizer()),
}


def place(tokenizer: Tokenizer, ids: list[int]) -> list[TokenSpan]:
    tracker, detokenizer = TokenSpanTracker(tokenizer), tokenizer.make_detokenizer()
    spans: list[TokenSpan] = []
    for token_id in ids:
        spans += tracker.add(token_id, detokenizer.feed(token_id))
    return spans + tracker.close(detokenizer.close())


@pytest.mark.parametrize("name", ["byte_level", "strip", "keep"])
@settings(deadline=None, max_examples=200)
@given(text=st.text(max_size=25), special=st.none() | st.integers(0, 25))
@example(text="  the 🙂🙂 hat", special=None)
def test_token_starts_where_the_text_of_those_before_it_ends(
    name: str, text: str, special: int | None
) -> None:
    tokenizer = EVERY[name]
    ids = tokenizer.encode(text, add_special_tokens=False)
    if special is not None:
        ids.insert(special, min(tokenizer.special_ids))
    spans = place(tokenizer, ids)
    assert len(spans) == len(ids)
    spelled = b""
    for token_id, span in zip(ids, spans, strict=True):
        before = spelled.decode("utf-8", "ignore")  # without the character that is open
        if name == "strip":
            before = before.removeprefix(" ")
        assert span.start == len(before)
        if token_id not in tokenizer.special_ids:
            spelled += tokenizer.token_bytes(token_id)
    assert max((span.stop for span in spans), default=0) == len(tokenizer.decode(ids))


@pytest.mark.parametrize("name", EVERY)
@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_spans_of_random_ids_cover_the_text_in_order(name: str, data: st.DataObject) -> None:
    tokenizer = EVERY[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=25))
    spans = place(tokenizer, ids)
    assert len(spans) == len(ids)
    borders = [border for span in spans for border in span]
    assert borders == sorted(borders)
    assert borders[:1] in ([], [0])
    # A character that the end breaks off may begin in a token that was placed before.
    text = tokenizer.decode(ids)
    assert len(text.rstrip("\ufffd")) <= max(borders, default=0) <= len(text)
