"""Values of options that are more than a number: lists, lengths, durations, limits, JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, TypeVar

import typer

from .plan import Length

_Number = TypeVar("_Number", int, float)


# Typer reads a bare list or tuple as an option that is given several times.
class Counts(tuple[int, ...]):
    """Positive numbers."""


class Rates(tuple[float, ...]):
    """Positive numbers a second."""


class Size(tuple[int, int]):
    """Width and height."""


class Limits(dict[str, float]):
    """Milliseconds by name."""


class Body(dict[str, Any]):
    """A JSON object."""


# Fields that the workload and the measurement themselves decide.
_OWN_FIELDS = ("model", "messages", "prompt", "input", "stream")
SLO_NAMES = ("ttft", "tpot", "e2e")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)", re.ASCII)
_MS = {"ms": 1.0, "s": 1e3, "m": 6e4, "h": 3.6e6}


def parse_ms(text: str) -> float:
    """Milliseconds of ``500ms``, ``2s``, ``1.5m`` or ``1h``."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or not float(match[1]):
        raise typer.BadParameter(f"'{text}' is not a duration; write it like 500ms, 2s or 5m")
    return float(match[1]) * _MS[match[2]]


def parse_seconds(text: str) -> float:
    """As `parse_ms`, in seconds."""
    return parse_ms(text) / 1000


def parse_length(text: str) -> Length:
    """``512`` or ``512:128``."""
    mean, _, spread = text.partition(":")
    if not re.fullmatch(r"\d+(:\d+)?", text, re.ASCII) or int(mean) <= int(spread or 0):
        raise typer.BadParameter(f"'{text}' is not a length; write it like 512, or 512:128")
    return Length(int(mean), int(spread or 0))


def parse_counts(text: str) -> Counts:
    """``1,4,16``."""
    return Counts(_parse_list(text, int, "1,4,16"))


def parse_rates(text: str) -> Rates:
    """``0.5,2,4``."""
    return Rates(_parse_list(text, float, "0.5,2,4"))


def _parse_list(text: str, number: Callable[[str], _Number], example: str) -> list[_Number]:
    try:
        values = [number(part) for part in text.split(",")]
    except ValueError:
        values = []
    # Not a number (nan) and infinity fail here too.
    if not values or not all(0 < value < 1e6 for value in values):
        raise typer.BadParameter(f"'{text}' is not a list of positive numbers like {example}")
    if len(set(values)) < len(values):
        raise typer.BadParameter(f"'{text}' holds a number twice")
    return values


def parse_slo(text: str) -> Limits:
    """``ttft=500ms,tpot=50ms,e2e=10s``, as milliseconds by name."""
    limits = Limits()
    for part in text.split(","):
        name, _, limit = part.partition("=")
        if name.strip() not in SLO_NAMES or name.strip() in limits:
            raise typer.BadParameter(f"'{part}' is not one of ttft=, tpot= and e2e=, each once")
        limits[name.strip()] = parse_ms(limit)
    return limits


def parse_share(text: str) -> float:
    """0.1 of ``10%``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%", text.strip(), re.ASCII)
    if match is None:
        raise typer.BadParameter(f"'{text}' is not a share; write it like 10%")
    return float(match[1]) / 100


def parse_size(text: str) -> Size:
    """Width and height of ``512x512``."""
    match = re.fullmatch(r"(\d{1,4})x(\d{1,4})", text, re.ASCII)
    if match is None or not int(match[1]) or not int(match[2]):
        raise typer.BadParameter(f"'{text}' is not a size; write it like 512x512")
    return Size((int(match[1]), int(match[2])))


def parse_body(text: str) -> Body:
    """A JSON object without the fields that are not the user's to choose."""
    try:
        body = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"it is not valid JSON: {error}") from error
    if not isinstance(body, dict):
        raise typer.BadParameter("it must be a JSON object")
    for name in _OWN_FIELDS:
        if name in body:
            raise typer.BadParameter(f"'{name}' is decided by the workload and the measurement")
    return Body(body)
