"""``GET /v1/models`` and ``GET /v1/models/{id}``."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pippin.core.engine.client import ModelCard

from ..service import service_of


async def list_models(request: Request) -> Response:
    """The one model that is served. Aliases are not models of their own."""
    card = service_of(request).engine.model_card
    return JSONResponse({"object": "list", "data": [_to_wire(card)]})


async def show_model(request: Request) -> Response:
    """One model, by its id (which may hold slashes) or an alias."""
    service = service_of(request)
    service.check_model(request.path_params["model_id"])
    return JSONResponse(_to_wire(service.engine.model_card))


def _to_wire(card: ModelCard) -> dict[str, Any]:
    return {
        "id": card.model_id,
        "object": "model",
        "created": card.created_unix,
        "owned_by": "pippin",
        "max_model_len": card.max_model_len,
        "aliases": list(card.aliases),
    }
