"""``GET /v1/requests`` and ``POST /v1/requests/{id}/cancel``: extensions."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..errors import RequestNotFoundError
from ..service import service_of


async def list_requests(request: Request) -> Response:
    """What is being answered, oldest first, of all callers: sizes and speeds, no text."""
    data = [reply.progress() for reply in service_of(request).running]
    return JSONResponse({"object": "list", "data": data})


async def cancel_request(request: Request) -> Response:
    """End a running request by the id that its reply shows, such as ``chatcmpl-...``.

    Whoever waits for the reply gets the error ``request_cancelled``.
    """
    reply_id = request.path_params["request_id"]
    if not service_of(request).running.cancel(reply_id):
        raise RequestNotFoundError(reply_id)
    return JSONResponse({"id": reply_id, "object": "request", "cancelled": True})
