"""Dictionaries mean here what they mean to the server, and are refused where it refuses them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fake_engine import make_card
from request_bodies import CALL, CHAT, CHAT_TOOL

from pippin.core.errors import InvalidRequestError, UnsupportedFeatureError
from pippin.core.llm.conversation import ChatOptions, to_chat, to_format
from pippin.core.llm.sampling import Sampling, to_params
from pippin.core.messages import ChatPrompt, Message, TextPart, ToolSpec
from pippin.core.reply_rules import ReplyRules, ResponseFormat, ToolChoice
from pippin.core.sampling_params import SamplingParams
from pippin.server.adapters import openai_chat
from pippin.server.schemas.openai_chat import ChatCompletionRequest
from pippin.server.schemas.wire_model import parse_body

USER = {"role": "user", "content": "x"}
BOTH = ("tools", "tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort")
CHANGES: list[dict[str, Any]] = [
    {},
    {"tool_choice": "none"},
    {"tool_choice": None, "tools": None, "response_format": {"type": "text"}},
    {"tool_choice": "required", "parallel_tool_calls": False},
    {"response_format": {"type": "json_object"}, "reasoning_effort": "low"},
    {"messages": [{"role": "developer", "content": ""}, {**USER, "name": None}]},
    {"messages": [USER, {"role": "assistant", "content": None, "refusal": "no"}]},
    {"messages": [{"role": "assistant", "content": "x", "reasoning_content": "r", "audio": None}]},
]
MESSAGES: list[Any] = [
    [],
    [{"content": "x"}],
    [{"role": "poet", "content": "x"}],
    [{"role": "user"}],
    [{"role": "user", "content": 3}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}],
    [{"role": "user", "content": [{"type": "text"}]}],
    [{"role": "user", "content": [{"type": "verse", "text": "x"}]}],
    [{"role": "user", "content": "x", "tool_call_id": "call_1"}],
    [{"role": "tool", "content": "x", "tool_call_id": "call_1"}],
    [{"role": "tool", "content": "x"}],
    [{"role": "assistant", "content": None, "tool_calls": [{**CALL, "id": None}]}],
    [{"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]}],
]
OPTIONS: list[dict[str, Any]] = [
    {"tools": [CHAT_TOOL, CHAT_TOOL]},
    {"tools": [{"type": "web_search"}]},
    {"tools": [{"type": "function", "function": {"name": "f", "examples": []}}]},
    {"tools": [CHAT_TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
    {"tools": [CHAT_TOOL], "tool_choice": "always"},
    {"tool_choice": "required"},
    {"response_format": {"type": "yaml"}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "s"}}},
    {"reasoning_effort": "huge"},
]


def read_by_server(body: dict[str, Any]) -> tuple[ChatPrompt, ReplyRules]:
    raw = json.dumps({"model": "tiny", **body}).encode()
    wire = parse_body(ChatCompletionRequest, raw)
    return openai_chat.to_prompt(wire), openai_chat.to_rules(wire)


@pytest.mark.parametrize("changes", CHANGES)
def test_a_dictionary_is_read_as_the_server_reads_it(changes: dict[str, Any]) -> None:
    body = {**CHAT, **changes}
    options: Any = {name: body[name] for name in BOTH if body.get(name) is not None}
    options["template_kwargs"] = body["chat_template_kwargs"]

    assert to_chat(body["messages"], options) == read_by_server(body)


@pytest.mark.parametrize("messages", MESSAGES)
def test_messages_that_the_server_refuses_are_refused(messages: Any) -> None:
    with pytest.raises(InvalidRequestError) as here:
        to_chat(messages, {})
    with pytest.raises(InvalidRequestError) as there:
        read_by_server({"messages": messages})
    assert str(here.value).startswith(("'messages", "Messages", "The conversation"))
    assert isinstance(here.value, UnsupportedFeatureError) >= isinstance(
        there.value, UnsupportedFeatureError
    )


@pytest.mark.parametrize("options", OPTIONS)
def test_options_that_the_server_refuses_are_refused(options: Any) -> None:
    with pytest.raises(InvalidRequestError) as here:
        to_chat([USER], options)
    with pytest.raises(InvalidRequestError):
        read_by_server({"messages": [USER], **options})
    assert here.value.param is not None


def test_the_values_of_core_are_taken_as_they_are() -> None:
    message = Message(role="user", content=(TextPart("x"),))
    tool = ToolSpec(name="f", parameters={"type": "object"})
    form = ResponseFormat("regex", "a+")
    options: ChatOptions = {"tools": [tool], "tool_choice": ToolChoice("named", "f")}
    prompt, rules = to_chat([message], {**options, "response_format": form})

    assert (prompt.messages, prompt.tools) == ((message,), (tool,))
    assert rules.tool_choice == ToolChoice("named", "f")
    assert rules.response_format is form
    assert to_format(None) is None
    with pytest.raises(InvalidRequestError, match="thinking_budget"):
        to_chat("x", {"thinking_budget": -1})


def test_sampling_names_every_setting_there_is() -> None:
    names = set(SamplingParams.__dataclass_fields__)
    assert set(Sampling.__annotations__) == names

    params = to_params({"stop": "x", "top_k": None, "stop_token_ids": [1]}, {"top_k": 20.0})
    assert params == SamplingParams(stop=("x",), top_k=20, stop_token_ids=(1,))
    assert to_params(params, {"temperature": 0.1}) is params
    assert to_params(None, make_card().default_sampling) == SamplingParams()
