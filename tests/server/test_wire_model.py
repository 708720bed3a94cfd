from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as TextParams

from pippin.core.errors import InvalidRequestError
from pippin.server.schemas.openai_chat import ChatCompletionRequest
from pippin.server.schemas.openai_completions import CompletionRequest
from pippin.server.schemas.wire_model import parse_body

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def _user(**fields: object) -> dict[str, object]:
    return {"messages": [{"role": "user", **fields}]}


def _call(arguments: object) -> dict[str, object]:
    function = {"name": "f", "arguments": arguments}
    return {
        "messages": [
            {
                "role": "assistant",
                "tool_calls": [{"id": "1", "type": "function", "function": function}],
            }
        ]
    }


def _refusal(**changes: object) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        parse_body(ChatCompletionRequest, json.dumps({**CHAT, **changes}).encode())
    return caught.value


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"model": None}, "model", "invalid_type"),
        ({"model": ""}, "model", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "hi"}, "messages", "invalid_type"),
        ({"messages": [3]}, "messages.0", "invalid_type"),
        ({"messages": [{"content": "x"}]}, "messages.0.role", "missing_required_parameter"),
        ({"messages": [{"role": "no"}]}, "messages.0.role", "invalid_value"),
        ({"messages": [{"role": []}]}, "messages.0.role", "invalid_value"),
        (_user(), "messages.0.content", "missing_required_parameter"),
        (_user(content=3), "messages.0.content", "invalid_type"),
        (_user(content=[{"type": "text"}]), "messages.0.content.0.text",
         "missing_required_parameter"),
        (_user(content=[{"type": "text", "text": 3}]), "messages.0.content.0.text",
         "invalid_type"),
        (_user(content=[{"type": "hologram"}]), "messages.0.content.0.type", "invalid_value"),
        (_user(content="x", mood="good"), "messages.0.mood", "unknown_parameter"),
        (_call({}), "messages.0.tool_calls.0.function.arguments", "invalid_type"),
        ({"temperature": "1"}, "temperature", "invalid_type"),
        ({"temperature": True}, "temperature", "invalid_type"),
        ({"max_tokens": 3.5}, "max_tokens", "invalid_type"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"n": True}, "n", "invalid_type"),
        ({"n": 129}, "n", "invalid_value"),
        ({"stream": 1}, "stream", "invalid_type"),
        ({"stop": 3}, "stop", "invalid_type"),
        ({"stop": ["a", 3]}, "stop.1", "invalid_type"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage", "invalid_type"),
        ({"stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter"),
        ({"top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"logit_bias": {"5": "x"}}, "logit_bias.5", "invalid_type"),
        ({"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"guided_json": {}}, "guided_json", "unknown_parameter"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(changes: dict[str, object], param: str, code: str) -> None:
    error = _refusal(**changes)

    assert (error.param, error.code) == (param, code)
    assert param in str(error)


def test_a_field_with_two_types_names_both() -> None:
    assert "string" in str(_refusal(stop=3))
    assert "array" in str(_refusal(stop=3))


@pytest.mark.parametrize(
    ("field", "harmless", "refused"),
    [
        ("functions", [], [{"name": "f"}]),
        ("function_call", "none", "auto"),
        ("store", False, True),
        ("store", None, 0),
        ("service_tier", "auto", "flex"),
        ("modalities", ["text"], ["text", "audio"]),
        ("audio", None, {"voice": "x"}),
        ("prediction", None, {"type": "content", "content": "x"}),
        ("web_search_options", None, {}),
    ],
)
def test_what_cannot_be_honoured_is_refused_unless_it_asks_for_nothing(
    field: str, harmless: object, refused: object
) -> None:
    for value in (harmless, None):
        parse_body(ChatCompletionRequest, json.dumps({**CHAT, field: value}).encode())
    error = _refusal(**{field: refused})

    assert (error.param, error.code) == (field, "unsupported_value")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"\xff\xfe", "invalid_json"),
        (b'{"model": "\\ud800"}', "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b"[]", "invalid_type"),
        (b"null", "invalid_type"),
    ],
)
def test_a_body_that_is_no_json_object(body: bytes, code: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_body(ChatCompletionRequest, body)

    assert (caught.value.param, caught.value.code) == (None, code)


def test_every_parameter_of_the_official_client_is_known() -> None:
    """None of them may be refused as unknown: each is honoured, or refused for what it asks."""
    assert set(ChatParams.__annotations__) <= set(ChatCompletionRequest.model_fields)
    assert set(TextParams.__annotations__) <= set(CompletionRequest.model_fields)


def test_an_integer_is_a_fine_number() -> None:
    body = json.dumps({**CHAT, "temperature": 1, "logit_bias": {"5": 3}}).encode()

    assert parse_body(ChatCompletionRequest, body).temperature == 1.0
