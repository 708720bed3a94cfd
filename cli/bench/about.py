"""What is known of the server and of this client, and ``unknown`` for what is not."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pippin.core.errors import PippinError

from .answer import check_status
from .http_client import HttpClient, RequestFailedError
from .plan import Endpoint

UNKNOWN = "unknown"
_CLIENT_PACKAGES = ("pippin", "httptools", "uvloop")


async def describe_server(client: HttpClient, url: str) -> dict[str, Any]:
    """What it says of itself, in ``/version``, ``/health`` and its ``Server`` header.

    Raises:
        PippinError: Nobody answers there.
    """
    try:
        response = await client.exchange("GET", "/version")
    except RequestFailedError as error:
        raise PippinError(f"no server answers at {url}: {error}") from error
    said = _object(response.body) if response.status == 200 else {}
    health = await _get(client, "/health")
    return {
        "url": url,
        "version": str(said.get("version", UNKNOWN)),
        "server_header": response.headers.get("server", UNKNOWN),
        "health": health or UNKNOWN,
    }


async def find_model(client: HttpClient) -> str:
    """The only model that the server lists.

    Raises:
        PippinError: It lists none, or several.
    """
    try:
        response = await client.exchange("GET", "/v1/models")
        check_status(response)
        models = [str(entry["id"]) for entry in response.json()["data"]]
    except RequestFailedError as error:
        raise PippinError(f"/v1/models: {error}; name a --model") from error
    except (TypeError, KeyError) as error:
        raise PippinError("/v1/models is no list of models; name a --model") from error
    if len(models) != 1:
        names = ", ".join(models) or "none"
        raise PippinError(f"the server lists several models or none, name one by --model: {names}")
    return models[0]


async def knows_ignore_eos(client: HttpClient, endpoint: Endpoint) -> bool:
    """Whether the server's own description of its requests has such a field."""
    document = await _get(client, "/openapi.json")
    try:
        posted = document["paths"][f"/v1{endpoint.path}"]["post"]["requestBody"]
        schema = posted["content"]["application/json"]["schema"]
        while "$ref" in schema:
            found = document
            for name in schema["$ref"].removeprefix("#/").split("/"):
                found = found[name]
            schema = found
        return "ignore_eos" in schema["properties"]
    except (KeyError, TypeError):
        return False


def describe_client() -> dict[str, Any]:
    """Versions and hardware of the machine this runs on."""
    return {
        **{name: version(name) for name in _CLIENT_PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count() or UNKNOWN,
        "memory_bytes": _memory_bytes(),
    }


async def _get(client: HttpClient, path: str) -> dict[str, Any]:
    try:
        response = await client.exchange("GET", path)
    except RequestFailedError:
        return {}
    return _object(response.body) if response.status == 200 else {}


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _processor() -> str:
    try:
        if sys.platform == "darwin":
            command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
            asked = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5)
            return asked.stdout.strip() or UNKNOWN
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except (OSError, subprocess.SubprocessError):
        pass
    return UNKNOWN


def _memory_bytes() -> int | str:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return UNKNOWN
