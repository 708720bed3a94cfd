"""Tiny tokenizers of every decoder family, built in memory: nothing downloads.

`make_byte_tokenizer` is the house tokenizer of the tests: 256 byte tokens, a few merged ones, then
specials, with a ChatML template.
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

BOS, EOS, TURN_START = "<|bos|>", "<|im_end|>", "<|im_start|>"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Ids of the byte tokens are the bytes themselves; the merged ones follow, then the specials.
MERGED = (b"th", b"the", b" t", b" the", b"in", b" \xf0", b" \xf0\x9f", b"\x98\x80", b"\xe4\xbd")


def make_byte_tokenizer(*, chat_template: str | None = CHATML) -> Any:
    """Byte-level BPE whose token ``b`` is the byte ``b``."""
    alphabet = _byte_alphabet()
    vocab = {alphabet[byte]: byte for byte in range(256)}
    merges = []
    for text in MERGED:
        left, right = _split(text, vocab, alphabet)
        merges.append((left, right))
        vocab[left + right] = len(vocab)
    backend = Backend(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken("<think>", normalized=False)])
    return _wrap(backend, chat_template)


def make_sentencepiece_tokenizer(*, kind: str = "strip") -> Any:
    """Sentencepiece-like: marks for spaces, bytes as a fallback.

    `kind` names what becomes of the first space: ``strip`` (one is dropped from the text),
    ``metaspace`` (the first token's marks are dropped) or ``keep``.
    """
    words = ["▁", "▁the", "▁a", "th", "e", "in", "▁in", "t", "h", "a", ".", ",", "▁▁", "\n", "é"]
    vocab = {"<unk>": 0} | {f"<0x{byte:02X}>": 1 + byte for byte in range(256)}
    for word in words:
        vocab.setdefault(word, len(vocab))
    merges = [("t", "h"), ("▁", "▁"), ("▁", "a")]
    backend = Backend(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True))
    if kind == "metaspace":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        steps = [decoders.Metaspace(prepend_scheme="first"), decoders.ByteFallback()]
    else:
        replace = normalizers.Replace(" ", "▁")
        prepend = normalizers.Prepend("▁")
        backend.normalizer = (
            normalizers.Sequence([prepend, replace]) if kind == "strip" else replace
        )
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        steps += [decoders.Strip(" ", 1, 0)] if kind == "strip" else []
    backend.decoder = decoders.Sequence(steps)
    return _wrap(backend, CHATML)


def make_wordpiece_tokenizer() -> Any:
    """WordPiece, whose decoder only the tokenizer itself understands."""
    words = [
        "[UNK]",
        "the",
        "a",
        "in",
        "##the",
        "##a",
        "##in",
        ".",
        ",",
        "'",
        "s",
        "你",
        "🙂",
        "do",
    ]
    backend = Backend(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return _wrap(backend, CHATML)


def make_opaque_byte_tokenizer() -> Any:
    """Byte-level BPE with a decoder that does one thing more, so that its rules do not apply."""
    tokenizer = make_byte_tokenizer()
    tokenizer.backend_tokenizer.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Replace(Regex("~"), "≈")]
    )
    return tokenizer


def _wrap(backend: Backend, chat_template: str | None) -> Any:
    specials = [AddedToken(text, special=True, normalized=False) for text in (BOS, TURN_START, EOS)]
    backend.add_special_tokens(specials)
    # The class is not annotated upstream.
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, bos_token=BOS, eos_token=EOS
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def _split(text: bytes, vocab: dict[str, int], alphabet: list[str]) -> tuple[str, str]:
    names = "".join(alphabet[byte] for byte in text)
    for cut in range(1, len(names)):
        if names[:cut] in vocab and names[cut:] in vocab:
            return names[:cut], names[cut:]
    raise ValueError(f"no two tokens make {text!r}")


def _byte_alphabet() -> list[str]:
    """The character that names each byte, as the library spells characters that hold them all."""
    codes = [*range(0xC0), *range(0xC0, 0x800, 0x40), 0x800, *range(0x1000, 0xD001, 0x1000)]
    codes += [0xE000, 0xF000, 0x10000, *range(0x40000, 0x100001, 0x40000)]
    text = "".join(map(chr, codes))
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    ((names, _),) = splitter.pre_tokenize_str(text)
    by_byte = dict(zip(text.encode(), names, strict=True))
    # The bytes that no text holds name themselves.
    return [by_byte.get(byte, chr(byte)) for byte in range(256)]
