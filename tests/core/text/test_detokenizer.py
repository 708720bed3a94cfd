"""What a detokenizer streams is what the tokenizer decodes, and whole characters only."""

import time
from typing import Any

import byte_tokenizer as tokenizers
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pippin.core.text.tokenizer import Tokenizer

NATIVE = {
    "byte_level": Tokenizer(tokenizers.make_byte_tokenizer()),
    "strip": Tokenizer(tokenizers.make_sentencepiece_tokenizer(kind="strip")),
    "metaspace": Tokenizer(tokenizers.make_sentencepiece_tokenizer(kind="metaspace")),
    "keep": Tokenizer(tokenizers.make_sentencepiece_tokenizer(kind="keep")),
}
OPAQUE = {
    "wordpiece": Tokenizer(tokenizers.make_wordpiece_tokenizer()),
    "opaque_bytes": Tokenizer(tokenizers.make_opaque_byte_tokenizer()),
}
EVERY = NATIVE | OPAQUE
TEXTS = (
    "the tin in the hat",
    " two leading  spaces   and trailing ",
    "🙂 👩‍👩‍👧 🇫🇷 e\u0301 \ufffd ~",
    "你好 世界。こんにちは 안녕",
    "def f(x):\n\treturn {'a': x[0]}  # ok\r\n",
    "naïve Ångström — “quotes” 1 234,5 €",
    "",
)


def stream(tokenizer: Tokenizer, ids: list[int], *, skip: bool = True) -> list[str]:
    detokenizer = tokenizer.make_detokenizer(skip_special_tokens=skip)
    return [*map(detokenizer.feed, ids), detokenizer.close()]


def token_ids(tokenizer: Tokenizer, *, num_beyond: int = 3) -> st.SearchStrategy[list[int]]:
    # Byte tokens and specials are what goes wrong, and ids behind the vocabulary exist in logits.
    any_id = st.integers(0, tokenizer.vocab_size - 1 + num_beyond)
    special = st.sampled_from(sorted(tokenizer.special_ids))
    word = st.integers(tokenizer.vocab_size - 18, tokenizer.vocab_size - 1).map(abs)
    return st.lists(any_id | special | word, max_size=25)


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("skip", [True, False])
@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_random_ids_stream_as_they_decode(name: str, skip: bool, data: st.DataObject) -> None:
    tokenizer = NATIVE[name]
    assert tokenizer.streams_natively
    ids = data.draw(token_ids(tokenizer))
    assert "".join(stream(tokenizer, ids, skip=skip)) == tokenizer.decode(
        ids, skip_special_tokens=skip
    )


@pytest.mark.parametrize("name", EVERY)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_some_special_tokens_can_be_shown(name: str, data: st.DataObject) -> None:
    tokenizer = EVERY[name]
    shown = data.draw(st.frozensets(st.sampled_from(sorted(tokenizer.special_ids)), min_size=1))
    # Of an unknown decoder, text is known only where it does not change any more.
    ids = data.draw(token_ids(tokenizer, num_beyond=0))
    if name == "opaque_bytes":
        ids = [token_id for token_id in ids if token_id in tokenizer.special_ids]
    detokenizer = tokenizer.make_detokenizer(shown_ids=shown)

    text = "".join(map(detokenizer.feed, ids)) + detokenizer.close()

    hidden = tokenizer.special_ids - shown
    seen = [token_id for token_id in ids if token_id not in hidden]
    assert text == tokenizer.decode(seen, skip_special_tokens=False)


@pytest.mark.parametrize("skip", [True, False])
@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_random_ids_of_an_unknown_decoder_stream_as_they_decode(
    skip: bool, data: st.DataObject
) -> None:
    tokenizer = OPAQUE["wordpiece"]
    assert not tokenizer.streams_natively
    ids = data.draw(token_ids(tokenizer))
    assert "".join(stream(tokenizer, ids, skip=skip)) == tokenizer.decode(
        ids, skip_special_tokens=skip
    )


