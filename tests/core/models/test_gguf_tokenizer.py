"""The SmolLM2 vocabulary against known ids, and a SentencePiece vocabulary made by hand."""

from pathlib import Path

import pytest

from pippin.core.models.gguf_header import GgufHeader
from pippin.core.models.gguf_tokenizer import write_tokenizer
from pippin.core.models.loader import LoadedModel

# Ids that llama.cpp gives for the same file.
KNOWN = {
    "Hello  world, it's 1234!": [19556, 216, 905, 28, 357, 506, 216, 33, 34, 35, 36, 17],
    "\n\ndef f(x):\n\treturn x": [198, 198, 1604, 275, 24, 104, 727, 198, 197, 5406, 1792],
    "naïve 日本 🎉": [3546, 46494, 17097, 241, 115, 40993, 15107, 232, 227],
    "<|im_start|>user\nhi<|im_end|>": [1, 4093, 198, 6004, 2],
}


@pytest.mark.parametrize("text", KNOWN)
def test_demo_vocabulary_gives_known_ids(demo_model: LoadedModel, text: str) -> None:
    assert demo_model.tokenizer.encode(text) == KNOWN[text]
    assert demo_model.tokenizer.decode(KNOWN[text]) == text


def test_demo_chat_template_is_the_files_own(demo_model: LoadedModel) -> None:
    prompt = demo_model.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt.startswith("<|im_start|>system\n")
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def make_sentencepiece_header(*, add_bos: bool = True, prefix: bool = True) -> GgufHeader:
    words = ["▁", "h", "i", "▁h", "▁hi", "!"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *byte_tokens, *words]
    kinds = [2, 3, 3, *[6] * 256, *[1] * len(words)]
    scores = [0.0] * 259 + [-5.0, -6.0, -7.0, -1.0, -0.5, -8.0]
    return GgufHeader(
        metadata={
            "general.architecture": "llama",
            "llama.context_length": 64,
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": kinds,
            "tokenizer.ggml.scores": scores,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.ggml.add_bos_token": add_bos,
            "tokenizer.ggml.add_space_prefix": prefix,
        },
        tensor_types={},
        num_bytes=0,
    )


def encode(folder: Path, text: str) -> tuple[list[str], str]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoded = tokenizer.encode(text)
    return encoded.tokens, tokenizer.decode(encoded.ids)


def test_sentencepiece_merges_by_score_and_falls_back_to_bytes(tmp_path: Path) -> None:
    write_tokenizer(make_sentencepiece_header(), tmp_path)
    tokens, text = encode(tmp_path, "hi hié!")
    assert tokens == ["<s>", "▁hi", "▁hi", "<0xC3>", "<0xA9>", "!"]
    assert text == "hi hié!"


def test_sentencepiece_begin_and_prefix_can_be_off(tmp_path: Path) -> None:
    write_tokenizer(make_sentencepiece_header(add_bos=False, prefix=False), tmp_path)
    tokens, text = encode(tmp_path, "hi hi")
    assert tokens == ["h", "i", "▁hi"]
    assert text == "hi hi"


def test_special_tokens_are_known_to_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_tokenizer(make_sentencepiece_header(), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert tokenizer.decode(tokenizer.encode("hi"), skip_special_tokens=True) == "hi"
