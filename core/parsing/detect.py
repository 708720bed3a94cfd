"""Which dialects a model writes, told by its chat template; and the parser for them."""

from __future__ import annotations

from collections.abc import Sequence

from ..messages import ToolSpec
from .dialects import REASONING_DIALECTS, TOOL_DIALECTS
from .output_parser import OutputParser, PlainParser
from .reply_parser import NO_REASONING, ReplyParser

HARMONY = "harmony"

# In this order: what comes later is part of what comes before, or less telling.
_TOOL_SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (HARMONY, ("<|channel|>", "analysis", "<|message|>")),
    ("atem", ("<atem:invoke",)),
    ("minimax_m3", ("]<]minimax[>[",)),
    ("minimax_m2", ("<minimax:tool_call>",)),
    ("kimi_k3", ("<|open|>", "<|sep|>")),
    ("kimi_k2", ("<|tool_call_argument_begin|>",)),
    ("deepseek_v3.2", ("\uff5cDSML\uff5c", "function_calls>")),
    ("deepseek_v4", ("\uff5cDSML\uff5c",)),
    ("step3", ("steptml:",)),
    ("deepseek_v3", ("<\uff5ctool▁call▁begin\uff5c>", "```json")),
    ("deepseek_v3.1", ("<\uff5ctool▁call▁begin\uff5c>",)),
    ("gemma4", ("<|tool_call>",)),
    ("gemma", ("<start_function_call>",)),
    ("cohere", ("<|START_ACTION|>",)),
    ("command_r", ("Action:", "tool_name")),
    ("solar", ("<|tool_call:begin|>",)),
    ("gigachat3.1", ("<|function_call|>",)),
    ("gigachat", ("function call", "<|role_sep|>")),
    ("apertus", ("<|tools_prefix|>",)),
    ("longcat", ("<longcat_tool_call>",)),
    ("hy3", ("<tool_call{}>", ":opensource")),
    ("glm", ("<arg_key>",)),
    ("seed", ("<seed:tool_call>",)),
    ("minicpm5", ("<function name=", "<param name=")),
    ("qwen3_coder", ("<function=", "<parameter=")),
    ("lfm2", ("<|tool_call_start|>",)),
    ("lfm2", ("<|tool_list_start|>",)),
    ("lfm2", ("List of tools: [",)),
    ("nemotron", ("<TOOLCALL>",)),
    ("firefunction", ("functools",)),
    ("functionary_v3", (">>>all",)),
    ("functionary", ("<function=",)),
    ("functionary", ("'<{start_tag}={function_name}>",)),
    ("granite", ("<|tool_call|>",)),
    ("phi4", ("<|tool|>", "<|/tool|>")),
    ("mistral", ("[TOOL_CALLS]", "[ARGS]")),
    ("mistral_v3", ("[TOOL_CALLS]",)),
    ("apriel", ("<tool_calls>",)),
    ("hermes", ("<tool_call>",)),
    ("olmo3", ("<function_calls>",)),
    ("pythonic", ("<|python_start|>",)),
    ("llama3", ("<|python_tag|>",)),
    ("llama3", ('{"name": function name, "parameters": dictionary',)),
)

_REASONING_SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (HARMONY, ("<|channel|>", "analysis", "<|message|>")),
    ("kimi_k3", ("<|open|>", "<|sep|>")),
    ("hy3", ("<think{}>", ":opensource")),
    ("seed", ("<seed:think>",)),
    ("minimax_m3", ("<mm:think>",)),
    ("longcat", ("<longcat_think>",)),
    ("kimi", ("◁think▷",)),
    ("gemma4", ("<|channel>",)),
    ("cohere", ("<|START_THINKING|>",)),
    ("mistral", ("[THINK]",)),
    ("apertus", ("<|inner_prefix|>",)),
    ("solar", ("<|think|>", "<|content|>")),
    ("apriel", ("[BEGIN FINAL RESPONSE]",)),
    ("granite", ("<think></think>", "<response></response>")),
    ("hunyuan", ("<think>", "<answer>")),
    ("thinking", ("<thinking>",)),
    ("think", ("</think>",)),
    ("think", ("<think>",)),
)

TOOL_PARSER_NAMES = (*TOOL_DIALECTS, HARMONY)
REASONING_PARSER_NAMES = tuple(REASONING_DIALECTS)


def detect_tool_dialect(template: str | None, model_type: str | None = None) -> str | None:
    """The name of the dialect that a model's tool calls are written in, if it is known."""
    return _first(_TOOL_SIGNS, template, model_type)


def detect_reasoning_dialect(template: str | None, model_type: str | None = None) -> str | None:
    """The name of the dialect that a model's reasoning is written in, if it is known."""
    return _first(_REASONING_SIGNS, template, model_type)


def make_parser(
    tool_dialect: str | None,
    reasoning_dialect: str | None,
    tools: Sequence[ToolSpec] = (),
    *,
    starts_in_reasoning: bool = False,
) -> OutputParser:
    """A parser for one answer.

    Args:
        tool_dialect: ``None`` where calls are not looked for.
        reasoning_dialect: ``None`` where reasoning is not.
        tools: What the model was told of; types of arguments are taken from there.
        starts_in_reasoning: See `ReasoningDialect.starts_in_reasoning`.

    Raises:
        KeyError: There is no such dialect.
    """
    if tool_dialect == HARMONY:
        tool_dialect, reasoning_dialect = None, HARMONY
    if tool_dialect is None and reasoning_dialect is None:
        return PlainParser()
    return ReplyParser(
        None if tool_dialect is None else TOOL_DIALECTS[tool_dialect],
        NO_REASONING if reasoning_dialect is None else REASONING_DIALECTS[reasoning_dialect],
        tools,
        starts_in_reasoning=starts_in_reasoning,
    )


def _first(
    signs: Sequence[tuple[str, tuple[str, ...]]], template: str | None, model_type: str | None
) -> str | None:
    if model_type == "gpt_oss":
        # Conversions often come without a template of their own.
        return HARMONY
    text = template or ""
    return next((name for name, parts in signs if all(part in text for part in parts)), None)
