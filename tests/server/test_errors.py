from __future__ import annotations

import json

import pytest
from fake_engine import Fail, FakeEngine

from pippin.core.errors import (
    CacheFullError,
    ContextLengthError,
    EngineStoppedError,
    GenerationError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    UnsupportedFeatureError,
)
from pippin.server.errors import (
    BodyTooLargeError,
    DrainingError,
    UnauthorizedError,
    to_http_error,
)

from .conftest import MakeClient

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("error", "status", "kind", "param", "code"),
    [
        (InvalidRequestError("x", param="a.b", code="c"), 400, "invalid_request_error", "a.b", "c"),
        (InvalidRequestError("x"), 400, "invalid_request_error", None, "invalid_value"),
        (UnsupportedFeatureError("x", param="tools"), 400, "invalid_request_error", "tools",
         "unsupported_value"),
        (ContextLengthError(num_prompt_tokens=9, max_tokens=1, limit=8), 400,
         "invalid_request_error", "messages", "context_length_exceeded"),
        (UnauthorizedError("x"), 401, "invalid_request_error", None, "invalid_api_key"),
        (ModelNotFoundError("m"), 404, "invalid_request_error", "model", "model_not_found"),
        (BodyTooLargeError(limit=1), 413, "invalid_request_error", None, "request_too_large"),
        (OverloadedError("x"), 503, "server_error", None, "overloaded"),
        (DrainingError(), 503, "server_error", None, "draining"),
        (EngineStoppedError("x"), 503, "server_error", None, "engine_stopped"),
        (GenerationError("x"), 500, "server_error", None, "generation_failed"),
        (CacheFullError(needed=2, available=1), 500, "server_error", None, "internal_error"),
        (RuntimeError("a secret"), 500, "server_error", None, "internal_error"),
    ],
)  # fmt: skip
def test_every_error_has_its_row(
    error: Exception, status: int, kind: str, param: str | None, code: str
) -> None:
    found = to_http_error(error)

    assert (found.status, found.type, found.param, found.code) == (status, kind, param, code)
    assert set(found.body()["error"]) == {"message", "type", "param", "code"}


def test_an_unexpected_error_says_nothing_of_its_cause() -> None:
    assert "secret" not in json.dumps(to_http_error(RuntimeError("a secret")).body())


def test_an_overload_says_when_to_come_back(make_client: MakeClient) -> None:
    engine = FakeEngine(submit_error=OverloadedError("The queue is full.", retry_after_s=7))

    answer = make_client(engine).post("/v1/chat/completions", json=CHAT)

    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "7"
    assert answer.json()["error"]["message"] == "The queue is full."


def test_an_unexpected_error_is_a_500_with_the_request_id(
    make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    engine = FakeEngine(submit_error=ZeroDivisionError("a secret"))

    answer = make_client(engine).post(
        "/v1/chat/completions", json=CHAT, headers={"x-request-id": "abc"}
    )

    assert answer.status_code == 500
    assert answer.headers["x-request-id"] == "abc"
    assert answer.json()["error"]["code"] == "internal_error"
    assert "secret" not in answer.text
    assert "request_id=abc" in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "unknown_url"),
        ("POST", "/v1/chat/completions/", 404, "unknown_url"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/models", 405, "method_not_allowed"),
    ],
)
def test_wrong_paths_and_methods_have_the_same_shape(
    make_client: MakeClient, method: str, path: str, status: int, code: str
) -> None:
    answer = make_client().request(method, path)

    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert ("allow" in answer.headers) == (status == 405)


def test_a_failed_answer_is_a_500(make_client: MakeClient) -> None:
    answer = make_client(FakeEngine(("a", Fail("out of luck")))).post(
        "/v1/chat/completions", json=CHAT
    )

    assert answer.status_code == 500
    assert answer.json()["error"] == {
        "message": "out of luck",
        "type": "server_error",
        "param": None,
        "code": "generation_failed",
    }


def test_an_engine_that_dies_meanwhile_is_a_503(make_client: MakeClient) -> None:
    engine = FakeEngine(("a", EngineStoppedError("The engine has stopped.")))

    answer = make_client(engine).post("/v1/chat/completions", json=CHAT)

    assert answer.status_code == 503
