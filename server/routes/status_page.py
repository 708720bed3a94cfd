"""``GET /``: the status page, one file that asks for nothing from elsewhere.

The parts in ``static/`` are put together here. Style and script stand inline and are allowed by
their hashes, so that whatever else finds its way into the page, such as a model's words, is inert.

Source: w3.org/TR/CSP3, w3.org/TR/trusted-types.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

_STATIC = Path(__file__).parents[1] / "static"
# In this order: they share one scope.
_SCRIPTS = ("dom", "format", "metrics", "chart", "markdown", "panels", "requests", "chat", "main")


async def show_status_page(request: Request) -> Response:
    """The page for a browser: what the server does, and a chat with its model.

    It holds no numbers and no secrets, so it needs no key. It asks for one where its calls do.
    """
    content, policy = _build_page()
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return Response(content, media_type="text/html", headers=headers)


@cache
def _build_page() -> tuple[bytes, str]:
    style = _read("page.css")
    script = "\n".join(_read(f"{name}.js") for name in _SCRIPTS)
    page = _read("page.html").replace("/* page.css */", style).replace("/* *.js */", script)
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; require-trusted-types-for 'script'"
    )
    return page.encode(), policy


def _read(name: str) -> str:
    return (_STATIC / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
