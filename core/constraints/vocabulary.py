"""A model's tokens as llguidance wants them: by their exact bytes.

Built from bytes rather than from the tokenizer's file, so that grammars and answers agree on what
a token spells whatever the tokenizer is made of.
"""

from __future__ import annotations

from typing import cast

from llguidance import LLTokenizer, TokenizerWrapper

from ..text.tokenizer import Tokenizer


class Vocabulary:
    """Tokens of one model.

    Args:
        size: Ids the model has logits for.

    Attributes:
        end_ids: Tokens that end an answer.
        marker_ids: Text and id of special tokens.
        ll_tokenizer: What llguidance needs.
    """

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self._tokenizer = tokenizer
        self.size = size
        self.end_ids = tuple(sorted(i for i in tokenizer.eos_token_ids if i < size))
        special_ids = sorted(i for i in tokenizer.special_ids | {*self.end_ids} if i < size)
        texts = {token_id: self.token_bytes(token_id).decode() for token_id in special_ids}
        self.marker_ids = {text: token_id for token_id, text in texts.items() if text}
        # What follows is named as llguidance wants it.
        self.is_tokenizer_wrapper = True
        self.eos_token_id = min(self.end_ids, default=None)
        self.bos_token_id = None
        self.special_token_ids = special_ids
        self.tokens = [self.token_bytes(token_id) for token_id in range(size)]
        self.ll_tokenizer = LLTokenizer(
            cast(TokenizerWrapper, self), n_vocab=size, eos_token=list(self.end_ids) or None
        )

    def __call__(self, text: str) -> list[int]:
        """See `encode`; llguidance asks for the tokens of text that it forces."""
        return self.encode(text)

    def token_bytes(self, token_id: int) -> bytes:
        """See `Tokenizer.token_bytes`."""
        return self._tokenizer.token_bytes(token_id)

    def encode(self, text: str) -> list[int]:
        """Token ids that spell ``text`` and nothing else, as its own tokenizer cuts it if it can.

        A tokenizer may put a space before what it takes for a text's start.
        """
        token_ids = self._tokenizer.encode(text, add_special_tokens=False)
        if b"".join(map(self.token_bytes, token_ids)) == text.encode("utf-8"):
            return token_ids
        return self.ll_tokenizer.greedy_tokenize(text)
