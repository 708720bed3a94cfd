"""The dialects that are known, by the names that ``--tool-call-parser`` and so on take."""

from __future__ import annotations

import re

from .call_reader import ToolDialect
from .harmony import read_harmony
from .json_calls import HeadedCalls, JsonCalls, MistralCalls
from .literal_calls import GemmaCalls, PythonCalls
from .nested_calls import read_nested_call
from .reply_parser import ReasoningDialect
from .tag_calls import TagCalls
from .values import gemma_syntax


def _json(open_: str, close: str = "", *, bare: str = "", name_is_key: bool = False) -> ToolDialect:
    closes = (close,) if close else ()
    return ToolDialect(
        read=JsonCalls(name_is_key), opens=(open_,), closes=closes, bare=bare, passes_json=True
    )


def _headed(
    open_: str, header: str, ends: tuple[str, ...], close: str, wraps: tuple[str, str] | None = None
) -> ToolDialect:
    closes = (close, *(wraps or ())[1:])
    return ToolDialect(
        read=HeadedCalls(re.compile(header), ends, closes),
        opens=(open_,),
        wraps=(wraps or ())[:1],
        closes=closes,
        passes_json=True,
        ends_reasoning=wraps is not None,
    )


def _invoke(prefix: str, wraps: tuple[str, ...], closes: tuple[str, ...]) -> ToolDialect:
    """``<invoke name="f"><parameter name="k">v</parameter></invoke>``, tags with a prefix."""
    return ToolDialect(
        read=TagCalls(
            name_ends=(">",),
            argument=f"<{prefix}parameter name=",
            key_end=">",
            value_end=f"</{prefix}parameter>",
            call_end=f"</{prefix}invoke>",
        ),
        opens=(f"<{prefix}invoke name=",),
        wraps=wraps,
        closes=closes,
        call_end=f"</{prefix}invoke>",
    )


def _deepseek(header: str) -> ToolDialect:
    wraps = (_bars("tool▁calls▁begin"), _bars("tool▁calls▁end"))
    return _headed(_bars("tool▁call▁begin"), header, ("\n", "{"), _CALL_END, wraps)


def _function_tags(wrap: str) -> ToolDialect:
    """``<function=f><parameter=k>v</parameter></function>``."""
    return ToolDialect(
        read=TagCalls(
            name_ends=(">",),
            argument="<parameter=",
            key_end=">",
            value_end="</parameter>",
            call_end="</function>",
        ),
        opens=("<function=",),
        wraps=(f"<{wrap}>",),
        closes=(f"</{wrap}>",),
        call_end="</function>",
    )


def _argument_tags(prefix: str = "", suffix: str = "", wrap: str = "") -> ToolDialect:
    """``<tool_call>f<arg_key>k</arg_key><arg_value>v</arg_value></tool_call>``."""
    return ToolDialect(
        read=TagCalls(
            name_ends=("\n", f"<tool_sep{suffix}>"),
            argument=f"<{prefix}arg_key{suffix}>",
            key_end=f"</{prefix}arg_key{suffix}>",
            value=f"<{prefix}arg_value{suffix}>",
            value_end=f"</{prefix}arg_value{suffix}>",
            call_end=f"</{prefix}tool_call{suffix}>",
        ),
        opens=(f"<{prefix}tool_call{suffix}>",),
        wraps=(f"<{wrap}>",) if wrap else (),
        closes=(f"</{wrap}>",) if wrap else (),
        call_end=f"</{prefix}tool_call{suffix}>",
    )


def _bars(name: str) -> str:
    """A special token between the wide bars that DeepSeek writes."""
    return f"<\uff5c{name}\uff5c>"


_CALL_SEP = _bars("tool▁sep")
_CALL_END = _bars("tool▁call▁end")
_DSML = "\uff5cDSML\uff5c"
_M3 = "]<]minimax[>["
_NAME = r"\s*(?P<name>[^\s<]+)\s*"

