"""Pictures that no server has seen before: PNGs of random colours, small in bytes.

Source: W3C "Portable Network Graphics (PNG) Specification", sections 5 and 9; RFC 2397.
"""

from __future__ import annotations

import base64
import random
import struct
import zlib

# Fields of one colour, so that bytes do not grow with pixels as noise would have them.
_FIELDS = 8


def make_png(rng: random.Random, width: int, height: int) -> bytes:
    """A chequered picture, 8 bits RGB."""
    rows = []
    for _ in range(_FIELDS):
        colors = [rng.randbytes(3) for _ in range(_FIELDS)]
        pixels = b"".join(colors[x * _FIELDS // width] for x in range(width))
        rows.append(b"\0" + pixels)  # 0: this row is not filtered
    raw = b"".join(rows[y * _FIELDS // height] for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    )


def make_data_url(png: bytes) -> str:
    """What goes into a message."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
