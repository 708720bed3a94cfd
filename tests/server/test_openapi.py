"""`/openapi.json` tells of every route, and takes the bodies that the routes take."""

from __future__ import annotations

from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from request_bodies import BODIES

from pippin.server.app import ROUTES

from .conftest import MakeClient

WITH_BODY = sorted(path for path, body in BODIES.items() if body is not None)


@pytest.fixture
def document(make_client: MakeClient) -> Any:
    return make_client().get("/openapi.json").json()


def _schema(document: Any, path: str) -> Any:
    content = document["paths"][path]["post"]["requestBody"]["content"]
    # Its references are to be found in the same object.
    return {**content["application/json"]["schema"], "components": document["components"]}


def test_every_route_is_described(document: Any) -> None:
    routes = {
        (route.path.replace(":path}", "}"), method.lower())
        for route in ROUTES
        for method in (route.methods or set()) - {"HEAD"}
    }
    described = {(path, method) for path, it in document["paths"].items() for method in it}
    assert described == routes
    assert all(it["summary"] for entry in document["paths"].values() for it in entry.values())
    taking = {path for path, it in document["paths"].items() if "requestBody" in it.get("post", {})}
    assert taking == set(WITH_BODY)


def test_the_schemas_are_schemas(document: Any) -> None:
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("path", WITH_BODY)
def test_what_a_route_takes_is_described_so(document: Any, path: str) -> None:
    jsonschema.validate(BODIES[path], _schema(document, path))


@pytest.mark.parametrize("path", WITH_BODY)
def test_what_is_described_is_what_a_route_reads(
    make_client: MakeClient, document: Any, path: str
) -> None:
    """A schema of another route would name fields that this one refuses."""
    schema = _schema(document, path)
    named = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]["properties"]
    url = path.replace("{", "").replace("}", "")

    answer = make_client().post(url, json={**dict.fromkeys(named), **(BODIES[path] or {})})

    assert set(BODIES[path] or ()) <= set(named)
    assert "Unknown parameter" not in answer.text
