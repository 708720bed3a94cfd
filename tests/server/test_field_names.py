"""Errors of the engine name fields as the caller's API does."""

from __future__ import annotations

from typing import Any

import pytest
from fake_engine import FakeEngine

from pippin.core.errors import InvalidRequestError

from .conftest import MakeClient

HI = [{"role": "user", "content": "hi"}]
FORM = {"format": {"type": "json_schema", "schema": {}}}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HI},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": HI, "max_tokens": 5},
    "/api/chat": {"messages": HI},
    "/api/generate": {"prompt": "hi"},
}


@pytest.mark.parametrize(
    ("path", "fields", "name", "expected"),
    [
        ("/v1/chat/completions", {}, "response_format", "response_format"),
        (
            "/v1/chat/completions",
            {"structured_outputs": {"json": {}}},
            "response_format",
            "structured_outputs.json",
        ),
        (
            "/v1/chat/completions",
            {"structured_outputs": {"json_object": True}},
            "response_format",
            "structured_outputs.json_object",
        ),
        (
            "/v1/chat/completions",
            {"structured_outputs": {"regex": "a"}},
            "structured_outputs.regex",
            "structured_outputs.regex",
        ),
        ("/v1/responses", {}, "messages", "input"),
        ("/v1/responses", {}, "response_format", "text.format"),
        ("/v1/responses", {}, "response_format.json_schema.schema.type", "text.format.schema.type"),
        ("/v1/responses", {}, "tools.0", "tools.0"),
        ("/v1/messages", {"output_config": FORM}, "response_format", "output_config.format"),
        ("/v1/messages", {"output_format": FORM["format"]}, "response_format", "output_format"),
        ("/v1/messages", {}, "parallel_tool_calls", "tool_choice.disable_parallel_tool_use"),
        ("/api/chat", {}, "response_format", "format"),
        ("/api/chat", {}, "messages", "messages"),
        ("/api/generate", {}, "messages", "prompt"),
    ],
)
def test_fields_have_the_apis_own_names(
    make_client: MakeClient, path: str, fields: dict[str, Any], name: str, expected: str
) -> None:
    error = InvalidRequestError(f"{name} cannot be followed: x_{name}", param=name)
    body = {"model": "tiny", **BODIES[path], **fields}
    answer = make_client(FakeEngine(submit_error=error)).post(path, json=body)

    assert answer.status_code == 400
    told = answer.json()["error"]
    if not path.startswith("/api/"):
        assert told.get("param", expected) == expected
        told = told["message"]
    assert told == f"{expected} cannot be followed: x_{name}"


@pytest.mark.parametrize(
    ("path", "fields", "name"),
    [
        ("/v1/messages", {"temperature": 3}, "temperature"),
        ("/api/chat", {"options": {"repeat_penalty": -1}}, "options.repeat_penalty"),
        ("/api/chat", {"options": {"stop": [""]}}, "options.stop"),
        ("/v1/responses", {"top_p": 0}, "top_p"),
    ],
)
def test_so_do_those_of_settings(
    make_client: MakeClient, path: str, fields: dict[str, Any], name: str
) -> None:
    answer = make_client().post(path, json={"model": "tiny", **BODIES[path], **fields})
    assert answer.status_code == 400
    told = answer.json()["error"]
    assert (told if isinstance(told, str) else told["message"]).startswith(f"{name} ")
