"""Arguments of calls: as a conversation brings them back, and as an answer shows them decoded."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pydantic_core import from_json

_CONSTANTS = {"Infinity": sys.float_info.max, "-Infinity": -sys.float_info.max, "NaN": None}
_MAX_DIGITS = 4300  # Python's own limit, which writing them has as well


def read_arguments(text: str) -> Mapping[str, Any] | str:
    """A call's arguments as a template takes them.

    What is no JSON object stays as it is. This server gives such arguments out itself, where the
    token limit cuts a call off, and clients send them back with the history.
    """
    try:
        arguments = from_json(text or "{}")
    except ValueError:
        return text
    return arguments if isinstance(arguments, dict) else text


def salvage_arguments(text: str) -> Any:
    """The arguments of a call; of one that broke off, as far as they make sense."""
    # Otherwise there are none, or this is what is left of a call that broke off before them.
    if not text.startswith("{"):
        return {}
    try:
        # JSON has no infinity, but numbers that Python makes one of.
        return json.loads(json.dumps(_read_partial(text)), parse_constant=_CONSTANTS.get)
    except RecursionError:
        return {}


def _read_partial(text: str) -> Any:
    try:
        return from_json(text, allow_partial=True)
    except ValueError:
        try:
            # It may be nested deeper, or hold larger numbers, than `from_json` likes.
            return json.loads(text, parse_int=_read_int)
        except json.JSONDecodeError as error:
            with suppress(ValueError):
                return from_json(text[: error.pos], allow_partial=True)
            return {}


def _read_int(digits: str) -> float:
    return int(digits) if len(digits) < _MAX_DIGITS else float(digits)