@pytest.mark.parametrize("name", EVERY)
@settings(deadline=None, max_examples=100)
@given(text=st.text(max_size=40) | st.sampled_from(TEXTS))
@example(text="\ufffd\ufffd 🙂")
def test_texts_stream_as_they_decode(name: str, text: str) -> None:
    tokenizer = EVERY[name]
    ids = tokenizer.encode(text, add_special_tokens=True)
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", ["byte_level", "keep", "opaque_bytes"])
@pytest.mark.parametrize("text", TEXTS)
def test_no_delta_holds_part_of_a_character(name: str, text: str) -> None:
    tokenizer = EVERY[name]
    text = text.replace("\ufffd", "").replace("~", "")
    deltas = stream(tokenizer, tokenizer.encode(text, add_special_tokens=False))
    assert "".join(deltas) == text
    assert not any("\ufffd" in delta for delta in deltas)


@pytest.mark.parametrize("name", ["byte_level", "opaque_bytes"])
def test_text_comes_out_with_the_token_that_completes_it(name: str) -> None:
    tokenizer = EVERY[name]
    assert stream(tokenizer, [*b"a\xe4\xbd\xa0b"]) == ["a", "", "", "你", "b", ""]


def test_bytes_that_can_be_no_character_come_out_at_once() -> None:
    tokenizer = NATIVE["byte_level"]
    assert stream(tokenizer, [*b"\xff\xe4a"]) == ["\ufffd", "", "\ufffda", ""]


@pytest.mark.parametrize("name", ["byte_level", "keep", "opaque_bytes"])
def test_open_character_is_shown_broken_at_the_end(name: str) -> None:
    tokenizer = EVERY[name]
    ids = tokenizer.encode("a🙂", add_special_tokens=False)[:-1]
    *deltas, last = stream(tokenizer, ids)
    assert "\ufffd" not in "".join(deltas)
    assert last.startswith("\ufffd")
    assert "".join(deltas) + last == tokenizer.decode(ids)


def test_only_the_first_space_is_dropped() -> None:
    tokenizer = NATIVE["strip"]
    the = tokenizer.encode("the", add_special_tokens=False)
    assert stream(tokenizer, [*the, *the])[0] != " "
    assert "".join(stream(tokenizer, [*the, *the])) == "the the"


def test_first_token_is_the_first_that_is_shown() -> None:
    tokenizer = NATIVE["metaspace"]
    the = tokenizer.encode("the", add_special_tokens=False)
    assert "".join(stream(tokenizer, [min(tokenizer.special_ids), *the])) == "the"


def test_special_tokens_are_left_out_unless_asked_for() -> None:
    tokenizer = NATIVE["byte_level"]
    ids = tokenizer.encode("a<|im_start|>b", add_special_tokens=False)
    assert len(ids) == 3
    assert stream(tokenizer, ids) == ["a", "", "b", ""]
    assert stream(tokenizer, ids, skip=False) == ["a", "<|im_start|>", "b", ""]


class CountingTokenizer:
    """Forwards to a tokenizer and notes how many ids it has to decode."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.num_decoded = 0

    def decode(self, ids: list[int], **options: Any) -> Any:
        self.num_decoded += len(ids)
        return self._tokenizer.decode(ids, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


@pytest.mark.parametrize("ids", [[*b"the hat in "] * 100, [[0xFF]] * 1000, [[266]] * 1000])
def test_unknown_decoder_never_decodes_the_answer_again(ids: list[list[int]]) -> None:
    counting = CountingTokenizer(tokenizers.make_opaque_byte_tokenizer())
    tokenizer = Tokenizer(counting)
    answer = [
        token_id for group in ids for token_id in (group if isinstance(group, list) else [group])
    ]
    counting.num_decoded = 0
    stream(tokenizer, answer, skip=False)
    assert counting.num_decoded <= 80 * len(answer)


def test_known_decoder_streams_fast() -> None:
    tokenizer = NATIVE["byte_level"]
    ids = tokenizer.encode("the hat 你好 🙂 " * 5_000, add_special_tokens=False)
    started_at = time.process_time()
    stream(tokenizer, ids)
    # Measured at some 3 million a second; the bound is for a machine with other work to do.
    assert len(ids) / (time.process_time() - started_at) > 100_000
