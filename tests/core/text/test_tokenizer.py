"""The bytes of a token, the eos set, and calls from many threads."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import byte_tokenizer as tokenizers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders

from pippin.core.text.pieces import SentencePieceRules, read_rules
from pippin.core.text.tokenizer import Tokenizer

BYTES = Tokenizer(tokenizers.make_byte_tokenizer())
PIECES = Tokenizer(tokenizers.make_sentencepiece_tokenizer(kind="keep"))
WORDS = Tokenizer(tokenizers.make_wordpiece_tokenizer())


@pytest.mark.parametrize("byte", range(256))
def test_byte_token_has_its_byte(byte: int) -> None:
    assert BYTES.token_bytes(byte) == bytes([byte])


@settings(deadline=None)
@given(text=st.text(max_size=30))
def test_bytes_of_the_tokens_join_to_the_text(text: str) -> None:
    for tokenizer in (BYTES, PIECES):
        ids = tokenizer.encode(text, add_special_tokens=False)
        expected = tokenizer.decode(ids, skip_special_tokens=False)
        assert b"".join(map(tokenizer.token_bytes, ids)).decode() == expected


def test_fragment_of_a_character_reads_as_broken_and_keeps_its_bytes() -> None:
    (token_id,) = [i for i in range(256, BYTES.vocab_size) if BYTES.token_bytes(i) == b" \xf0\x9f"]
    assert BYTES.token_text(token_id) == " \ufffd"


def test_piece_bytes_have_real_spaces_and_fallback_bytes() -> None:
    backend = tokenizers.make_sentencepiece_tokenizer(kind="keep")
    the, byte = (backend.convert_tokens_to_ids(name) for name in ("▁the", "<0xE4>"))
    assert PIECES.token_bytes(the) == b" the"
    assert PIECES.token_bytes(byte) == b"\xe4"


def test_token_of_an_unknown_decoder_reads_as_inside_a_text() -> None:
    backend = tokenizers.make_wordpiece_tokenizer()
    assert WORDS.token_text(backend.convert_tokens_to_ids("##in")) == "in"
    assert WORDS.token_text(backend.convert_tokens_to_ids("the")) == " the"
    assert WORDS.token_bytes(backend.convert_tokens_to_ids("你")) == " 你".encode()


@pytest.mark.parametrize("tokenizer", [BYTES, PIECES, WORDS])
def test_special_token_has_its_text(tokenizer: Tokenizer) -> None:
    texts = {tokenizer.token_text(token_id) for token_id in tokenizer.special_ids}
    assert texts == {tokenizers.BOS, tokenizers.EOS, tokenizers.TURN_START}


@pytest.mark.parametrize("tokenizer", [BYTES, PIECES, WORDS])
def test_id_without_a_token_shows_nothing(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_bytes(tokenizer.vocab_size + 7) == b""
    assert tokenizer.token_bytes(-1) == b""


def test_vocabulary_size_counts_added_tokens() -> None:
    assert BYTES.token_text(BYTES.vocab_size - 1) == tokenizers.EOS


def test_eos_set_joins_the_tokenizers_and_the_models() -> None:
    tokenizer = Tokenizer(tokenizers.make_byte_tokenizer(), eos_token_ids=[7])
    assert {tokenizer.token_bytes(token_id) for token_id in tokenizer.eos_token_ids} == {
        b"\x07",
        tokenizers.EOS.encode(),
    }


def test_decoding_leaves_spaces_before_punctuation_alone() -> None:
    backend = tokenizers.make_byte_tokenizer()
    backend.clean_up_tokenization_spaces = True
    backend.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    tokenizer = Tokenizer(backend)
    assert tokenizer.decode(tokenizer.encode("a , b", add_special_tokens=False)) == "a , b"


@pytest.mark.parametrize(
    "make", [tokenizers.make_byte_tokenizer, tokenizers.make_opaque_byte_tokenizer]
)
def test_truncation_in_the_file_does_not_shorten_prompts(make: Callable[[], Any]) -> None:
    backend = make()
    backend.backend_tokenizer.enable_truncation(2)
    backend.backend_tokenizer.enable_padding(length=50)
    tokenizer = Tokenizer(backend)
    # Left to the first call, this would change the backend while other threads use it.
    assert backend.backend_tokenizer.truncation is None
    assert backend.backend_tokenizer.padding is None
    assert len(tokenizer.encode("abcdef", add_special_tokens=False)) == 6


def test_many_threads_get_what_one_gets() -> None:
    texts = [f"the {number} 你好 🙂 in" * 20 for number in range(64)]
    tokenizer = Tokenizer(tokenizers.make_byte_tokenizer())
    expected = [tokenizer.encode(text, add_special_tokens=True) for text in texts]
    fresh = Tokenizer(tokenizers.make_byte_tokenizer())

    def there_and_back(text: str) -> tuple[list[int], str]:
        ids = fresh.encode(text, add_special_tokens=True)
        return ids, fresh.decode(ids)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(there_and_back, texts))
    assert results == list(zip(expected, texts, strict=True))


class ShoutingTokenizer:
    """A tokenizer whose Python side changes what its decoder says."""

    def __init__(self) -> None:
        self._tokenizer = tokenizers.make_byte_tokenizer()

    def decode(self, ids: list[int], **options: Any) -> str:
        text: str = self._tokenizer.decode(ids, **options)
        return text.upper()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def test_rules_that_fail_the_self_check_are_not_used() -> None:
    tokenizer = Tokenizer(ShoutingTokenizer())
    assert not tokenizer.streams_natively
    detokenizer = tokenizer.make_detokenizer()
    assert "".join(map(detokenizer.feed, b"the hat")) + detokenizer.close() == "THE HAT"
    assert tokenizer.token_text(ord("t")) == "T"


def state(decoder: Any) -> Any:
    return json.loads(decoder.__getstate__())


@pytest.mark.parametrize(
    "steps",
    [
        [decoders.WordPiece()],
        [decoders.ByteLevel(), decoders.Fuse()],
        [decoders.ByteFallback(), decoders.Fuse()],
        # The mark is replaced behind the bytes: bytes that spell it become a space too.
        [decoders.ByteFallback(), decoders.Metaspace()],
        [decoders.ByteFallback(), decoders.Replace("▁", " ")],
        # Strips every token, not the text.
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Strip(" ", 1, 0)],
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 0, 1)],
    ],
)
def test_decoder_with_a_step_out_of_place_is_opaque(steps: list[Any]) -> None:
    assert read_rules(state(decoders.Sequence(steps))) is None


def test_no_decoder_is_opaque() -> None:
    assert read_rules(None) is None


def test_metaspace_alone_is_understood() -> None:
    rules = read_rules(state(decoders.Metaspace(prepend_scheme="never")))
    assert rules == SentencePieceRules(space_mark="▁", has_byte_tokens=False)
