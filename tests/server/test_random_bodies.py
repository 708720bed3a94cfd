"""Any body to any route gets an answer in the API's own shape, and never a 500."""

from __future__ import annotations

import copy
import gzip
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from fake_engine import FakeEngine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from request_bodies import BODIES
from starlette.testclient import TestClient

from pippin.server.app import ROUTES, create_app
from pippin.server.config import ServerConfig
from pippin.server.errors import speaks_anthropic
from pippin.server.openapi import describe

WITH_BODY = sorted(path for path, body in BODIES.items() if body is not None)


DOCUMENT = describe(ROUTES, version="")


def _fields(path: str) -> st.SearchStrategy[str]:
    content = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]
    name = content["application/json"]["schema"]["$ref"].rpartition("/")[2]
    return st.sampled_from(sorted(DOCUMENT["components"]["schemas"][name]["properties"]))


FIELDS = {path: _fields(path) for path in WITH_BODY}


class Spelled(str):
    """JSON that `json.dumps` would write otherwise, or not at all."""

    __slots__ = ()


DEEP = 500
ODD: list[Any] = [
    *(None, True, False, 0, -1, 2, 1.5, -1e308, 2**31, 2**63, 10**400),
    *("", "x", "tiny", "a\0b", "\ud800", "\U0001f600", "x" * 300, "{", '{"a":'),
    *([], [None], [[]], ["x", 1], [{}], [{"type": "text"}] * 2, {}, {"a": 1}, {"type": "x"}),
    *({"": None}, {"type": {}}, {"role": "user"}, {"a": float("nan")}, {"\ud800": "\udc00"}),
    *(
        Spelled("NaN"),
        Spelled("-Infinity"),
        Spelled("1e999"),
        Spelled("0" * 20),
        Spelled("1" * 5000),
    ),
    Spelled('{"a": 1, "a": 2}'),
    Spelled('"\\ud83d"'),
    Spelled("[" * DEEP + "]" * DEEP),
    Spelled('{"a":' * DEEP + "1" + "}" * DEEP),
]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
WORDS = st.sampled_from(
    ["user", "assistant", "text", "image_url", "tool_use", "tool_result", "tiny", "1", "\ud800"]
)
NAMES = (
    st.sampled_from(["role", "content", "type", "text", "id", "function", "name", "arguments"])
    | st.sampled_from(["model", "messages", "input", "prompt", "tool_calls", "properties", "$ref"])
    | st.text(max_size=5)
)
JSON = st.recursive(
    SCALARS | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
BROKEN = [
    b"",
    b" \n",
    b'{"model": "ti',
    b"{}{}",
    b"\xef\xbb\xbf{}",
    '{"model": "tiny"}'.encode("utf-16"),
    b'{"model": "\xe4"}',
    gzip.compress(b"{}"),
    bytes(64),
    b"model=tiny&prompt=x",
    b"NaN",
    b'"\\ud800"',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"model": ' + b"1" * 100_000 + b"}",
]
RANDOMLY = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in entries:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from _places(inner, (*path, key))


def _replaced(body: Any, place: tuple[Any, ...], value: Any) -> bytes:
    body = copy.deepcopy(body)
    holder = body
    for key in place[:-1]:
        holder = holder[key]
    is_spelled = isinstance(value, Spelled)
    holder[place[-1]] = "<spelled>" if is_spelled else value
    text = json.dumps(body)
    return (text.replace('"<spelled>"', value) if is_spelled else text).encode()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    store = tmp_path_factory.mktemp("store") / "responses.sqlite"
    app = create_app(FakeEngine(), ServerConfig(response_store=store))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def _fill(client: TestClient, path: str) -> str:
    """The path with a conversation that is there, and no response that is."""
    if "{conversation_id}" in path:
        made = client.post("/v1/conversations", json={}).json()
        path = path.replace("{conversation_id}", made["id"])
    return path.replace("{request_id}", "x").replace("{response_id}", "resp_x")


def _refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} in an answer")


