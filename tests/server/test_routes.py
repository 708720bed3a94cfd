"""The small endpoints: models, tokens, health, version."""

from __future__ import annotations

import importlib.metadata

import pytest
from anthropic.types import ModelInfo
from fake_engine import FakeEngine, make_card

from pippin.core.engine.stats import EngineStats, SpeculationStatus
from pippin.core.speculation.stats import DraftCounts

from .conftest import MakeClient


def test_models_are_listed_once(make_client: MakeClient) -> None:
    answer = make_client().get("/v1/models")

    assert answer.json() == {
        "object": "list",
        "data": [
            {
                "id": "tiny/model",
                "object": "model",
                "created": 1_700_000_000,
                "owned_by": "pippin",
                "max_model_len": 4096,
                "aliases": ["tiny"],
            }
        ],
    }


@pytest.mark.parametrize("name", ["tiny/model", "tiny", "tiny%2Fmodel"])
def test_a_model_answers_to_its_id_and_aliases(make_client: MakeClient, name: str) -> None:
    answer = make_client().get(f"/v1/models/{name}")

    assert answer.status_code == 200
    assert answer.json()["id"] == "tiny/model"


@pytest.mark.parametrize("name", ["", "tiny/", "a/b/c", "TINY"])
def test_other_models_are_not_found(make_client: MakeClient, name: str) -> None:
    answer = make_client().get(f"/v1/models/{name}")

    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/completions", {"prompt": "x"}),
    ],
)
@pytest.mark.parametrize(
    ("model", "status"),
    [("tiny", 200), ("tiny/model", 200), ("other", 404), ("", 400), (None, 400)],
)
def test_a_request_must_name_the_model(
    make_client: MakeClient, path: str, body: dict[str, object], model: str | None, status: int
) -> None:
    client = make_client()

    answer = client.post(path, json={**body, "model": model})

    assert answer.status_code == status
    if status != 200:
        assert answer.json()["error"]["param"] == "model"
    assert client.post(path, json=body).json()["error"]["param"] == "model"


def test_tokenize_a_text(make_client: MakeClient) -> None:
    answer = make_client().post("/tokenize", json={"prompt": "hi", "return_token_strs": True})

    assert answer.json() == {
        "count": 2,
        "max_model_len": 4096,
        "tokens": [104, 105],
        "token_strs": ["h", "i"],
    }


def test_tokenize_a_conversation_and_back(make_client: MakeClient) -> None:
    client = make_client()
    messages = [{"role": "user", "content": "hi"}]

    tokens = client.post("/tokenize", json={"model": "tiny", "messages": messages}).json()["tokens"]
    answer = client.post("/detokenize", json={"tokens": tokens})

    assert answer.json() == {"prompt": "user: hi\n"}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "prompt"),
        ("/tokenize", {"prompt": "x", "add_generation_prompt": True}, "add_generation_prompt"),
        ("/tokenize", {"messages": [{"role": "user", "content": "x"}], "add_special_tokens": True},
         "add_special_tokens"),
        ("/tokenize", {"prompt": ["x"]}, "prompt"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [256]}, "tokens"),
        ("/detokenize", {"tokens": ["x"]}, "tokens.0"),
    ],
)  # fmt: skip
def test_what_tokenize_cannot_honour(
    make_client: MakeClient, path: str, body: dict[str, object], param: str
) -> None:
    answer = make_client().post(path, json=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
def test_tokenize_knows_its_model(make_client: MakeClient, path: str) -> None:
    body = (
        {"model": "other", "prompt": "x"}
        if path == "/tokenize"
        else {"model": "other", "tokens": []}
    )

    assert make_client().post(path, json=body).status_code == 404


def test_health_shows_what_runs_where(make_client: MakeClient) -> None:
    card = make_card(details={"device": "gpu", "odd": {1, 2}.__class__})

    answer = make_client(FakeEngine(card=card)).get("/health")

    health = answer.json()
    assert answer.status_code == 200
    assert health["status"] == "ok"
    assert health["model"] == "tiny/model"
    assert health["details"]["device"] == "gpu"
    assert health["kv_cache"]["num_used_blocks"] == 5
    assert health["kv_cache"]["usage"] == 0.5
    assert health["speculation"] is None


def test_health_shows_how_speculation_fares(make_client: MakeClient) -> None:
    engine = FakeEngine()
    counts = DraftCounts(num_steps=3, num_drafted=9, num_accepted=6, num_emitted=9)
    status = SpeculationStatus(proposer="draft", counts=counts, gain=1.5, is_on=True)
    engine.engine_stats = EngineStats(speculation=status)

    health = make_client(engine).get("/health").json()

    assert health["speculation"] == {
        "proposer": "draft",
        "gain": 1.5,
        "is_on": True,
        "counts": {"num_steps": 3, "num_drafted": 9, "num_accepted": 6, "num_emitted": 9},
    }


def test_health_tells_of_a_dead_engine(make_client: MakeClient) -> None:
    engine = FakeEngine()
    engine.healthy = False

    answer = make_client(engine).get("/health")

    assert answer.status_code == 503
    assert answer.json()["status"] == "unhealthy"


def test_version(make_client: MakeClient) -> None:
    answer = make_client().get("/version")

    assert answer.json() == {"version": importlib.metadata.version("pippin")}


def test_models_for_anthropics_client(make_client: MakeClient) -> None:
    headers = {"anthropic-version": "2023-06-01"}
    client = make_client(FakeEngine(card=make_card(model_id="org/m", aliases=("m",))))

    page = client.get("/v1/models", headers=headers).json()
    one = client.get("/v1/models/m", headers=headers).json()
    other = client.get("/v1/models/x", headers=headers)

    assert page == {"first_id": "org/m", "last_id": "org/m", "has_more": False, "data": [one]}
    shown = ModelInfo.model_validate(one, strict=False)
    assert (shown.id, shown.display_name, shown.max_input_tokens) == ("org/m", "org/m", 4096)
    assert shown.created_at.timestamp() == 1_700_000_000
    assert (other.status_code, other.json()["error"]["type"]) == (404, "not_found_error")
    assert other.headers["request-id"] == other.json()["request_id"]
