"""Amounts of memory as people write and read them."""

from __future__ import annotations

import re
from fractions import Fraction

# Decimal and binary units differ by 7 % at a gigabyte; both are meant as they are written.
_UNITS = {
    "": 1,
    "b": 1,
    "k": 1000,
    "kb": 1000,
    "m": 1000**2,
    "mb": 1000**2,
    "g": 1000**3,
    "gb": 1000**3,
    "t": 1000**4,
    "tb": 1000**4,
    "ki": 1024,
    "kib": 1024,
    "mi": 1024**2,
    "mib": 1024**2,
    "gi": 1024**3,
    "gib": 1024**3,
    "ti": 1024**4,
    "tib": 1024**4,
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", re.ASCII)


def parse_bytes(text: str) -> int:
    """Bytes of ``2GiB``, ``500MB``, ``1.5g`` or a plain number; units in any case.

    Raises:
        ValueError: It is not such a text, or less than one byte.
    """
    match = _SIZE.fullmatch(text)
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError(f"'{text}' is not a size; write it like 2GiB or 500MB")
    # Exact, where a float would lose the last bytes of a large amount.
    num_bytes = int(Fraction(match[1]) * _UNITS[match[2].lower()])
    if num_bytes < 1:
        raise ValueError(f"'{text}' is less than one byte")
    return num_bytes


def parse_disk_bytes(text: str) -> int:
    """As `parse_bytes`, but 0 and ``off`` are 0.

    Raises:
        ValueError: As for `parse_bytes`.
    """
    return 0 if text.strip().lower() in ("off", "0") else parse_bytes(text)


def exact_bytes(num_bytes: int) -> str:
    """A text that `parse_disk_bytes` reads as just these: ``2GiB``, ``1234B``, or ``off`` for 0."""
    if num_bytes == 0:
        return "off"
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if num_bytes % _UNITS[unit.lower()] == 0:
            return f"{num_bytes // _UNITS[unit.lower()]}{unit}"
    return f"{num_bytes}B"


def format_bytes(num_bytes: int) -> str:
    """``1.5 GiB``: binary units, one decimal where it says something."""
    amount = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return (
                f"{amount:.0f} {unit}" if amount >= 100 or unit == "B" else f"{amount:.1f} {unit}"
            )
        amount /= 1024
    return f"{amount:.1f} TiB"
