"""Dialects whose markers are special tokens, which texts do not show: from token to client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from live_server import serve
from scripted_model import write_scripted_model

from pippin.core.config import CacheConfig, EngineConfig
from pippin.core.engine.async_engine import AsyncEngine
from pippin.server.config import ServerConfig


@dataclass(frozen=True)
class Family:
    """How the models of one dialect answer.

    Attributes:
        thought: What stands before the rest; empty where models do not reason.
        call: With a place for a city, twice.
        said: What is said, and the markers around it.
        ends: Special tokens that end an answer beside the end token: the first a call, the last
            what is said.
    """

    tools: str
    reasoning: str
    special_tokens: tuple[str, ...]
    thought: str
    call: str
    said: str
    ends: tuple[str, ...] = ()


_BAR = "\uff5c"
FAMILIES = {
    "gpt-oss": Family(
        tools="harmony",
        reasoning="harmony",
        special_tokens=(
            *("<|start|>", "<|channel|>", "<|message|>", "<|call|>", "<|return|>", "<|end|>"),
            "<|constrain|>",
        ),
        thought="<|channel|>analysis<|message|>I must look.<|end|><|start|>assistant",
        call="<|channel|>commentary to=functions.look <|constrain|>json<|message|>"
        '{"city": "Rome"}<|call|>',
        said="<|channel|>final<|message|>It is < sunny.<|return|>",
        ends=("<|call|>", "<|return|>"),
    ),
    "mistral": Family(
        tools="mistral",
        reasoning="mistral",
        special_tokens=("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]"),
        thought="[THINK]I must look.[/THINK]",
        call='[TOOL_CALLS]look[ARGS]{"city": "Rome"}',
        said="It is < sunny.",
    ),
    "kimi": Family(
        tools="kimi_k2",
        reasoning="think",
        special_tokens=(
            *("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
            *("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"),
        ),
        thought="<think>I must look.</think>",
        call="<|tool_calls_section_begin|><|tool_call_begin|>functions.look:0"
        '<|tool_call_argument_begin|>{"city": "Rome"}<|tool_call_end|><|tool_calls_section_end|>',
        said="It is < sunny.",
    ),
    "deepseek": Family(
        tools="deepseek_v3.1",
        reasoning="think",
        special_tokens=tuple(
            f"<{_BAR}tool▁{name}{_BAR}>"
            for name in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep")
        ),
        thought="<think>I must look.</think>",
        call=f"<{_BAR}tool▁calls▁begin{_BAR}><{_BAR}tool▁call▁begin{_BAR}>look<{_BAR}tool▁sep{_BAR}>"
        f'{{"city": "Rome"}}<{_BAR}tool▁call▁end{_BAR}><{_BAR}tool▁calls▁end{_BAR}>',
        said="It is < sunny.",
    ),
    "gigachat": Family(
        tools="gigachat",
        reasoning="off",
        special_tokens=("<|role_sep|>", "<|message_sep|>"),
        thought="",
        call="<|message_sep|>\n\nfunction call<|role_sep|>\n"
        '{"name": "look", "arguments": {"city": "Rome"}}<|message_sep|>',
        said="It is < sunny.<|message_sep|>",
    ),
    "minimax": Family(
        tools="minimax_m3",
        reasoning="minimax_m3",
        special_tokens=("]<]minimax[>[",),
        thought="<mm:think>I must look.</mm:think>",
        call=']<]minimax[>[<tool_call>\n]<]minimax[>[<invoke name="look">]<]minimax[>[<city>Rome'
        "]<]minimax[>[</city>]<]minimax[>[</invoke>\n]<]minimax[>[</tool_call>",
        said="It is < sunny.",
    ),
    "gemma": Family(
        tools="gemma4",
        reasoning="gemma4",
        special_tokens=("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>'),
        thought="<|channel>thought\nI must look.<channel|>",
        call='<|tool_call>call:look{city:<|"|>Rome<|"|>}<tool_call|>',
        said="It is < sunny.",
    ),
}
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "function": {"name": "look", "parameters": CITY, "strict": True}}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def client(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    # If an end token did not end the answer, what stands behind it would show.
    behind = "More." if family.ends else ""
    folder = write_scripted_model(
        tmp_path_factory.mktemp("special"),
        {
            "call": family.thought + family.call + behind,
            "say": family.thought + family.said + behind,
        },
        special_tokens=family.special_tokens,
    )
    engine = AsyncEngine.start(
        str(folder),
        EngineConfig(
            cache=CacheConfig(max_bytes=16 << 20),
            max_model_len=2048,
            tool_call_parser=family.tools,
            reasoning_parser=family.reasoning,
        ),
        served_model_name="scripted",
    )
    try:
        with (
            serve(engine, ServerConfig(port=0)) as live,
            openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as made,
        ):
            yield made
    finally:
        engine.close()


def ask(client: openai.OpenAI, text: str, **fields: Any) -> dict[str, Any]:
    """An answer, whole or streamed: thought, said, calls and the reason of its end."""
    messages: Any = [{"role": "user", "content": text}]
    fields = {
        "model": "scripted",
        "messages": messages,
        "temperature": 0,
        "tools": [TOOL],
        **fields,
    }
    got: dict[str, Any] = {"thought": "", "said": "", "name": "", "arguments": "", "end": None}
    reply = client.chat.completions.create(**fields)
    for chunk in reply if fields.get("stream") else [reply]:
        for choice in chunk.choices:
            part = choice.delta if fields.get("stream") else choice.message
            got["thought"] += getattr(part, "reasoning_content", None) or ""
            got["said"] += part.content or ""
            for call in part.tool_calls or ():
                got["name"] += call.function.name or ""
                got["arguments"] += call.function.arguments or ""
            got["end"] = choice.finish_reason or got["end"]
    return got


@pytest.mark.parametrize("stream", [False, True])
def test_each_part_of_an_answer_goes_where_it_belongs(
    client: openai.OpenAI, family: Family, stream: bool
) -> None:
    thought = "I must look." if family.thought else ""
    call = {"name": "look", "arguments": '{"city": "Rome"}', "end": "tool_calls", "said": ""}
    assert ask(client, "call", stream=stream) == {"thought": thought, **call}
    said = {"name": "", "arguments": "", "end": "stop", "said": "It is < sunny."}
    assert ask(client, "say", stream=stream) == {"thought": thought, **said}


def test_calls_can_be_enforced(client: openai.OpenAI, family: Family) -> None:
    got = ask(client, "say", tool_choice="required", parallel_tool_calls=False, max_tokens=300)
    assert (got["name"], got["end"], got["said"]) == ("look", "tool_calls", "")
    assert set(json.loads(got["arguments"])) == {"city"}