_DEEPSEEK_DSML = _invoke(
    _DSML,
    (f"<{_DSML}tool_calls>", f"<{_DSML}function_calls>"),
    (f"</{_DSML}tool_calls>", f"</{_DSML}function_calls>"),
)
_MISTRAL = ToolDialect(
    read=MistralCalls(
        JsonCalls(),
        HeadedCalls(
            re.compile(r"\s*(?P<name>[\w.:/-]+)(?:\[CALL_ID\](?P<id>[a-zA-Z0-9]{9}))?\s*"),
            ("[ARGS]", "{"),
        ),
    ),
    opens=("[TOOL_CALLS]",),
    passes_json=True,
    has_short_ids=True,
)

TOOL_DIALECTS: dict[str, ToolDialect] = {
    "apertus": _json("<|tools_prefix|>", "<|tools_suffix|>", name_is_key=True),
    "apriel": _json("<tool_calls>", "</tool_calls>"),
    "atem": _invoke("atem:", ("<atem:function_calls>",), ("</atem:function_calls>",)),
    "cohere": _json("<|START_ACTION|>", "<|END_ACTION|>"),
    "command_r": _json("Action:"),
    "deepseek_v3": _deepseek(rf"function{_CALL_SEP}(?P<name>[^\s<]+)\s*"),
    "deepseek_v3.1": _deepseek(rf"(?P<name>[^\s<]+){_CALL_SEP}\s*"),
    "deepseek_v3.2": _DEEPSEEK_DSML,
    "deepseek_v4": _DEEPSEEK_DSML,
    "firefunction": _json("functools"),
    "functionary": _headed("<function=", _NAME, (">",), "</function>"),
    "functionary_v3": ToolDialect(
        read=HeadedCalls(re.compile(_NAME), ("\n",), plain="all"),
        opens=(">>>",),
        bare="*",
        passes_json=True,
    ),
    "gemma": ToolDialect(
        read=GemmaCalls(gemma_syntax("<escape>")),
        opens=("<start_function_call>",),
        closes=("<end_function_call>",),
    ),
    "gemma4": ToolDialect(
        read=GemmaCalls(gemma_syntax('<|"|>')), opens=("<|tool_call>",), closes=("<tool_call|>",)
    ),
    "gigachat": _json("function call<|role_sep|>", "<|message_sep|>"),
    "gigachat3.1": _json("<|function_call|>"),
    "glm": _argument_tags(),
    "granite": ToolDialect(
        read=JsonCalls(),
        opens=("<|tool_call|>", "<tool_call>"),
        closes=("<|/tool_call|>", "</tool_call>"),
        passes_json=True,
    ),
    "granite_20b": _json("<function_call>", "</function_call>"),
    "hermes": _json("<tool_call>", "</tool_call>"),
    "hy3": _argument_tags(suffix=":opensource", wrap="tool_calls:opensource"),
    "kimi_k2": _headed(
        "<|tool_call_begin|>",
        r"\s*(?=(?P<id>[^\s<]+:\d+)?)(?:functions\.)?+(?P<name>[^\s<:]+)(?::\d+)?\s*",
        ("<|tool_call_argument_begin|>",),
        "<|tool_call_end|>",
        ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    ),
    "kimi_k3": ToolDialect(
        read=TagCalls(
            name_ends=("<|sep|>",),
            argument="<|open|>argument",
            key_end="<|sep|>",
            value_end="<|close|>argument<|sep|>",
            call_end="<|close|>call<|sep|>",
            json=("<|open|>json", "<|close|>json<|sep|>"),
        ),
        opens=("<|open|>call",),
        wraps=("<|open|>tools<|sep|>",),
        closes=("<|close|>tools<|sep|>",),
        call_end="<|close|>call<|sep|>",
    ),
    "lfm2": ToolDialect(
        read=PythonCalls(), opens=("<|tool_call_start|>",), closes=("<|tool_call_end|>",)
    ),
    "llama3": _json("<|python_tag|>", bare="{["),
    "longcat": _argument_tags("longcat_"),
    "minicpm5": ToolDialect(
        read=TagCalls(
            name_ends=(">",),
            argument="<param name=",
            key_end=">",
            value_end="</param>",
            call_end="</function>",
            knows_cdata=True,
        ),
        opens=("<function name=",),
        call_end="</function>",
    ),
    "minimax_m2": _invoke("", ("<minimax:tool_call>",), ("</minimax:tool_call>",)),
    "minimax_m3": ToolDialect(
        read=read_nested_call,
        opens=(f"{_M3}<invoke name=",),
        wraps=(f"{_M3}<tool_call>",),
        closes=(f"{_M3}</tool_call>",),
        call_end=f"{_M3}</invoke>",
    ),
    "mistral": _MISTRAL,
    "mistral_v3": _MISTRAL,
    "nemotron": _json("<TOOLCALL>", "</TOOLCALL>"),
    "olmo3": ToolDialect(
        read=PythonCalls(), opens=("<function_calls>",), closes=("</function_calls>",)
    ),
    "phi4": ToolDialect(
        read=JsonCalls(),
        opens=("functools", "<|tool_call|>"),
        closes=("<|/tool_call|>",),
        passes_json=True,
    ),
    "pythonic": ToolDialect(
        read=PythonCalls(),
        opens=("<|python_start|>",),
        closes=("<|python_end|>",),
        bare="[",
    ),
    "qwen3_coder": _function_tags("tool_call"),
    "seed": _function_tags("seed:tool_call"),
    "solar": _headed(
        "<|tool_call:begin|>",
        r"\s*(?P<id>[\w-]+)<\|tool_call:name\|>(?P<name>[^\s<]+)\s*",
        ("<|tool_call:args|>",),
        "<|tool_call:end|>",
    ),
    "step3": _invoke(
        "steptml:",
        (
            _bars("tool_calls_begin"),
            _bars("tool_call_begin") + "function" + _bars("tool_sep"),
        ),
        (_bars("tool_call_end"), _bars("tool_calls_end")),
    ),
    "xlam": _json("[TOOL_CALLS]", bare="[{`"),
}
"""Harmony is not among them: its answers are read as a whole, by the dialect of its reasoning.
Dialects that one reader reads have names of their own where models write them differently."""


