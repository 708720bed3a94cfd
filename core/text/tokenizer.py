"""A Hugging Face tokenizer behind the few calls that the engine makes.

It adds what transformers lacks: the exact bytes of a token, text that can be streamed, and one eos
set. Every method may be called from several threads at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from functools import cached_property, partial
from typing import Any

from .detokenizer import (
    ByteLevelDetokenizer,
    Detokenizer,
    SentencePieceDetokenizer,
    WindowDetokenizer,
)
from .pieces import ByteLevelRules, LazyTable, SentencePieceRules, read_rules

# Spaces at both ends, spaces before punctuation, line ends, scripts of one to four bytes a
# character, characters of several code points, and code.
SELF_CHECK_TEXTS = (
    " Hello ,  world .\n\n  It 's 1 234.5 €\t!",
    "naïve Ångström — 你好,世界 … こんにちは 안녕 שלום नमस्ते",
    "🙂👩‍👩‍👧 e\u0301 \u00a0\u200b",
    "def f(x):\n    return {'a': x[0] ** 2}  # ok\r\n",
)
NUM_SELF_CHECK_IDS = 1000
PROBE = "pippin-probe"


class Tokenizer:
    """Text to token ids and back.

    Args:
        hf_tokenizer: A transformers tokenizer, or mlx-lm's wrapper around one. Truncation and
            padding of its backend are switched off for good.
        eos_token_ids: Tokens that end an answer, beside the tokenizer's own eos token.
    """

    def __init__(self, hf_tokenizer: Any, eos_token_ids: Iterable[int] = ()) -> None:
        self._hf = hf_tokenizer
        self._backend = getattr(hf_tokenizer, "backend_tokenizer", None)
        if self._backend is not None:
            # transformers would do this inside of the first call, under the feet of other threads.
            self._backend.no_truncation()
            self._backend.no_padding()
        own = () if hf_tokenizer.eos_token_id is None else (int(hf_tokenizer.eos_token_id),)
        self.eos_token_ids = frozenset(own) | frozenset(eos_token_ids)
        self.special_ids = frozenset(
            token_id
            for token_id, token in hf_tokenizer.added_tokens_decoder.items()
            if token.special
        )
        self.vocab_size: int = max(hf_tokenizer.get_vocab().values()) + 1
        self._rules = self._read_rules()
        self._all_bytes = LazyTable(self._make_bytes)
        self._pieces = {skip: self._make_pieces(skip) for skip in (False, True)}
        if self._rules is not None and not self._passes_self_check():
            self._rules = None

    @property
    def streams_natively(self) -> bool:
        """Whether the decoder was understood, so that detokenizing need not call the tokenizer."""
        return self._rules is not None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`; special tokens that are spelled out in it become their ids."""
        # verbose=False: the length is ours to check, and the model's limit may have been raised.
        ids: list[int] = self._hf.encode(text, add_special_tokens=add_special_tokens, verbose=False)
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `token_ids`, spaces left as they are; ids without a token are left out."""
        text: str = self._hf.decode(
            list(token_ids),
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=False,
        )
        return text

    def make_detokenizer(
        self, *, skip_special_tokens: bool = True, shown_ids: Set[int] = frozenset()
    ) -> Detokenizer:
        """A fresh detokenizer, equal to `decode` with the same argument.

        Args:
            shown_ids: Special tokens that are not skipped.
        """
        rules = self._rules
        pieces = self._pieces[skip_special_tokens]
        if shown_ids:
            pieces = LazyTable(partial(self._piece_shown, shown_ids))
        if isinstance(rules, ByteLevelRules):
            return ByteLevelDetokenizer(pieces)
        if isinstance(rules, SentencePieceRules):
            return SentencePieceDetokenizer(
                rules,
                pieces,
                lambda token_id: rules.first_piece(self._name(token_id) or ""),
            )
        hidden = self.special_ids - shown_ids if skip_special_tokens else frozenset()
        return WindowDetokenizer(
            lambda ids: self.decode(
                [token_id for token_id in ids if token_id not in hidden], skip_special_tokens=False
            ),
            hidden,
        )

    def token_text(self, token_id: int) -> str:
        """The token alone, as it reads inside a text; broken characters show as U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The token's exact bytes, also of a fragment of a character; of a special token its text.

        Empty for ids without a token: a model's logits may be wider than its vocabulary.
        """
        return self._all_bytes[token_id]

    @property
    def has_chat_template(self) -> bool:
        """Whether `apply_chat_template` can work."""
        # mlx-lm's wrapper also knows templates that are Python functions.
        known = getattr(self._hf, "has_chat_template", None)
        return self._hf.chat_template is not None if known is None else bool(known)

    @cached_property
    def chat_template_wants_parts(self) -> bool:
        """Whether the template shows content only when it is a list of parts.

        Found out by trying: a template that walks over parts finds none in a string and shows none.
        """
        text, parts = PROBE, [{"type": "text", "text": PROBE}]
        if self._chat_template_shows_probe({"role": "user", "content": text}):
            return False
        return self._chat_template_shows_probe({"role": "user", "content": parts})

    @cached_property
    def chat_template_knows_developer(self) -> bool:
        """Whether the template has a role ``developer``.

        Many print the name of any role, so it must be spelled out as well; and some only speak of
        developers without letting one speak.
        """
        if not self.chat_template_knows("developer"):
            return False
        return self._chat_template_shows_probe(
            {"role": "developer", "content": PROBE}, {"role": "user", "content": "user"}
        )

    @cached_property
    def chat_template_moves_rules(self) -> bool:
        """Whether the template shows a system message before turns that it comes after."""
        turn = "pippin-turn"
        shown = self._try_chat_template(
            {"role": "user", "content": turn},
            {"role": "assistant", "content": "answer"},
            {"role": "system", "content": PROBE},
            {"role": "user", "content": "last"},
        )
        return 0 <= shown.find(PROBE) < shown.find(turn)

    @cached_property
    def chat_template_text(self) -> str:
        """All of the model's templates, one after another; empty if there is none."""
        template = self._hf.chat_template
        sources = template.values() if isinstance(template, Mapping) else (template or "",)
        return "\n".join(sources)

    def chat_template_knows(self, word: str) -> bool:
        """Whether the template speaks of a variable or a role."""
        return re.search(rf"\b{re.escape(word)}\b", self.chat_template_text) is not None

    @property
    def chat_template_knows_tools(self) -> bool:
        """Whether the template shows tools, or calls, or results."""
        return any(map(self.chat_template_knows, ("tools", "tool_calls", "tool")))

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        **variables: Any,
    ) -> str:
        """Render messages in the form that templates take; any error of the template passes."""
        text: str = self._hf.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **variables,
        )
        return text

    def _chat_template_shows_probe(self, *turns: Mapping[str, Any]) -> bool:
        return PROBE in self._try_chat_template(*turns)

    def _try_chat_template(self, *turns: Mapping[str, Any]) -> str:
        try:
            return self.apply_chat_template(turns, add_generation_prompt=False)
        except Exception:  # a template is a program and can fail in any way
            return ""

    def _name(self, token_id: int) -> str | None:
        # The backend takes no negative ids and knows nothing behind the vocabulary.
        if not 0 <= token_id < self.vocab_size:
            return None
        name: str | None = self._hf.convert_ids_to_tokens(token_id)
        return name

    def _read_rules(self) -> ByteLevelRules | SentencePieceRules | None:
        if self._backend is None or self._backend.decoder is None:
            return None
        # A decoder pickles as its JSON: far cheaper than asking for the whole tokenizer's.
        return read_rules(json.loads(self._backend.decoder.__getstate__()))

    def _piece_shown(self, shown_ids: Set[int], token_id: int) -> bytes | str | int | None:
        return self._pieces[token_id not in shown_ids][token_id]  # type: ignore[no-any-return]

    def _make_pieces(self, skip_special_tokens: bool) -> LazyTable[Any]:
        nothing = b"" if isinstance(self._rules, ByteLevelRules) else None

        def make(token_id: int) -> bytes | str | int | None:
            name = self._name(token_id)
            if name is None or (skip_special_tokens and token_id in self.special_ids):
                return nothing
            assert self._rules is not None
            return self._rules.piece(name)

        return LazyTable(make)

    def _make_bytes(self, token_id: int) -> bytes:
        name = self._name(token_id)
        if name is None:
            return b""
        if token_id in self.special_ids:
            return name.encode("utf-8")
        if self._rules is None:
            return self._text_in_context(token_id).encode("utf-8")
        piece = self._rules.piece(name)
        if isinstance(piece, int):
            return bytes([piece])
        return piece if isinstance(piece, bytes) else piece.encode("utf-8")

    def _text_in_context(self, token_id: int) -> str:
        # What the token adds behind another one: alone, many decoders treat it as a text's start.
        context = self.encode("a", add_special_tokens=False)
        before = self.decode(context, skip_special_tokens=False)
        after = self.decode([*context, token_id], skip_special_tokens=False)
        if after.startswith(before):
            return after[len(before) :]
        return self.decode([token_id], skip_special_tokens=False)

    def _passes_self_check(self) -> bool:
        stride = max(1, self.vocab_size // NUM_SELF_CHECK_IDS)
        samples = [self.encode(text, add_special_tokens=True) for text in SELF_CHECK_TEXTS]
        samples.append(list(range(0, self.vocab_size, stride)))
        samples.append(sorted(self._hf.added_tokens_decoder)[:NUM_SELF_CHECK_IDS])
        for skip in (False, True):
            for ids in samples:
                detokenizer = self.make_detokenizer(skip_special_tokens=skip)
                text = "".join(map(detokenizer.feed, ids)) + detokenizer.close()
                if text != self.decode(ids, skip_special_tokens=skip):
                    return False
        return True