def check(
    client: TestClient,
    path: str,
    body: bytes,
    method: str = "POST",
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> int:
    """Send it, and see that the answer is one that the API could give."""
    answer = client.request(method, path, content=body, headers=list(headers))

    assert answer.status_code in (200, 400, 404, 405), (answer.status_code, body[:500])
    text = answer.content.decode()
    if method == "HEAD" or answer.headers["content-type"].startswith("text/plain"):
        return answer.status_code
    if answer.headers["content-type"].startswith(("text/event-stream", "application/x-ndjson")):
        frames = [line.removeprefix("data: ") for line in text.splitlines() if "{" in line]
        bodies = [json.loads(frame, parse_constant=_refuse_constant) for frame in frames]
        failed = [it for it in bodies if it.get("error") or it.get("type") == "response.failed"]
        assert not failed, (failed, body[:500])
        return answer.status_code
    said = json.loads(text, parse_constant=_refuse_constant) if text else {}
    if answer.status_code == 200:
        return 200
    error = said["error"]
    if path.startswith("/api/"):
        assert said == {"error": error}
        assert isinstance(error, str)
        assert error
        return answer.status_code
    if speaks_anthropic({"path": path.partition("?")[0], "headers": []}):
        assert set(said) == {"type", "error", "request_id"}
        assert said["type"] == "error"
        assert error["type"] in ("invalid_request_error", "not_found_error")
    else:
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
        assert error["param"] is None or isinstance(error["param"], str)
    assert isinstance(error["message"], str)
    assert 0 < len(error["message"]) <= 2000, body[:500]
    return answer.status_code


def test_every_route_with_a_body_is_here() -> None:
    taking = {route.path for route in ROUTES if "POST" in (route.methods or ())}

    assert taking == set(BODIES)


@pytest.mark.parametrize("path", WITH_BODY)
def test_the_bodies_are_valid(client: TestClient, path: str) -> None:
    expected = 400 if path.startswith("/api/embed") else 200
    assert check(client, _fill(client, path), json.dumps(BODIES[path]).encode()) == expected


@pytest.mark.parametrize("path", WITH_BODY)
@RANDOMLY
@given(data=st.data())
def test_a_valid_body_with_one_value_odd(
    client: TestClient, path: str, data: st.DataObject
) -> None:
    """In the place of one that it has, or as another field."""
    body = BODIES[path]
    place = data.draw(st.sampled_from(list(_places(body))) | st.tuples(FIELDS[path] | NAMES))
    value = data.draw(st.sampled_from(ODD) | JSON)

    check(client, _fill(client, path), _replaced(body, place, value))


@pytest.mark.parametrize("path", WITH_BODY)
@RANDOMLY
@given(body=JSON)
def test_any_json(client: TestClient, path: str, body: object) -> None:
    check(client, _fill(client, path), json.dumps(body).encode())


@pytest.mark.parametrize("path", sorted(BODIES))
def test_what_is_no_json(client: TestClient, path: str) -> None:
    url = _fill(client, path)
    statuses = [check(client, url, body) for body in BROKEN]

    assert BODIES[path] is None or set(statuses) == {400}


ODD_IDS = ["", "x", "%00", "%2F..%2F", "%ff", "a" * 2000, "resp_\U0001f600", "1/2", "{id}", "%"]
ODD_QUERIES = [
    "",
    "?limit=%00",
    "?limit=9999999999",
    "?order=x",
    "?after=%ff",
    "?a",
    "?&&=",
    "?stream=true",
]


@pytest.mark.parametrize(
    "path", sorted({route.path for route in ROUTES if "{" in route.path} | set(BODIES))
)
def test_odd_methods_ids_and_queries(client: TestClient, path: str) -> None:
    for odd in ODD_IDS:
        url = re.sub(r"{.*?}", odd, path)
        for query in ODD_QUERIES:
            check(client, url + query, b"", "GET")
        for method in ("HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY"):
            check(client, url, b"{", method)


ODD_HEADERS = [
    *((b"content-type", b"text/plain"), (b"content-type", b"multipart/form-data")),
    *((b"content-encoding", b"gzip"), (b"accept", b"image/png"), (b"x-request-id", b"\xff")),
    *((b"authorization", b"\xff \xff"), (b"content-length", b"1e3"), (b"range", b"bytes=9-1")),
]


@pytest.mark.parametrize("path", sorted(BODIES))
def test_odd_headers(client: TestClient, path: str) -> None:
    url, body = _fill(client, path), json.dumps(BODIES[path]).encode()
    for header in ODD_HEADERS:
        check(client, url, body, headers=[header])
