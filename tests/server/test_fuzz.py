"""Any body at all gets an answer in the API's own shape, and never a 500."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from fake_engine import FakeEngine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from pippin.server.app import create_app
from pippin.server.config import ServerConfig
from pippin.server.routes.templates import ApplyTemplateRequest
from pippin.server.schemas.openai_chat import ChatCompletionRequest
from pippin.server.schemas.openai_completions import CompletionRequest
from pippin.server.schemas.tokens import DetokenizeRequest, TokenizeRequest
from pippin.server.schemas.wire_model import WireModel

BASES: dict[str, tuple[type[WireModel], dict[str, object]]] = {
    "/v1/chat/completions": (
        ChatCompletionRequest,
        {"model": "tiny", "messages": [{"role": "user", "content": "x"}]},
    ),
    "/v1/completions": (CompletionRequest, {"model": "tiny", "prompt": "x"}),
    "/apply-template": (
        ApplyTemplateRequest,
        {"messages": [{"role": "user", "content": "x"}]},
    ),
    "/tokenize": (TokenizeRequest, {"prompt": "x"}),
    "/detokenize": (DetokenizeRequest, {"tokens": [1]}),
}

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(min_value=-3, max_value=300)
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["user", "assistant", "text", "image_url", "tiny", "1", "\ud800"])
)
NAMES = st.sampled_from(
    ["role", "content", "type", "text", "id", "function", "name", "arguments", "tool_calls"]
) | st.text(max_size=5)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    app = create_app(FakeEngine(), ServerConfig())
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def _check(client: TestClient, path: str, body: bytes) -> None:
    answer = client.post(path, content=body)

    assert answer.status_code in (200, 400, 404), (answer.status_code, body)
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        assert error["type"] == "invalid_request_error"
        assert error["param"] is None or isinstance(error["param"], str)


@pytest.mark.parametrize("path", BASES)
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_one_or_two_odd_fields(client: TestClient, path: str, data: st.DataObject) -> None:
    model, base = BASES[path]
    names = st.sampled_from(sorted(model.model_fields)) | st.text(max_size=5)
    body = {**base, **data.draw(st.dictionaries(names, JSON, min_size=1, max_size=2))}

    _check(client, path, json.dumps(body).encode())


@pytest.mark.parametrize("path", BASES)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(body=st.binary(max_size=20) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_body(client: TestClient, path: str, body: bytes) -> None:
    _check(client, path, body)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    messages=st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["system", "user", "assistant", "tool"])},
            optional={
                "content": st.text(max_size=5) | st.lists(JSON, max_size=2) | JSON,
                "tool_calls": JSON,
                "tool_call_id": st.text(max_size=3) | JSON,
                "refusal": JSON,
            },
        ),
        max_size=3,
    )
)
def test_any_messages(client: TestClient, messages: list[object]) -> None:
    body = {"model": "tiny", "messages": messages}

    _check(client, "/v1/chat/completions", json.dumps(body).encode())
