"""What every request passes before its handler: pure ASGI, one class each, outermost first.

Nothing here buffers a body in either direction, so streams pass untouched.
"""

from __future__ import annotations

import hmac
import logging
import re
import time
import uuid
from collections.abc import Awaitable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pippin.core.errors import PippinError

from .drain import Drain
from .errors import (
    BodyTooLargeError,
    DrainingError,
    UnauthorizedError,
    speaks_anthropic,
    to_http_error,
)
from .metrics import Metrics

logger = logging.getLogger(__name__)

# Anything else in a request id could break a log line apart.
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


def does_work(path: str) -> bool:
    """Whether a path takes engine time: such requests need a key and are refused in a drain."""
    return path.startswith(("/v1/", "/api/")) or path in _WORK_PATHS


_WORK_PATHS = frozenset({"/tokenize", "/detokenize", "/apply-template"})


class RequestIdMiddleware:
    """Takes the caller's ``x-request-id`` or makes one, and sends it back."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry. The id is ``scope["state"]["request_id"]``."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        # No coroutine of its own: what is sent passes here for every token.
        def send_with_id(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if speaks_anthropic(scope):
                    headers["request-id"] = request_id
            return send(message)

        await self.app(scope, receive, send_with_id)


class AccessLogMiddleware:
    """Writes one line and one observation per request, after its last byte."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry. The status that was sent is ``scope["state"]["status"]``."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun_at = time.monotonic()
        state = scope["state"]

        def send_and_note(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                state["status"] = message["status"]
            return send(message)

        try:
            await self.app(scope, receive, send_and_note)
        finally:
            seconds = time.monotonic() - begun_at
            status = state.get("status", 500)
            # The template, not the path: what callers invent must not become label values.
            template = getattr(scope.get("route"), "path", "unmatched")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self.metrics.observe_http(template, method, status, seconds)
            # What is asked again and again, and answered as ever, would bury the rest.
            is_routine = template in _POLLED and status < 400
            logger.log(
                logging.DEBUG if is_routine else logging.INFO,
                "http_request method=%s path=%s status=%d duration_ms=%.1f request_id=%s",
                method,
                scope["path"].encode("unicode_escape").decode(),
                status,
                seconds * 1000,
                state["request_id"],
            )


_POLLED = frozenset({"/health", "/metrics", "/v1/requests"})
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class UnexpectedErrorMiddleware:
    """Turns what nobody caught into a 500 in the shape of the others, and logs it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        try:
            await self.app(scope, receive, send)
        except Exception as error:
            if scope["type"] != "http":
                raise
            state = scope["state"]
            logger.exception("request_failed request_id=%s", state["request_id"])
            if "status" in state:
                raise  # too late for another answer: let the server cut the connection
            await to_http_error(error).to_response(scope)(scope, receive, send)


class DrainMiddleware:
    """Counts what runs, and refuses new work once the server drains."""

    def __init__(self, app: ASGIApp, *, drain: Drain) -> None:
        self.app = app
        self.drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] != "http" or not does_work(scope["path"]):
            await self.app(scope, receive, send)
            return
        # To see what still runs takes no engine time, and to cancel it brings the end nearer.
        is_harmless = scope["path"] == "/v1/requests" or scope["path"].endswith("/cancel")
        if self.drain.is_draining and not is_harmless:
            await _refuse(DrainingError(), scope, receive, send)
            return
        with self.drain.running():
            await self.app(scope, receive, send)


class ApiKeyMiddleware:
    """Lets in who shows one of the keys; stands in the way only if there are any."""

    def __init__(self, app: ASGIApp, *, api_keys: tuple[str, ...]) -> None:
        self.app = app
        self.api_keys = tuple(key.encode() for key in api_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] == "http" and self.api_keys and does_work(scope["path"]):
            shown = _shown_keys(Headers(scope=scope))
            # Every key is compared in constant time, so that timing tells nothing about them.
            matches = [hmac.compare_digest(it, key) for it in shown for key in self.api_keys]
            if not any(matches):
                text = "Incorrect API key provided." if shown else "No API key provided."
                await _refuse(UnauthorizedError(text), scope, receive, send)
                return
        await self.app(scope, receive, send)


class BodyLimitMiddleware:
    """Refuses bodies over a limit, by their announced length or while they come in."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > self.max_bytes:
            await _refuse(BodyTooLargeError(limit=self.max_bytes), scope, receive, send)
            return
        num_bytes = 0

        async def receive_up_to_limit() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self.max_bytes:
                raise BodyTooLargeError(limit=self.max_bytes)
            return message

        await self.app(scope, receive_up_to_limit, send)


async def _refuse(error: PippinError, scope: Scope, receive: Receive, send: Send) -> None:
    await to_http_error(error).to_response(scope)(scope, receive, send)


def _shown_keys(headers: Headers) -> list[bytes]:
    """Both ways of showing one: a client that talks to Anthropic may go both, with two keys."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    return [key.encode("latin-1") for key in (bearer, headers.get("x-api-key")) if key]
