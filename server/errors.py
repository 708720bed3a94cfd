"""The one table from errors to HTTP: status, headers, and the body in the shape of the path's API.

Nothing else in the server picks a status code for an error. Unexpected exceptions become a plain
500: what went wrong stands in the log under the request id, not in the answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import Scope

from pippin.core.errors import (
    ContextLengthError,
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
ANTHROPIC_OVERLOADED_STATUS = 529
# Messages name what the caller sent, which may be of any length.
MAX_MESSAGE_CHARS = 2000


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


class RequestCancelledError(PippinError):
    """Somebody who knew its id cancelled the request."""

    def __init__(self) -> None:
        super().__init__("The request was cancelled.")


class RequestNotFoundError(PippinError):
    """No request of that id runs: it is unknown, or has ended."""

    def __init__(self, request_id: str) -> None:
        super().__init__(f"No request '{request_id}' is running.")


class ResponseNotFoundError(PippinError):
    """No response of that id is stored."""

    def __init__(self, response_id: str) -> None:
        super().__init__(f"Response with id '{response_id}' not found.")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpError:
    """An error as a client sees it; the fields are in OpenAI's words.

    Attributes:
        anthropic_message: The same in Anthropic's words, where clients read these.

    Source: platform.openai.com/docs/guides/error-codes, and the error classes of openai-python;
    platform.claude.com/docs/en/api/errors.
    """

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    anthropic_message: str | None = None

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

    @property
    def anthropic_status(self) -> int:
        """Anthropic has a status of its own for too much work."""
        is_overload = self.code in ("draining", "overloaded")
        return ANTHROPIC_OVERLOADED_STATUS if is_overload else self.status

    def anthropic_body(self, request_id: str) -> dict[str, Any]:
        """Anthropic's JSON object, also used as an event in the middle of a stream."""
        status = self.anthropic_status
        error_type = _ANTHROPIC_TYPES.get(status, _CALLER if status < 500 else "api_error")
        message = self.anthropic_message or self.message
        error: dict[str, Any] = {"type": error_type, "message": message}
        if self.param == "thread":
            # The SDK's tool runner then sends the whole conversation.
            error["details"] = {"error_code": "thread_unsupported_request"}
        return {"type": "error", "error": error, "request_id": request_id}

    def ollama_body(self) -> dict[str, Any]:
        """Ollama's JSON object, also used as a line in the middle of a stream."""
        return {"error": self.message}

    def to_response(self, scope: Scope) -> JSONResponse:
        """The whole answer, to the request of ``scope``."""
        if scope["path"].startswith("/api/"):
            return JSONResponse(self.ollama_body(), status_code=self.status, headers=self.headers)
        if not speaks_anthropic(scope):
            return JSONResponse(self.body(), status_code=self.status, headers=self.headers)
        body = self.anthropic_body(scope["state"]["request_id"])
        return JSONResponse(body, status_code=self.anthropic_status, headers=self.headers)


def speaks_anthropic(scope: Scope) -> bool:
    """Whether a request, to a path that is there or not, belongs to Anthropic's API.

    Both providers list their models at one path: there only Anthropic's clients name a version.
    """
    path: str = scope["path"]
    if path == "/v1/models" or path.startswith("/v1/models/"):
        return "anthropic-version" in Headers(scope=scope)
    return path == "/v1/messages" or path.startswith("/v1/messages/")


_CALLER = "invalid_request_error"
_SERVER = "server_error"
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    ANTHROPIC_OVERLOADED_STATUS: "overloaded_error",
}

# Looked up from the top, so a subclass stands above its base.
_TABLE: tuple[tuple[type[Exception], int, str, str], ...] = (
    (InvalidRequestError, 400, _CALLER, "invalid_value"),
    (UnauthorizedError, 401, _CALLER, "invalid_api_key"),
    (ModelNotFoundError, 404, _CALLER, "model_not_found"),
    (RequestNotFoundError, 404, _CALLER, "request_not_found"),
    (ResponseNotFoundError, 404, _CALLER, "response_not_found"),
    (RequestCancelledError, CLIENT_GONE_STATUS, _CALLER, "request_cancelled"),
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
                message=(str(error) or kind.__name__)[:MAX_MESSAGE_CHARS],
                type=error_type,
                param=_param_of(error),
                code=getattr(error, "code", None) or code,
                headers=_headers_of(error),
                anthropic_message=_anthropic_message_of(error),
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


def _anthropic_message_of(error: BaseException) -> str | None:
    if not isinstance(error, ContextLengthError):
        return None
    # Claude Code knows by these words that it has to shorten the conversation, or the answer.
    if error.max_tokens is None or error.num_prompt_tokens >= error.limit:
        return f"prompt is too long: {error.num_prompt_tokens} tokens > {error.limit} maximum"
    return (
        f"input length and `max_tokens` exceed context limit: {error.num_prompt_tokens} + "
        f"{error.max_tokens} > {error.limit}, decrease input length or `max_tokens` and try again"
    )


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
