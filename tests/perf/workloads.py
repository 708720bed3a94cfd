"""Requests to servers under test: stories, files to repeat with changes, code to edit.

All are greedy, stream with usage, and begin with a number of their own, so that no prefix cache has
seen them.
"""

from __future__ import annotations

import fnmatch
import heapq
import inspect
import json
import random
import re
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MODEL_NAME = "default_model"  # what mlx_lm calls the one on its command line
# What the chat template and the phrases around the words of a story come to.
_STORY_TOKENS = 33
_TEXT = """
river stone morning market window garden letter winter engine silver bridge forest music harbor
paper candle mountain doctor island thunder kitchen yellow story planet soldier bread summer
teacher ocean mirror castle village horse lantern
"""
_WORDS = _TEXT.split()
_MIN_WORDS, _MAX_WORDS = 4, 320
_MODULES = (fnmatch, heapq, shlex, textwrap)


def make_jobs(
    count: int, *, seed: str, max_tokens: int, num_tokens: int | None = None
) -> list[dict[str, Any]]:
    """Stories to be written.

    Args:
        num_tokens: About so many in each prompt; ``None`` mixes 37 to 353.
    """
    draw = random.Random(seed)
    jobs = []
    for _ in range(count):
        least, most = (
            (_MIN_WORDS, _MAX_WORDS)
            if num_tokens is None
            else (max(1, num_tokens - _STORY_TOKENS),) * 2
        )
        words = " ".join(draw.choices(_WORDS, k=draw.randint(least, most)))
        jobs.append(_chat(draw, f"Write a long story with: {words}", max_tokens))
    return jobs


def read_cycle(tokenizer: Path) -> list[str]:
    """The words that are one token of a byte-level vocabulary, in the order of synthetic models.

    Args:
        tokenizer: A ``tokenizer.json``.
    """
    vocab = json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"]
    words = sorted(token[1:] for token in vocab if re.fullmatch("\u0120[a-z]{4,}", token))
    random.Random(0).shuffle(words)
    return words


def repeat_jobs(
    count: int, *, cycle: Sequence[str], seed: str, num_words: int, every: int, max_tokens: int
) -> list[dict[str, Any]]:
    """A stretch of the cycle with other words in it, to be repeated without them.

    A synthetic model goes through the cycle from the last word of the prompt, which is the first of
    the stretch.

    Args:
        every: One word of so many is another one; more than ``num_words`` for none.
    """
    draw = random.Random(seed)
    jobs = []
    for _ in range(count):
        start = draw.randrange(len(cycle))
        words = [cycle[(start + i) % len(cycle)] for i in range(num_words)]
        shown = [
            draw.choice(cycle) if i % every == every - 1 else word for i, word in enumerate(words)
        ]
        prompt = f"{draw.randrange(10**9)}: {' '.join(shown)}\n {words[0]}"
        jobs.append({"path": "/v1/completions", "prompt": prompt, **_settings(max_tokens)})
    return jobs


def edit_jobs(count: int, *, seed: str, num_lines: int, max_tokens: int) -> list[dict[str, Any]]:
    """Code to be repeated with a change, for a model that can read."""
    draw = random.Random(seed)
    jobs = []
    for _ in range(count):
        lines = inspect.getsource(draw.choice(_MODULES)).splitlines()
        start = draw.randrange(len(lines) - num_lines)
        code = "\n".join(lines[start : start + num_lines])
        text = f"```python\n{code}\n```\nRepeat this code with every `self` renamed to `this`."
        jobs.append(_chat(draw, text, max_tokens))
    return jobs


def _chat(draw: random.Random, text: str, max_tokens: int) -> dict[str, Any]:
    messages = [
        {"role": "system", "content": f"{draw.randrange(10**9)} is your number."},
        {"role": "user", "content": text},
    ]
    return {"messages": messages, **_settings(max_tokens)}


def _settings(max_tokens: int) -> dict[str, Any]:
    return {
        "model": MODEL_NAME,
        "max_tokens": max_tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
