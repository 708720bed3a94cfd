"""Templates are told by the marks that they leave."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pippin.core.parsing.detect import (
    REASONING_PARSER_NAMES,
    TOOL_PARSER_NAMES,
    detect_reasoning_dialect,
    detect_tool_dialect,
    make_parser,
)
from pippin.core.parsing.output_parser import PlainParser

# The part of each template that tells it apart, and what else it says that another has, too.
FRAGMENTS = [
    ("<tool_call>\n{...}</tool_call> {{ message.content.split('</think>') }}", "hermes", "think"),
    ("<tool_call>\n<function=f>\n<parameter=p>", "qwen3_coder", None),
    ("<tool_call>{{ name }}<arg_key>{{ k }}</arg_key> <think>", "glm", "think"),
    ("[TOOL_CALLS]{{ name }}[ARGS] [THINK]", "mistral", "mistral"),
    ("[TOOL_CALLS][{{ calls }}]", "mistral_v3", None),
    ("<\uff5ctool▁call▁begin\uff5c>function\n```json", "deepseek_v3", None),
    ("<\uff5ctool▁call▁begin\uff5c>{{ name }} </think>", "deepseek_v3.1", "think"),
    ("{%- set d = '\uff5cDSML\uff5c' %} function_calls>", "deepseek_v3.2", None),
    ("{%- set d = '\uff5cDSML\uff5c' %} tool_calls>", "deepseek_v4", None),
    ("<|channel|>analysis<|message|> to=functions.", "harmony", "harmony"),
    ("<|python_tag|>", "llama3", None),
    ("<|tool_call> <|channel>thought", "gemma4", "gemma4"),
    ("<|tool_call|> <think></think> <response></response>", "granite", "granite"),
    ("<|START_ACTION|> <|START_THINKING|>", "cohere", "cohere"),
    ("<minimax:tool_call> <invoke name= <think>", "minimax_m2", "think"),
    ("<seed:tool_call> <function= <parameter= <seed:think>", "seed", "seed"),
    ("{{ message }}", None, None),
    (None, None, None),
]

# Of files by these names, where somebody has them.
TEMPLATES = {
    "ByteDance-Seed-OSS": ("seed", "seed"),
    "CohereForAI-c4ai-command-r-plus-tool_use": ("command_r", None),
    "GLM-4.6": ("glm", "think"),
    "Kimi-K2-Thinking": ("kimi_k2", "think"),
    "Kimi-K3": ("kimi_k3", "kimi_k3"),
    "LFM2-8B-A1B": ("lfm2", None),
    "MiniMax-M2": ("minimax_m2", "think"),
    "MiniMax-M3": ("minimax_m3", "minimax_m3"),
    "NVIDIA-Nemotron-Nano-v2": ("nemotron", "think"),
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": ("hermes", None),
    "Qwen-Qwen3-0.6B": ("hermes", "think"),
    "Qwen3-Coder": ("qwen3_coder", None),
    "Qwen3.5-4B": ("qwen3_coder", "think"),
    "deepseek-ai-DeepSeek-V3.1": ("deepseek_v3.1", "think"),
    "google-gemma-2-2b-it": (None, None),
    "google-gemma-4-31B-it": ("gemma4", "gemma4"),
    "ibm-granite-granite-3.3-2B-Instruct": ("granite", "granite"),
    "meetkai-functionary-medium-v3.1": ("functionary", None),
    "meetkai-functionary-medium-v3.2": ("functionary_v3", None),
    "meta-llama-Llama-3.2-3B-Instruct": ("llama3", None),
    "mistralai-Ministral-3-14B-Reasoning-2512": ("mistral", "mistral"),
    "mistralai-Mistral-Nemo-Instruct-2407": ("mistral_v3", None),
    "openai-gpt-oss-120b": ("harmony", "harmony"),
    "upstage-Solar-Open-100B": ("solar", "solar"),
}


@pytest.mark.parametrize(("template", "tools", "reasoning"), FRAGMENTS)
def test_a_template_tells_its_dialects(
    template: str | None, tools: str | None, reasoning: str | None
) -> None:
    assert detect_tool_dialect(template) == tools
    assert detect_reasoning_dialect(template) == reasoning


def test_real_templates_tell_theirs() -> None:
    folder = Path(os.environ.get("PIPPIN_CHAT_TEMPLATES", "none"))
    found = {path.stem: path.read_text() for path in folder.glob("*.jinja")}
    if not TEMPLATES.keys() & found.keys():
        pytest.skip("PIPPIN_CHAT_TEMPLATES names no folder of chat templates")
    for name in TEMPLATES.keys() & found.keys():
        text = found[name]
        told = (detect_tool_dialect(text), detect_reasoning_dialect(text))
        assert told == TEMPLATES[name], name


def test_gpt_oss_needs_no_template() -> None:
    assert (
        detect_tool_dialect(None, "gpt_oss") == detect_reasoning_dialect("", "gpt_oss") == "harmony"
    )


def test_every_name_makes_a_parser() -> None:
    for name in TOOL_PARSER_NAMES:
        make_parser(name, None).feed("x")
    for name in REASONING_PARSER_NAMES:
        make_parser("hermes", name, starts_in_reasoning=True).feed("x")
    assert isinstance(make_parser(None, None), PlainParser)
