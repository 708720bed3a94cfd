"""Server-sent events: frames, and frames with one text left open.

A stream of one model differs from chunk to chunk in a single string, so all but that string is
encoded once per answer. The constant tail of the OpenAI protocol lives here as well.

Source: WHATWG HTML, section 9.2 "Server-sent events".
"""

from __future__ import annotations

import json
from typing import Any

DONE = b"data: [DONE]\n\n"

# Holds the place of the text in the object of an `EventTemplate`. No name of a model, the only
# foreign string beside it, holds a NUL.
TEXT_SLOT = "\0text\0"

# One encoder for the process: json.dumps with options builds a new one at each call.
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def encode_event(data: object) -> bytes:
    """Frame one event. Compact JSON holds no newline, so one data line is always enough."""
    return b"data: " + _encode(data).encode() + b"\n\n"


class EventTemplate:
    """An event that is encoded but for one string.

    Args:
        data: JSON object that holds `TEXT_SLOT`, as a value, wherever the text is to stand.
    """

    def __init__(self, data: dict[str, Any]) -> None:
        self._parts = encode_event(data).split(_encode(TEXT_SLOT).encode())
        assert len(self._parts) > 1, "the object has no text slot"

    def fill(self, text: str) -> bytes:
        """The whole frame, with ``text`` in the slots."""
        return _encode(text).encode().join(self._parts)
