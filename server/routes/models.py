"""``GET /v1/models`` and ``GET /v1/models/{id}``, in the form of whoever's client asks."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pippin.core.engine.client import ModelCard

from ..errors import speaks_anthropic
from ..service import service_of


async def list_models(request: Request) -> Response:
    """The one model that is served. Aliases are not models of their own."""
    card = service_of(request).engine.model_card
    page: dict[str, Any] = {"object": "list"}
    if speaks_anthropic(request.scope):
        page = {"first_id": card.model_id, "last_id": card.model_id, "has_more": False}
    return JSONResponse({**page, "data": [_to_wire(card, request)]})


async def show_model(request: Request) -> Response:
    """One model, by its id (which may hold slashes) or an alias."""
    service = service_of(request)
    service.check_model(request.path_params["model_id"])
    return JSONResponse(_to_wire(service.engine.model_card, request))


def _to_wire(card: ModelCard, request: Request) -> dict[str, Any]:
    if speaks_anthropic(request.scope):
        return {
            "type": "model",
            "id": card.model_id,
            "display_name": card.model_id,
            "created_at": datetime.fromtimestamp(card.created_unix, UTC).isoformat(),
            "lifecycle": "active",
            "max_input_tokens": card.max_model_len,
            "max_tokens": card.max_model_len,
        }
    return {
        "id": card.model_id,
        "object": "model",
        "created": card.created_unix,
        "owned_by": "pippin",
        "max_model_len": card.max_model_len,
        "aliases": list(card.aliases),
    }
