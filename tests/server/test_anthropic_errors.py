"""Errors under /v1/messages, in Anthropic's shape wherever they come from."""

from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic.types import ErrorResponse
from fake_engine import Fail, FakeEngine

from pippin.core.errors import (
    ContextLengthError,
    EngineStoppedError,
    GenerationError,
    InvalidRequestError,
    OverloadedError,
)

from .conftest import MakeClient

PATH = "/v1/messages"
BODY: dict[str, Any] = {
    "model": "tiny",
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "hi"}],
}


def _check(answer: Any, status: int, kind: str) -> dict[str, Any]:
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["error"]["type"]) == (status, kind)
    assert set(body) == {"type", "error", "request_id"}
    assert set(body["error"]) == {"type", "message"}
    assert body["request_id"] == answer.headers["request-id"]
    # The client's types do not know the one that its documentation gives to a 413.
    if kind != "request_too_large":
        ErrorResponse.model_validate(body, strict=True, extra="forbid")
    return body


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidRequestError("x"), 400, "invalid_request_error"),
        (OverloadedError("x"), 529, "overloaded_error"),
        (EngineStoppedError("x"), 503, "api_error"),
        (GenerationError("x"), 500, "api_error"),
        (ZeroDivisionError("a secret"), 500, "api_error"),
    ],
)
def test_errors_of_the_engine(
    make_client: MakeClient, error: Exception, status: int, kind: str
) -> None:
    answer = make_client(FakeEngine(submit_error=error)).post(PATH, json=BODY)

    _check(answer, status, kind)
    assert ("retry-after" in answer.headers) == (status == 529)
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("method", "path", "changes", "status", "kind"),
    [
        ("POST", PATH, {"model": "other"}, 404, "not_found_error"),
        ("POST", f"{PATH}/count_tokens", {"model": "other"}, 400, "invalid_request_error"),
        ("POST", f"{PATH}/batches", {}, 404, "not_found_error"),
        ("POST", f"{PATH}/", {}, 404, "not_found_error"),
        ("GET", PATH, {}, 405, "invalid_request_error"),
        ("POST", PATH, {"system": "x" * 5000}, 413, "request_too_large"),
    ],
)
def test_errors_before_the_engine(
    make_client: MakeClient, method: str, path: str, changes: dict[str, object], status: int,
    kind: str,
) -> None:  # fmt: skip
    answer = make_client(max_body_bytes=2000).request(method, path, json={**BODY, **changes})

    _check(answer, status, kind)


def test_only_this_path_speaks_so(make_client: MakeClient) -> None:
    answer = make_client().post("/v1/messagesx", json=BODY)

    assert answer.json()["error"]["code"] == "unknown_url"
    assert "request-id" not in answer.headers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"x-api-key": "no"}, 401),
        ({"x-api-key": "key"}, 200),
        ({"authorization": "Bearer key"}, 200),
        ({"authorization": "Bearer key", "x-api-key": "of another server"}, 200),
        ({"authorization": "Bearer of-another-server", "x-api-key": "key"}, 200),
    ],
)
def test_either_header_opens(make_client: MakeClient, headers: dict[str, str], status: int) -> None:
    sent = {"anthropic-version": "2023-06-01", "anthropic-beta": "one-we-never-heard-of", **headers}

    answer = make_client(api_keys=("key",)).post(PATH, json=BODY, headers=sent)

    assert answer.status_code == status
    if status == 401:
        _check(answer, 401, "authentication_error")


def test_a_context_that_is_too_small_is_said_in_the_words_that_agents_read(
    make_client: MakeClient,
) -> None:
    error = ContextLengthError(num_prompt_tokens=120, max_tokens=9, limit=100)

    body = _check(
        make_client(FakeEngine(submit_error=error)).post(PATH, json=BODY),
        400,
        "invalid_request_error",
    )

    assert body["error"]["message"] == "prompt is too long: 120 tokens > 100 maximum"


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (Fail("out of luck"), "api_error", "out of luck"),
        (EngineStoppedError("gone"), "api_error", "gone"),
        (InvalidRequestError("no such grammar"), "invalid_request_error", "no such grammar"),
        (RuntimeError("a secret"), "api_error", "The server failed on this request."),
    ],
)
def test_a_fault_in_mid_stream_is_an_event(
    make_client: MakeClient, fault: Fail | Exception, kind: str, message: str
) -> None:
    answer = make_client(FakeEngine(("a", fault))).post(PATH, json={**BODY, "stream": True})

    assert answer.status_code == 200
    name, data = answer.text.split("\n\n")[-2].split("\n")
    body = json.loads(data.removeprefix("data: "))
    assert name == "event: error"
    assert body["error"] == {"type": kind, "message": message}
    ErrorResponse.model_validate(body, strict=True, extra="forbid")
    assert body["request_id"] == answer.headers["request-id"]
    assert "message_stop" not in answer.text


def test_a_thread_is_refused_in_the_form_that_the_tool_runner_understands(
    make_client: MakeClient,
) -> None:
    body = {
        "model": "tiny",
        "max_tokens": 5,
        "messages": [{"role": "user", "content": "x"}],
        "thread": {"type": "create"},
    }
    answer = make_client(FakeEngine()).post("/v1/messages", json=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["details"] == {"error_code": "thread_unsupported_request"}
