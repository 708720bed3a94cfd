"""Ollama's API, for its clients. There is one model, and it is always loaded."""

from __future__ import annotations

import hashlib
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pippin.core.engine.client import ModelCard
from pippin.core.errors import InvalidRequestError, UnsupportedFeatureError
from pippin.core.messages import Prompt

from ..adapters.field_names import named_as
from ..adapters.ollama import FIELD_NAMES, to_chat_prompt, to_generate_prompt, to_params, to_rules
from ..adapters.ollama_reply import OllamaReply, encode_line, timestamp
from ..schemas.ollama import (
    OllamaChatRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
    OllamaRequest,
    OllamaShowRequest,
)
from ..schemas.wire_model import parse_body
from ..service import Service, service_of
from ..streaming import GenerationStream, StreamStyle, answer_at_once

# The release of Ollama whose API this follows: clients ask for it before they use a feature.
_API_VERSION = "0.12.11"
_NEVER = "9999-12-31T23:59:59Z"
_STREAM = StreamStyle(
    media_type="application/x-ndjson",
    keepalive=b"",
    encode_error=lambda error: encode_line(error.ollama_body()),
)


async def chat(request: Request) -> Response:
    """Answer a conversation."""
    wire = parse_body(OllamaChatRequest, await request.body())
    return await _answer(request, wire, to_chat_prompt(wire) if wire.messages else None)


async def generate(request: Request) -> Response:
    """Continue a text, or answer one."""
    wire = parse_body(OllamaGenerateRequest, await request.body())
    return await _answer(request, wire, to_generate_prompt(wire) if wire.prompt else None)


async def list_local_models(request: Request) -> Response:
    """The one model, as if pulled."""
    card = service_of(request).engine.model_card
    return JSONResponse({"models": [_entry(card) | {"modified_at": timestamp(card.created_unix)}]})


async def list_running_models(request: Request) -> Response:
    """The one model, as it is loaded."""
    card = service_of(request).engine.model_card
    entry = _entry(card)
    on_gpu = card.details.get("device") != "cpu"
    entry |= {
        "expires_at": _NEVER,
        "size_vram": entry["size"] if on_gpu else 0,
        "context_length": card.max_model_len,
    }
    return JSONResponse({"models": [entry]})


async def show_local_model(request: Request) -> Response:
    """What is known of the model."""
    service = service_of(request)
    wire = parse_body(OllamaShowRequest, await request.body())
    name = wire.model or wire.name
    if name is None:
        raise InvalidRequestError("Missing required parameter: 'model'.", param="model")
    _check_model(service, name)
    card = service.engine.model_card
    family = str(card.details.get("model_type", ""))
    capabilities = {
        "completion": True,
        "tools": card.details.get("tool_parser"),
        "thinking": card.details.get("reasoning_parser"),
    }
    return JSONResponse(
        {
            "modelfile": f"FROM {card.model_id}",
            "parameters": "\n".join(
                f"{key} {value}" for key, value in card.default_sampling.items()
            ),
            "template": card.chat_template,
            "details": _details(card),
            "model_info": {
                "general.architecture": family,
                "general.parameter_count": card.details.get("num_parameters"),
                f"{family}.context_length": card.max_model_len,
                f"{family}.vocab_size": card.vocab_size,
            },
            "capabilities": [name for name, is_there in capabilities.items() if is_there],
            "modified_at": timestamp(card.created_unix),
        }
    )


async def show_api_version(request: Request) -> Response:
    """Whose API this is like."""
    return JSONResponse({"version": _API_VERSION})


async def embed(request: Request) -> Response:
    """Refuse: there are no embeddings."""
    wire = parse_body(OllamaEmbedRequest, await request.body())
    _check_model(service_of(request), wire.model)
    raise UnsupportedFeatureError("This model does not support embeddings.", param="model")


async def _answer(request: Request, wire: OllamaRequest, prompt: Prompt | None) -> Response:
    begun_ns = time.perf_counter_ns()
    service = service_of(request)
    _check_model(service, wire.model)
    with named_as(FIELD_NAMES):
        params = to_params(wire, service.engine.model_card)
    is_chat = isinstance(wire, OllamaChatRequest)
    if prompt is None:
        return _answer_nothing(wire, is_chat=is_chat)
    head = service.make_reply_head("ollama")
    with named_as(FIELD_NAMES if is_chat else {**FIELD_NAMES, "messages": "prompt"}):
        generation = await service.engine.submit(
            prompt, params, request_id=head.reply_id, rules=to_rules(wire)
        )
    reply = OllamaReply(wire.model, generation, begun_ns=begun_ns, is_chat=is_chat)
    if wire.stream is False:
        return await answer_at_once(request, [generation], reply, service, reply_id=head.reply_id)
    return GenerationStream(
        request, [generation], reply, service, reply_id=head.reply_id, style=_STREAM
    )


def _answer_nothing(wire: OllamaRequest, *, is_chat: bool) -> Response:
    """What clients send to have the model loaded."""
    if wire.keep_alive in (0, "0", "0s", "0m"):
        raise UnsupportedFeatureError("The model cannot be unloaded.", param="keep_alive")
    fields = {"message": {"role": "assistant", "content": ""}} if is_chat else {"response": ""}
    times = {"model": wire.model, "created_at": timestamp(time.time())}
    return JSONResponse({**times, **fields, "done": True, "done_reason": "load"})


def _check_model(service: Service, name: str) -> None:
    """As `Service.check_model`, but the tag that Ollama's clients add by themselves is no part."""
    service.check_model(name.removesuffix(":latest"))


def _entry(card: ModelCard) -> dict[str, Any]:
    return {
        "name": card.model_id,
        "model": card.model_id,
        "size": card.details.get("weight_bytes", 0),
        # There is no blob to have one, but clients show its first digits.
        "digest": hashlib.sha256(card.model_id.encode()).hexdigest(),
        "details": _details(card),
    }


def _details(card: ModelCard) -> dict[str, Any]:
    family = str(card.details.get("model_type", ""))
    millions = card.details.get("num_parameters", 0) / 1e6
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": family,
        "families": [family],
        "parameter_size": f"{millions:.0f}M" if millions < 1000 else f"{millions / 1000:.1f}B",
        "quantization_level": card.details.get("quantization") or card.details.get("dtype") or "",
    }


OLLAMA_ROUTES = (
    Route("/api/chat", chat, methods=["POST"]),
    Route("/api/generate", generate, methods=["POST"]),
    Route("/api/tags", list_local_models),
    Route("/api/ps", list_running_models),
    Route("/api/show", show_local_model, methods=["POST"]),
    Route("/api/version", show_api_version),
    Route("/api/embed", embed, methods=["POST"]),
    Route("/api/embeddings", embed, methods=["POST"]),
)
