"""The ASGI application: routes, middleware, error handlers, put together around one engine."""

from __future__ import annotations

from importlib.metadata import version

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from pippin.core.engine.client import EngineClient
from pippin.core.errors import PippinError

from .config import ServerConfig
from .drain import Drain
from .errors import to_http_error
from .exposition import make_registry
from .metrics import Metrics
from .middleware import (
    AccessLogMiddleware,
    ApiKeyMiddleware,
    BodyLimitMiddleware,
    DrainMiddleware,
    RequestIdMiddleware,
    UnexpectedErrorMiddleware,
)
from .openapi import show_openapi
from .response_store import ResponseStore
from .routes.anthropic_messages import count_tokens, create_message
from .routes.health import show_health, show_metrics, show_version
from .routes.models import list_models, show_model
from .routes.ollama import OLLAMA_ROUTES
from .routes.openai_chat import create_chat_completion
from .routes.openai_completions import create_completion
from .routes.openai_conversations import CONVERSATION_ROUTES
from .routes.openai_responses import (
    ResponsesState,
    cancel_response,
    count_input_tokens,
    create_response,
    delete_response,
    list_input_items,
    refuse_compaction,
    show_response,
)
from .routes.requests import cancel_request, list_requests
from .routes.status_page import show_status_page
from .routes.templates import apply_template, show_props
from .routes.tokens import detokenize, tokenize
from .service import Service

ROUTES = (
    Route("/", show_status_page),
    Route("/v1/chat/completions", create_chat_completion, methods=["POST"]),
    Route("/v1/completions", create_completion, methods=["POST"]),
    Route("/v1/messages", create_message, methods=["POST"]),
    Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
    Route("/v1/requests", list_requests),
    Route("/v1/requests/{request_id}/cancel", cancel_request, methods=["POST"]),
    Route("/v1/responses", create_response, methods=["POST"]),
    Route("/v1/responses/input_tokens", count_input_tokens, methods=["POST"]),
    Route("/v1/responses/compact", refuse_compaction, methods=["POST"]),
    Route("/v1/responses/{response_id}", show_response),
    Route("/v1/responses/{response_id}", delete_response, methods=["DELETE"]),
    Route("/v1/responses/{response_id}/cancel", cancel_response, methods=["POST"]),
    Route("/v1/responses/{response_id}/input_items", list_input_items),
    *CONVERSATION_ROUTES,
    Route("/v1/models", list_models),
    Route("/v1/models/{model_id:path}", show_model),
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/detokenize", detokenize, methods=["POST"]),
    Route("/apply-template", apply_template, methods=["POST"]),
    Route("/props", show_props),
    *OLLAMA_ROUTES,
    Route("/health", show_health),
    Route("/version", show_version),
    Route("/metrics", show_metrics),
    Route("/openapi.json", show_openapi),
)


def create_app(
    engine: EngineClient,
    config: ServerConfig,
    *,
    metrics: Metrics | None = None,
    drain: Drain | None = None,
) -> Starlette:
    """Build the application.

    Args:
        engine: What answers.
        config: What is let in.
        metrics: The same whose `observe_step` the engine calls; a fresh one sees HTTP only.
        drain: Held by whoever starts the drain; a fresh one never drains.
    """
    metrics = metrics or Metrics()
    drain = drain or Drain()
    pippin_version = version("pippin")
    app = Starlette(
        routes=ROUTES,
        middleware=[
            Middleware(RequestIdMiddleware),
            Middleware(AccessLogMiddleware, metrics=metrics),
            Middleware(UnexpectedErrorMiddleware),
            Middleware(DrainMiddleware, drain=drain),
            Middleware(ApiKeyMiddleware, api_keys=config.api_keys),
            Middleware(BodyLimitMiddleware, max_bytes=config.max_body_bytes),
        ],
        exception_handlers={
            PippinError: _answer_error,
            HTTPException: _answer_error,
            ClientDisconnect: _answer_error,
        },
    )
    # A POST that is redirected loses its body with many clients: say 404 instead.
    app.router.redirect_slashes = False
    app.state.service = Service(
        engine=engine,
        config=config,
        metrics=metrics,
        registry=make_registry(metrics, engine, version=pippin_version),
        drain=drain,
        version=pippin_version,
    )
    path = config.response_store
    app.state.responses = ResponsesState(ResponseStore(path) if path is not None else None)
    return app


async def _answer_error(request: Request, error: Exception) -> Response:
    return to_http_error(error).to_response(request.scope)
