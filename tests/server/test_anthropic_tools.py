"""Tools of Messages that the model is told of only once the conversation has loaded them."""

from __future__ import annotations

from typing import Any

import pytest
from fake_engine import FakeEngine

from pippin.core.messages import ChatPrompt

from .conftest import MakeClient

SEARCH = {"name": "search", "input_schema": {"type": "object"}}
FIND = {"name": "find", "input_schema": {"type": "object"}, "defer_loading": True}
ASK = {"role": "user", "content": "x"}
FOUND = [
    ASK,
    {
        "role": "assistant",
        "content": [{"type": "tool_use", "id": "t", "name": "search", "input": {}}],
    },
    {
        "role": "user",
        "content": [
            {
                "type": "tool_result",
                "tool_use_id": "t",
                "content": [{"type": "tool_reference", "tool_name": "find"}],
            }
        ],
    },
]


def _change(kind: str, name: str = "find") -> dict[str, Any]:
    tool = {"type": "tool_reference", "name": name}
    return {"role": "system", "content": [{"type": kind, "tool": tool}]}


def _send(make_client: MakeClient, messages: Any, **fields: Any) -> tuple[Any, list[str]]:
    engine = FakeEngine()
    body = {"model": "tiny", "max_tokens": 5, "tools": [SEARCH, FIND], **fields}
    answer = make_client(engine).post("/v1/messages", json={**body, "messages": messages})
    if answer.status_code != 200:
        return answer.json()["error"], []
    prompt = engine.submissions[-1].prompt
    assert isinstance(prompt, ChatPrompt)
    return prompt, [tool.name for tool in prompt.tools]


@pytest.mark.parametrize(
    ("messages", "fields", "names"),
    [
        ([ASK], {}, ["search"]),
        (FOUND, {}, ["search", "find"]),
        ([ASK, _change("tool_addition")], {}, ["search", "find"]),
        ([ASK, _change("tool_addition"), _change("tool_removal")], {}, ["search"]),
        ([ASK, _change("tool_removal", "search")], {}, []),
        ([ASK], {"tool_choice": {"type": "tool", "name": "find"}}, ["search", "find"]),
        ([ASK], {"tools": [SEARCH, {**FIND, "defer_loading": False}]}, ["search", "find"]),
    ],
)
def test_what_the_model_knows(
    make_client: MakeClient, messages: Any, fields: Any, names: list[str]
) -> None:
    assert _send(make_client, messages, **fields)[1] == names


def test_the_model_reads_what_has_been_loaded(make_client: MakeClient) -> None:
    loaded, _ = _send(make_client, FOUND)
    removed, _ = _send(make_client, [ASK, _change("tool_removal")])

    assert loaded.messages[-1].text == "The tool find can be called now.\n"
    assert removed.messages[-1].text == "The tool find can no longer be called.\n"


@pytest.mark.parametrize(
    ("messages", "fields", "said"),
    [
        ([ASK], {"tools": [FIND]}, "All tools have 'defer_loading' set"),
        ([ASK, _change("tool_addition", "g")], {}, "'messages.1.content.0.tool.name' names"),
        (FOUND, {"tools": [SEARCH]}, "'messages.2.content.0.content.0.tool_name' names"),
    ],
)
def test_what_cannot_be_loaded(
    make_client: MakeClient, messages: Any, fields: Any, said: str
) -> None:
    error, _ = _send(make_client, messages, **fields)

    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith(said)
