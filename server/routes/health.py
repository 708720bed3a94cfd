"""``GET /health``, ``/version`` and ``/metrics``: for operators and their machines."""

from __future__ import annotations

import json
from dataclasses import asdict

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..errors import RETRY_AFTER_DRAINING_S
from ..exposition import render_metrics
from ..service import service_of


async def show_health(request: Request) -> Response:
    """200 if new requests are welcome, 503 if the engine is dead or the server drains."""
    service = service_of(request)
    card, stats = service.engine.model_card, service.engine.stats()
    if not service.engine.is_healthy():
        status = "unhealthy"
    elif service.drain.is_draining:
        status = "draining"
    else:
        status = "ok"
    num_idle = stats.num_free_blocks + stats.num_evictable_blocks
    body = {
        "status": status,
        "version": service.version,
        "model": card.model_id,
        "aliases": [*card.aliases, *service.config.aliases],
        "max_model_len": card.max_model_len,
        "details": {**card.details, **stats.details},
        "running": stats.num_running,
        "waiting": stats.num_waiting,
        "kv_cache": {
            "block_size": stats.block_size,
            "num_blocks": stats.num_blocks,
            "num_free_blocks": stats.num_free_blocks,
            "num_evictable_blocks": stats.num_evictable_blocks,
            "num_used_blocks": stats.num_blocks - num_idle,
            "usage": stats.kv_usage,
            "bytes": stats.kv_cache_bytes,
        },
        "disk_cache": stats.disk and asdict(stats.disk),
        "active_memory_bytes": stats.active_memory_bytes,
        "speculation": stats.speculation and asdict(stats.speculation),
    }
    return Response(
        # A model card's details are free-form: what is no JSON is shown as text.
        json.dumps(body, default=str),
        status_code=200 if status == "ok" else 503,
        media_type="application/json",
        headers={"Retry-After": str(RETRY_AFTER_DRAINING_S)} if status == "draining" else None,
    )


async def show_version(request: Request) -> Response:
    """The server's version."""
    return JSONResponse({"version": service_of(request).version})


async def show_metrics(request: Request) -> Response:
    """Numbers for Prometheus."""
    body = render_metrics(service_of(request).registry)
    return Response(body, media_type=CONTENT_TYPE_PLAIN_0_0_4)
