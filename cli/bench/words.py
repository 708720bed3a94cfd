"""Prompts of a wanted number of tokens, for a tokenizer that nobody here has.

The words are common enough to be one token each to most tokenizers. What they really come to, and
what a chat template adds, is read off the server's own usage by `calibration`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

_WORDS = """
about above across action active after again agree ahead allow alone along angle animal answer
apple april area army around arrive artist aside august author autumn avenue baby back ball band
bank base basic battle beach bear beauty become before begin behind below bench best better beyond
bird black blood blue board boat body book border bottle bottom branch bread break bridge bright
broad brother brown budget build business button camera camp capital carbon card care carry castle
catch cause center chain chair chance change chapter charge cheap check choice church circle city
claim class clean clear climb clock close cloud club coast coffee cold college color column common
company control cook copper copy corner cotton count country couple course court cover cream create
crime cross crowd culture current dance danger dark data daughter dead deal dear death debate decade
deep degree desert design desk detail dinner direct distance doctor dollar door double doubt dozen
drama dream dress drink drive early earth east easy edge effect eight either electric empty energy
engine enjoy enough enter equal error escape evening event every exact example expect factor fair
faith fall family famous farm fast father fear field fifty fight figure final finger finish fire
first fish five flat flight floor flow flower follow food foot force forest form forward four frame
free fresh friend front fruit full future game garden gas general gentle giant gift girl glass goal
gold good grand grass great green ground group grow guard guess guide hair half hall hand happy hard
"""
WORDS = tuple(_WORDS.split())


@dataclass(frozen=True, slots=True)
class TokenScale:
    """What words come to, by a server's usage.

    Attributes:
        tokens_per_word: Of a long text.
        overhead: Tokens of a prompt without words.
    """

    tokens_per_word: float = 1.0
    overhead: float = 0.0

    def num_words(self, num_tokens: int) -> int:
        """For a prompt of so many tokens; at least one."""
        return max(1, round((num_tokens - self.overhead) / self.tokens_per_word))

    def num_more_words(self, num_tokens: int) -> int:
        """For so many tokens behind others."""
        return max(1, round(num_tokens / self.tokens_per_word))


def make_text(rng: random.Random, num_words: int) -> str:
    """Words without a sense."""
    return " ".join(rng.choices(WORDS, k=num_words))
