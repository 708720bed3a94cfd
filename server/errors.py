"""The one table from errors to HTTP: status, OpenAI-shaped body, headers.

Nothing else in the server picks a status code for an error. Unexpected exceptions become a plain
500: what went wrong stands in the log under the request id, not in the answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from pippin.core.errors import (
    EngineStoppedError,
    GenerationError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    PippinError,
)

# What nginx logs for a caller that left. Nobody is there to read it; it is for our log.
CLIENT_GONE_STATUS = 499
RETRY_AFTER_DRAINING_S = 5


class UnauthorizedError(PippinError):
    """The caller has not shown one of the server's API keys."""


class BodyTooLargeError(PippinError):
    """The request body is larger than the server takes."""

    def __init__(self, *, limit: int) -> None:
        super().__init__(f"The request body is larger than {limit} bytes.")
        self.limit = limit


class DrainingError(OverloadedError):
    """The server is about to stop: what runs may end, nothing new begins."""

    def __init__(self) -> None:
        super().__init__("The server is shutting down.", retry_after_s=RETRY_AFTER_DRAINING_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpError:
    """An error as a client sees it.

    Source: platform.openai.com/docs/guides/error-codes, and the error classes of openai-python.
    """

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """The JSON object, also used as an event in the middle of a stream."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    def to_response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers)


_CALLER = "invalid_request_error"
_SERVER = "server_error"

# Looked up from the top, so a subclass stands above its base.
_TABLE: tuple[tuple[type[Exception], int, str, str], ...] = (
    (InvalidRequestError, 400, _CALLER, "invalid_value"),
    (UnauthorizedError, 401, _CALLER, "invalid_api_key"),
    (ModelNotFoundError, 404, _CALLER, "model_not_found"),
    (BodyTooLargeError, 413, _CALLER, "request_too_large"),
    (ClientDisconnect, CLIENT_GONE_STATUS, _CALLER, "client_disconnected"),
    (DrainingError, 503, _SERVER, "draining"),
    (OverloadedError, 503, _SERVER, "overloaded"),
    (EngineStoppedError, 503, _SERVER, "engine_stopped"),
    (GenerationError, 500, _SERVER, "generation_failed"),
    (PippinError, 500, _SERVER, "internal_error"),
)


def to_http_error(error: BaseException) -> HttpError:
    """What to answer when ``error`` ends a request."""
    if isinstance(error, HTTPException):
        return _from_routing(error)
    for kind, status, error_type, code in _TABLE:
        if isinstance(error, kind):
            return HttpError(
                status=status,
                message=str(error) or kind.__name__,
                type=error_type,
                param=_param_of(error),
                code=getattr(error, "code", None) or code,
                headers=_headers_of(error),
            )
    return HttpError(
        status=500,
        message="The server failed on this request.",
        type=_SERVER,
        code="internal_error",
    )


def _param_of(error: BaseException) -> str | None:
    if isinstance(error, InvalidRequestError):
        return error.param
    return "model" if isinstance(error, ModelNotFoundError) else None


def _headers_of(error: BaseException) -> dict[str, str]:
    if isinstance(error, OverloadedError):
        return {"Retry-After": str(error.retry_after_s)}
    if isinstance(error, UnauthorizedError):
        return {"WWW-Authenticate": "Bearer"}
    return {}


def _from_routing(error: HTTPException) -> HttpError:
    """No such path, or not with this method: the only errors that Starlette raises for us."""
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
    message = {
        404: "There is nothing at this path.",
        405: "This path does not take this method.",
    }.get(error.status_code, error.detail or HTTPStatus(error.status_code).phrase)
    return HttpError(
        status=error.status_code,
        message=message,
        type=_CALLER if error.status_code < 500 else _SERVER,
        code=code,
        headers=dict(error.headers or {}),
    )
