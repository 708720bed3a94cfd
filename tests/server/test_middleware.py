from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from fake_engine import FakeEngine
from prometheus_client.parser import text_string_to_metric_families

from .conftest import MakeClient

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


def test_a_request_id_comes_back(make_client: MakeClient) -> None:
    answer = make_client().get("/version", headers={"x-request-id": "abc-1"})

    assert answer.headers["x-request-id"] == "abc-1"


@pytest.mark.parametrize("given", ["", "two words", "x" * 129, "\x00", "ä"])
def test_a_request_id_that_could_break_a_log_is_replaced(
    make_client: MakeClient, given: str
) -> None:
    client = make_client()

    ids = {
        client.get("/version", headers=[(b"x-request-id", given.encode())]).headers["x-request-id"]
        for _ in range(2)
    }

    assert len(ids) == 2
    assert all(len(it) == 32 for it in ids)


def test_one_line_per_request(make_client: MakeClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pippin.server.middleware")
    client = make_client()

    client.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "abc"})
    client.get("/a%0Ab")

    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert lines[0].startswith("http_request method=POST path=/v1/chat/completions status=200 ")
    assert lines[0].endswith(" request_id=abc")
    assert "\n" not in lines[1]


def test_what_is_polled_leaves_a_line_only_if_it_fails(
    make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="pippin.server.middleware")
    engine = FakeEngine()
    client = make_client(engine)

    for path in ("/health", "/metrics", "/v1/requests"):
        assert client.get(path).status_code == 200
    assert not caplog.records

    engine.healthy = False
    client.get("/health")
    assert "path=/health status=503" in caplog.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer no"}, 401),
        ({"authorization": "Basic two"}, 401),
        ({"authorization": "Bearer two"}, 200),
        ({"authorization": "bearer  one "}, 200),
        ({"x-api-key": "two"}, 200),
        ({"x-api-key": "twotwo"}, 401),
        ({"x-api-key": b"\xff"}, 401),
    ],
)
def test_keys_open_the_api(make_client: MakeClient, headers: dict[str, str], status: int) -> None:
    client = make_client(api_keys=("one", "two"))

    answer = client.get("/v1/models", headers=headers)

    assert answer.status_code == status
    assert ("www-authenticate" in answer.headers) == (status == 401)
    if status == 401:
        assert answer.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/models", 401),
        ("/v1/nothing", 401),
        ("/tokenize", 401),
        ("/detokenize", 401),
        ("/health", 200),
        ("/metrics", 200),
        ("/version", 200),
    ],
)
def test_what_the_keys_guard(make_client: MakeClient, path: str, status: int) -> None:
    assert make_client(api_keys=("one",)).get(path).status_code == status


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("size", "status"), [(999, 400), (1001, 413)])
def test_bodies_over_the_limit(
    make_client: MakeClient, chunked: bool, size: int, status: int
) -> None:
    engine = FakeEngine()
    client = make_client(engine, max_body_bytes=1000)

    def parts() -> Iterator[bytes]:
        yield b" " * (size - 1)
        yield b"{"

    content = parts() if chunked else b"".join(parts())
    answer = client.post("/v1/chat/completions", content=content)

    assert answer.status_code == status
    assert answer.json()["error"]["code"] == (
        "invalid_json" if status == 400 else "request_too_large"
    )


def test_invented_paths_and_methods_make_no_new_series(make_client: MakeClient) -> None:
    client = make_client()
    for number in range(3):
        client.request(f"ODD{number}", f"/path/{number}")
        client.get(f"/v1/models/absent/{number}")

    families = text_string_to_metric_families(client.get("/metrics").text)
    counts = {
        (sample.labels["path"], sample.labels["method"], sample.labels["status"]): sample.value
        for family in families
        if family.name == "pippin_http_requests"
        for sample in family.samples
    }

    assert counts == {
        ("unmatched", "other", "404"): 3,
        ("/v1/models/{model_id:path}", "GET", "404"): 3,
    }
