"""What a running server has loaded; pippin's own tells more than others."""

from __future__ import annotations

from typing import Any

import httpx

from pippin.core.errors import PippinError

_TIMEOUT_S = 10.0
# For a server that nobody has named, and that may be something else altogether.
_PROBE_TIMEOUT_S = 1.0


def read_server_models(url: str, api_key: str | None) -> list[dict[str, Any]]:
    """The models of an OpenAI-compatible server, as entries of `pippin models ls`.

    Args:
        url: With or without ``/v1`` at its end.

    Raises:
        PippinError: Nobody answers there, or no such server does.
    """
    try:
        return _read(url, api_key, _TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise PippinError(f"no server lists its models at {url}: {reason}") from error


def probe_server_models(url: str, api_key: str | None) -> list[dict[str, Any]]:
    """The same, or nothing if there is no such server."""
    try:
        return _read(url, api_key, _PROBE_TIMEOUT_S)
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return []


def _read(url: str, api_key: str | None, timeout_s: float) -> list[dict[str, Any]]:
    base = url.rstrip("/").removesuffix("/v1")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    with httpx.Client(base_url=base, headers=headers, timeout=timeout_s) as client:
        listed = client.get("/v1/models").raise_for_status().json()["data"]
        health = client.get("/health")
    return [_entry(model, _details(health, model["id"]), base) for model in listed]


def _details(health: httpx.Response, model_id: str) -> dict[str, Any]:
    """What pippin says of a model; empty from other servers."""
    try:
        content = health.json()
        details = content["details"] if content["model"] == model_id else {}
    except (ValueError, KeyError, TypeError):
        return {}
    return details if isinstance(details, dict) else {}


def _entry(model: dict[str, Any], details: dict[str, Any], url: str) -> dict[str, Any]:
    return {
        "name": model["id"],
        "place": "server",
        "url": url,
        "aliases": model.get("aliases", []),
        "bytes": details.get("weight_bytes"),
        "model_type": details.get("model_type"),
        "quantization": details.get("quantization") or details.get("dtype"),
        "context": model.get("max_model_len"),
        "modality": details.get("modality"),
        "licence": None,
        "problem": None,
    }