def _tags(open_: str, close: str, *silent: str) -> ReasoningDialect:
    return ReasoningDialect(opens=(open_,), closes=(close,), silent=silent)


REASONING_DIALECTS: dict[str, ReasoningDialect] = {
    "apertus": _tags("<|inner_prefix|>", "<|inner_suffix|>"),
    "apriel": _tags(
        "Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]", "[END FINAL RESPONSE]"
    ),
    "cohere": _tags(
        "<|START_THINKING|>",
        "<|END_THINKING|>",
        *("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"),
    ),
    "gemma4": _tags("<|channel>thought", "<channel|>"),
    "granite": ReasoningDialect(
        opens=("<think>", "Here is my thought process:", "Here's my thought process:"),
        closes=("</think>", "Here is my response:", "Here's my response:"),
        silent=("<response>", "</response>"),
    ),
    "harmony": ReasoningDialect(
        opens=("<|channel|>analysis<|message|>",),
        closes=("<|end|><|start|>assistant", "<|end|>"),
        content_begin="<|channel|>final<|message|>",
        read=read_harmony,
    ),
    "hy3": _tags("<think:opensource>", "</think:opensource>"),
    "hunyuan": _tags("<think>", "</think>", "<answer>", "</answer>"),
    "kimi": _tags("◁think▷", "◁/think▷"),
    "kimi_k3": _tags(
        "<|open|>think<|sep|>",
        "<|close|>think<|sep|>",
        *("<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>"),
    ),
    "longcat": _tags("<longcat_think>", "</longcat_think>"),
    "minimax_m3": _tags("<mm:think>", "</mm:think>"),
    "mistral": _tags("[THINK]", "[/THINK]"),
    "seed": _tags("<seed:think>", "</seed:think>"),
    "solar": _tags("<|think|>", "<|end|>", "<|begin|>assistant", "<|content|>", "<|tool_calls|>"),
    "think": _tags("<think>", "</think>"),
    "thinking": _tags("<thinking>", "</thinking>"),
}
