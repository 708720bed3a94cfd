"""``GET /openapi.json``: all routes, and what they take, made of the schemas that read the bodies.

Answers are not described but for their errors: they are the providers' own.

Source: spec.openapis.org/oas/v3.1.1.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from .errors import speaks_anthropic
from .routes import anthropic_messages, ollama, openai_conversations, openai_responses, tokens
from .routes.health import show_metrics
from .routes.openai_chat import create_chat_completion
from .routes.openai_completions import create_completion
from .routes.status_page import show_status_page
from .routes.templates import ApplyTemplateRequest, apply_template
from .schemas.anthropic_messages import CountTokensRequest, MessagesRequest
from .schemas.ollama import (
    OllamaChatRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
    OllamaShowRequest,
)
from .schemas.openai_chat import ChatCompletionRequest
from .schemas.openai_completions import CompletionRequest
from .schemas.openai_conversations import ConversationUpdate, NewConversation, NewItems
from .schemas.openai_responses import InputTokensRequest, ResponsesRequest
from .schemas.tokens import DetokenizeRequest, TokenizeRequest
from .schemas.wire_model import WireModel
from .service import service_of

# What a handler reads its body with.
_BODIES: dict[Callable[..., Any], type[WireModel]] = {
    create_chat_completion: ChatCompletionRequest,
    create_completion: CompletionRequest,
    anthropic_messages.create_message: MessagesRequest,
    anthropic_messages.count_tokens: CountTokensRequest,
    openai_responses.create_response: ResponsesRequest,
    openai_responses.count_input_tokens: InputTokensRequest,
    openai_conversations.create_conversation: NewConversation,
    openai_conversations.update_conversation: ConversationUpdate,
    openai_conversations.add_items: NewItems,
    tokens.tokenize: TokenizeRequest,
    tokens.detokenize: DetokenizeRequest,
    apply_template: ApplyTemplateRequest,
    ollama.chat: OllamaChatRequest,
    ollama.generate: OllamaGenerateRequest,
    ollama.show_local_model: OllamaShowRequest,
    ollama.embed: OllamaEmbedRequest,
}
_LISTS = (openai_conversations.list_items, openai_responses.list_input_items)
_PAGE = {
    "after": {"type": "string"},
    "limit": {"type": "integer", "minimum": 1, "maximum": openai_responses.MAX_LISTED_ITEMS},
    "order": {"enum": ["asc", "desc"]},
}
_JSON = "application/json"
_NOT_JSON = {show_metrics: "text/plain", show_status_page: "text/html"}
_OPENAI, _ANTHROPIC, _OLLAMA = "OpenAIError", "AnthropicError", "OllamaError"


async def show_openapi(request: Request) -> Response:
    """This document."""
    state = request.app.state
    if not hasattr(state, "openapi"):  # some 0.1 s of work, that few ask for
        state.openapi = describe(request.app.routes, version=service_of(request).version)
    return JSONResponse(state.openapi)


def describe(routes: Iterable[BaseRoute], *, version: str) -> dict[str, Any]:
    """The document."""
    refs, schemas = models_json_schema(
        [(model, "validation") for model in _BODIES.values()],
        ref_template="#/components/schemas/{model}",
    )
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        assert isinstance(route, Route)
        operation = _operation(route)
        if model := _BODIES.get(route.endpoint):
            content = {_JSON: {"schema": refs[model, "validation"]}}
            operation["requestBody"] = {"required": True, "content": content}
        for method in sorted((route.methods or set()) - {"HEAD"}):
            paths.setdefault(route.path.replace(":path}", "}"), {})[method.lower()] = operation
    return {
        "openapi": "3.1.1",
        "info": {"title": "pippin", "version": version},
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"] | _ERRORS,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{}, {"bearer": []}, {"x-api-key": []}],
    }


def _operation(route: Route) -> dict[str, Any]:
    model = _BODIES.get(route.endpoint)
    is_ollama = route.path.startswith("/api/")
    answers: dict[str, Any] = {_NOT_JSON.get(route.endpoint, _JSON): {}}
    if model is not None and "stream" in model.model_fields:
        answers["application/x-ndjson" if is_ollama else "text/event-stream"] = {}
    is_anthropic = speaks_anthropic({"path": route.path, "headers": []})
    error = _OLLAMA if is_ollama else _ANTHROPIC if is_anthropic else _OPENAI
    content = {_JSON: {"schema": {"$ref": f"#/components/schemas/{error}"}}}
    names = re.findall(r"{(\w+)", route.path)
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in names
    ]
    page = _PAGE if route.endpoint in _LISTS else {}
    in_query = [{"name": name, "in": "query", "schema": schema} for name, schema in page.items()]
    summary = (inspect.getdoc(route.endpoint) or "").partition("\n")[0]
    return {
        "summary": summary,
        "parameters": in_path + in_query,
        "responses": {
            "200": {"description": "The answer", "content": answers},
            "default": {"description": "Why there is none", "content": content},
        },
    }


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


_TEXT = {"type": "string"}
_MAYBE_TEXT = {"type": ["string", "null"]}
_ERRORS = {
    _OPENAI: _object(error=_object(message=_TEXT, type=_TEXT, param=_MAYBE_TEXT, code=_MAYBE_TEXT)),
    _ANTHROPIC: _object(
        type={"const": "error"}, error=_object(type=_TEXT, message=_TEXT), request_id=_TEXT
    ),
    _OLLAMA: _object(error=_TEXT),
}
