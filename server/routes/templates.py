"""``POST /apply-template`` and ``GET /props``: extensions, in the shape of llama-server's.

Source: the README of llama.cpp's server.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..adapters.openai_chat import to_prompt
from ..schemas.openai_chat import ChatCompletionRequest
from ..schemas.wire_model import parse_body
from ..service import service_of


class ApplyTemplateRequest(ChatCompletionRequest):
    """A chat request, of which only what makes the prompt matters."""

    model: str = ""


async def apply_template(request: Request) -> Response:
    """The text that a chat request would run as, without running it."""
    service = service_of(request)
    wire = parse_body(ApplyTemplateRequest, await request.body())
    if wire.model:
        service.check_model(wire.model)
    token_ids = await service.engine.tokenize(to_prompt(wire))
    return JSONResponse({"prompt": await service.engine.detokenize(token_ids)})


async def show_props(request: Request) -> Response:
    """What clients of llama-server look up before they begin."""
    service = service_of(request)
    card = service.engine.model_card
    settings = {"n_ctx": card.max_model_len, "params": dict(card.default_sampling)}
    return JSONResponse(
        {
            "default_generation_settings": settings,
            "total_slots": card.details.get("max_num_seqs"),
            "model_path": card.model_id,
            "model_alias": card.model_id,
            "modalities": {"vision": False, "audio": False},
            "chat_template": card.chat_template,
            "build_info": f"pippin-{service.version}",
        }
    )
