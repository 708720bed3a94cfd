"""The vocabulary inside a GGUF file → ``tokenizer.json`` and its companions.

transformers can do this only with torch and the ``gguf`` package installed, and ignores
``tokenizer.ggml.pre``, without which numbers and contractions are cut wrongly.

Source: ggml-org/ggml, docs/gguf.md, "Tokenizer"; huggingface.co/docs/tokenizers; the split
patterns are those that the models' makers publish in their ``tokenizer.json``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from ..errors import ModelLoadError
from .gguf_header import GgufHeader

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS_AND_REST = r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
_SPACES = r"|\s+(?!\S)|\s+"
_LLAMA3_PATTERN = _CONTRACTIONS + _LETTERS_AND_REST % r"\p{N}{1,3}" + _SPACES
_QWEN2_PATTERN = _CONTRACTIONS + _LETTERS_AND_REST % r"\p{N}" + _SPACES

# tokenizer.ggml.pre → the pattern that words are cut with.
_PATTERNS = {
    "llama-bpe": _LLAMA3_PATTERN,
    "llama3": _LLAMA3_PATTERN,
    "qwen2": _QWEN2_PATTERN,
    "deepseek-r1-qwen": _QWEN2_PATTERN,
}
_GPT2_NAMES = ("default", "gpt-2")
_DIGIT_NAMES = ("smollm", "refact", "starcoder")
# Whole words that are in the vocabulary are taken as they are, whatever the merges say.
_IGNORES_MERGES = ("llama-bpe", "llama3")
_ADDS_BOS = ("llama-bpe", "llama3")


def write_tokenizer(header: GgufHeader, folder: Path) -> None:
    """Write ``tokenizer.json``, ``tokenizer_config.json`` and ``chat_template.jinja``.

    Raises:
        ModelLoadError: The file has no vocabulary, or one of a kind that is not known.
    """
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise ModelLoadError("the GGUF file holds no vocabulary")
    kind = header.get("tokenizer.ggml.model", str)
    if kind == "gpt2":
        tokenizer = _byte_level_tokenizer(header, tokens)
    elif kind == "llama":
        tokenizer = _sentencepiece_tokenizer(header, tokens)
    else:
        raise ModelLoadError(f"GGUF tokenizer '{kind}' cannot be converted")
    _add_special_tokens(tokenizer, header, tokens)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.dumps(_tokenizer_config(header, tokens), indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(config, encoding="utf-8")
    template = header.metadata.get("tokenizer.chat_template")
    if isinstance(template, str) and template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _byte_level_tokenizer(header: GgufHeader, tokens: list[str]) -> Tokenizer:
    pre = header.get("tokenizer.ggml.pre", str, "default")
    merges = header.metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise ModelLoadError("the GGUF file holds no merges")
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            # A token never holds a plain space, so the first one parts the pair.
            merges=[_pair(merge) for merge in merges],
            ignore_merges=pre in _IGNORES_MERGES,
        )
    )
    tokenizer.pre_tokenizer = _pre_tokenizer(pre)
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    byte_level = processors.ByteLevel(trim_offsets=False)
    bos = _bos_processor(header, tokens, default=pre in _ADDS_BOS)
    tokenizer.post_processor = processors.Sequence([byte_level, bos]) if bos else byte_level
    return tokenizer


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _pre_tokenizer(pre: str) -> pre_tokenizers.PreTokenizer:
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre in _GPT2_NAMES:
        return gpt2
    if pre in _DIGIT_NAMES:
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, gpt2])
    if pre not in _PATTERNS:
        known = ", ".join(sorted([*_PATTERNS, *_GPT2_NAMES, *_DIGIT_NAMES]))
        raise ModelLoadError(f"GGUF pre-tokenizer '{pre}' is not known; known are {known}")
    split = pre_tokenizers.Split(Regex(_PATTERNS[pre]), behavior="isolated")
    return pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def _sentencepiece_tokenizer(header: GgufHeader, tokens: list[str]) -> Tokenizer:
    scores = header.metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise ModelLoadError("the GGUF file holds no scores for its vocabulary")
    vocab = {token: index for index, token in enumerate(tokens)}
    special = [
        token
        for token, kind in zip(tokens, _token_types(header, tokens), strict=True)
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]
    merges = _merges_by_score(vocab, scores, set(special))
    unknown = _token(header, tokens, "unknown")
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    with_prefix = header.get("tokenizer.ggml.add_space_prefix", bool, True)
    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend("▁"), replace]) if with_prefix else replace
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if with_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    if bos := _bos_processor(header, tokens, default=True):
        tokenizer.post_processor = bos
    return tokenizer


def _merges_by_score(
    vocab: dict[str, int], scores: list[float], special: set[str]
) -> list[tuple[str, str]]:
    """Every way to put a piece together from two others, the best piece first.

    SentencePiece joins the pair whose result scores highest; BPE joins the pair that is listed
    first. Of equal scores the longer left part goes first.
    """
    merges = []
    for piece, index in vocab.items():
        if piece in special:
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocab and right in vocab and not special & {left, right}:
                merges.append((-scores[index], -len(left), left, right))
    merges.sort(key=lambda merge: merge[:2])
    return [(left, right) for _, _, left, right in merges]


def _bos_processor(
    header: GgufHeader, tokens: list[str], *, default: bool
) -> processors.TemplateProcessing | None:
    bos = _token(header, tokens, "bos")
    if bos is None or not header.get("tokenizer.ggml.add_bos_token", bool, default):
        return None
    return processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos}:1 $B:1",
        special_tokens=[(bos, header.get("tokenizer.ggml.bos_token_id", int))],
    )


def _add_special_tokens(tokenizer: Tokenizer, header: GgufHeader, tokens: list[str]) -> None:
    types = _token_types(header, tokens)
    control = [t for t, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    defined = [t for t, kind in zip(tokens, types, strict=True) if kind == _USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in defined])
    if tokenizer.get_vocab_size() != len(tokens):
        raise ModelLoadError("the vocabulary of the GGUF file holds a token twice")


def _token_types(header: GgufHeader, tokens: list[str]) -> list[int]:
    types = header.metadata.get("tokenizer.ggml.token_type")
    return types if isinstance(types, list) and len(types) == len(tokens) else [1] * len(tokens)


def _token(header: GgufHeader, tokens: list[str], name: str) -> str | None:
    index = header.metadata.get(f"tokenizer.ggml.{name}_token_id")
    return tokens[index] if isinstance(index, int) and 0 <= index < len(tokens) else None


def _tokenizer_config(header: GgufHeader, tokens: list[str]) -> dict[str, Any]:
    names = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    special = {
        f"{name}_token": token
        for name, key in names.items()
        if (token := _token(header, tokens, key)) is not None
    }
    return {
        # The named classes of transformers rebuild the pipeline their own way; this one takes
        # tokenizer.json as it is.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": header.get(f"{header.architecture}.context_length", int),
        **special,
    }
