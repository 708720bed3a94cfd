"""Asks a server what words come to, so that prompts get the length that is wanted."""

from __future__ import annotations

import random

from pippin.core.errors import PippinError

from .answer import EMPTY_ANSWER
from .asking import Asker
from .words import TokenScale, make_text

_FEW, _MANY = 8, 264


async def calibrate(asker: Asker, seed: int) -> TokenScale | None:
    """Send two prompts of known numbers of words; ``None`` if the server counts no tokens.

    Raises:
        PippinError: The server does not answer such a request.
    """
    rng = random.Random(f"{seed}/calibration")
    few, many = [await _count(asker, make_text(rng, num)) for num in (_FEW, _MANY)]
    if few is None or many is None or many <= few:
        return None
    tokens_per_word = (many - few) / (_MANY - _FEW)
    return TokenScale(tokens_per_word, max(0.0, few - _FEW * tokens_per_word))


async def _count(asker: Asker, text: str) -> int | None:
    answer = await asker.ask_once([{"role": "user", "content": text}], 1)
    # One token may well be no text.
    if answer.failure is not None and answer.failure.kind != EMPTY_ANSWER:
        raise PippinError(f"the server did not answer the first request: {answer.failure}")
    return answer.prompt_tokens
