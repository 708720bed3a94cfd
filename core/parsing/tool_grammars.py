"""How calls are written, for decoding that may write nothing else.

A table of texts in which ``%n`` is the tool's name, ``%a`` its arguments, ``%i`` a number, ``%k``
an argument's name, and ``%t`` whether that is a string or its type, as the dialect has it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..constraints.tool_grammar import (
    Either,
    Json,
    Maybe,
    Members,
    Pattern,
    Piece,
    TextUntil,
    ToolGrammar,
)
from ..messages import ToolSpec
from .argument_grammar import json_piece, object_schema, text_pieces
from .argument_types import is_text, json_types, property_schema, resolve
from .nested_grammar import ElementCall, GemmaCall
from .tag_calls import CDATA

_PLACES = re.compile('("%n"|%[ain])')
_PLACES_OF_TEXT = re.compile("(%[knt])")
_BAR = "\uff5c"


@dataclass(frozen=True, slots=True)
class _JsonCall:
    """A call with all arguments in one object."""

    text: str

    def __call__(self, tool: ToolSpec) -> Sequence[Piece]:
        places: dict[str, Piece] = {
            "%a": Json(tool.parameters),
            "%i": Pattern("[0-9]{1,2}"),
            "%n": tool.name,
            '"%n"': json.dumps(tool.name, ensure_ascii=False),
        }
        return [places.get(part, part) for part in _PLACES.split(self.text) if part]


@dataclass(frozen=True, slots=True)
class _TagCall:
    """A call with tags around each argument, in the order of the schema.

    Attributes:
        types: What ``%t`` is for a string, and for anything else; empty for the type's name.
        knows_cdata: See `TagCalls`.
    """

    head: str
    argument: str
    value_end: str
    tail: str
    types: tuple[str, str] | None = None
    knows_cdata: bool = False

    def __call__(self, tool: ToolSpec) -> Sequence[Piece]:
        pieces: list[Piece] = [_fill(self.head, {"%n": tool.name})]
        schema = object_schema(tool)
        required = schema.get("required") or ()
        for name, argument in (schema.get("properties") or {}).items():
            found = argument if isinstance(argument, Mapping) else {}
            written = self._argument(name, resolve(found, schema), schema, tool)
            pieces += written if name in required else [Maybe(written)]
        return [*pieces, self.tail]

    def _argument(
        self, name: str, argument: Mapping[str, Any], schema: Mapping[str, Any], tool: ToolSpec
    ) -> list[Piece]:
        is_string, types = is_text(argument), json_types(argument)
        kind = "string" if is_string else next(iter(sorted(types - {"string", "null"})), "object")
        if self.types is not None:
            kind = self.types[0 if is_string else 1]
        begin = _fill(self.argument, {"%k": name, "%t": kind})
        value: list[Piece] | None = None
        if is_string or "%t" not in self.argument:
            is_marked = "%t" in self.argument
            shown = {"type": "string"} if is_marked else property_schema(tool.parameters, name)
            value = text_pieces(argument, shown, self.value_end, strict=tool.strict)
            if self.knows_cdata and value:
                value = [Either([[_not_cdata(piece) for piece in value], self._cdata(value)])]
        return [begin, *(value or (json_piece(argument, schema), self.value_end))]

    def _cdata(self, value: Sequence[Piece]) -> list[Piece]:
        begin, end = CDATA
        texts = [TextUntil(end, piece.patterns) for piece in value if isinstance(piece, TextUntil)]
        return [begin, *texts, self.value_end]


def _not_cdata(piece: Piece) -> Piece:
    if not isinstance(piece, TextUntil):
        return piece
    return TextUntil(piece.end, (*piece.patterns, r"(?s:(?:[^<]|<[^!]).*|<?)"))


def _python_call(tool: ToolSpec) -> Sequence[Piece]:
    """A call with keyword arguments whose values are JSON, which readers take for Python."""
    schema = object_schema(tool)
    properties, required = schema.get("properties") or {}, schema.get("required") or ()
    rows = [
        ((f"{name}=", json_piece(each, schema)), name in required)
        for name, each in properties.items()
    ]
    return [f"{tool.name}(", Members(rows, ", "), ")"]


def _fill(text: str, places: Mapping[str, str]) -> str:
    """Put names into a text at once: they may look like places."""
    return "".join(places.get(part, part) for part in _PLACES_OF_TEXT.split(text))


def _list(open_: str, call: str, close: str, between: str = ", ") -> ToolGrammar:
    return ToolGrammar(
        call=_JsonCall(call), trigger=open_.rstrip("[\n"), begin=open_, between=between, end=close
    )


def _invoke(prefix: str, begin: str, end: str, flag: str = "") -> ToolGrammar:
    return ToolGrammar(
        call=_TagCall(
            f'<{prefix}invoke name="%n">\n',
            f'<{prefix}parameter name="%k"{flag}>',
            f"</{prefix}parameter>\n",
            f"</{prefix}invoke>\n",
            ("true", "false") if flag else None,
        ),
        trigger=begin.rstrip(),
        begin=begin,
        end=end,
    )


def _invoke_step() -> ToolGrammar:
    begin, end = f"<{_BAR}tool_calls_begin{_BAR}>\n", f"<{_BAR}tool_calls_end{_BAR}>"
    call = _TagCall(
        f'<{_BAR}tool_call_begin{_BAR}>function<{_BAR}tool_sep{_BAR}><steptml:invoke name="%n">\n',
        '<steptml:parameter name="%k">',
        "</steptml:parameter>\n",
        f"</steptml:invoke><{_BAR}tool_call_end{_BAR}>\n",
    )
    return ToolGrammar(call=call, trigger=begin.rstrip(), begin=begin, end=end)


def _function_tags(wrap: str) -> ToolGrammar:
    head = f"<{wrap}>\n<function=%n>\n"
    tail = f"</function>\n</{wrap}>"
    call = _TagCall(head, "<parameter=%k>\n", "\n</parameter>\n", tail)
    return ToolGrammar(call=call, trigger=f"<{wrap}>", between="\n")


def _argument_tags(prefix: str = "", suffix: str = "", wrap: str = "") -> ToolGrammar:
    call = _TagCall(
        f"<{prefix}tool_call{suffix}>%n" + (f"<tool_sep{suffix}>" if wrap else "") + "\n",
        f"<{prefix}arg_key{suffix}>%k</{prefix}arg_key{suffix}>\n<{prefix}arg_value{suffix}>",
        f"</{prefix}arg_value{suffix}>\n",
        f"</{prefix}tool_call{suffix}>" + ("\n" if wrap else ""),
    )
    if not wrap:
        return ToolGrammar(call=call, trigger=f"<{prefix}tool_call{suffix}>", between="\n")
    return ToolGrammar(call=call, trigger=f"<{wrap}>", begin=f"<{wrap}>\n", end=f"</{wrap}>")


def _dsml(section: str) -> ToolGrammar:
    prefix = f"{_BAR}DSML{_BAR}"
    return _invoke(prefix, f"<{prefix}{section}>\n", f"</{prefix}{section}>", ' string="%t"')


def _deepseek(header: str, footer: str, between: str) -> ToolGrammar:
    begin, end = f"<{_BAR}tool▁calls▁begin{_BAR}>", f"<{_BAR}tool▁calls▁end{_BAR}>"
    call = f"<{_BAR}tool▁call▁begin{_BAR}>{header}%a{footer}<{_BAR}tool▁call▁end{_BAR}>"
    return _list(begin, call, end, between)


_OBJECT = '{"name": "%n", "arguments": %a}'
_PARAMETERS = '{"name": "%n", "parameters": %a}'
_M3 = "]<]minimax[>["
_SEP = f"<{_BAR}tool▁sep{_BAR}>"

TOOL_GRAMMARS: dict[str, ToolGrammar] = {
    "apertus": _list("<|tools_prefix|>[", '{"%n": %a}', "]<|tools_suffix|>"),
    "apriel": _list("<tool_calls>[", _OBJECT, "]</tool_calls>"),
    "atem": _invoke("atem:", "<atem:function_calls>\n", "</atem:function_calls>"),
    "cohere": _list(
        "<|START_ACTION|>[\n",
        '    {"tool_call_id": "%i", "tool_name": "%n", "parameters": %a}',
        "\n]<|END_ACTION|>",
        ",\n",
    ),
    "command_r": _list(
        "Action:\n```json\n[\n", '{"tool_name": "%n", "parameters": %a}', "\n]\n```", ",\n"
    ),
    "deepseek_v3": _deepseek(f"function{_SEP}%n\n```json\n", "\n```", "\n"),
    "deepseek_v3.1": _deepseek(f"%n{_SEP}", "", ""),
    "deepseek_v3.2": _dsml("function_calls"),
    "deepseek_v4": _dsml("tool_calls"),
    "firefunction": _list("functools[", _OBJECT, "]"),
    "functionary": ToolGrammar(
        call=_JsonCall("<function=%n>%a</function>"), trigger="<function=", between="\n"
    ),
    "functionary_v3": ToolGrammar(
        call=_JsonCall("%n\n%a"), trigger="", between=">>>", plain="all\n"
    ),
    "gemma": ToolGrammar(
        call=GemmaCall("<start_function_call>", "<end_function_call>", "<escape>"),
        trigger="<start_function_call>",
    ),
    "gemma4": ToolGrammar(
        call=GemmaCall("<|tool_call>", "<tool_call|>", '<|"|>'), trigger="<|tool_call>"
    ),
    # A call is a message of its own, behind one of text.
    "gigachat": ToolGrammar(
        call=lambda tool: [
            *_JsonCall(f"function call<|role_sep|>\n{_OBJECT}")(tool),
            Maybe(("<|message_sep|>",)),
        ],
        trigger="function call<|role_sep|>",
        between="\n\n",
        text_end="<|message_sep|>",
    ),
    "gigachat3.1": ToolGrammar(
        call=_JsonCall(f"<|function_call|>{_OBJECT}"), trigger="<|function_call|>"
    ),
    "glm": _argument_tags(),
    "granite": _list("<|tool_call|>[", _OBJECT, "]"),
    "granite_20b": ToolGrammar(
        call=_JsonCall(f"<function_call> {_OBJECT}"), trigger="<function_call>", between="\n"
    ),
    # The token behind a call ends the answer, so there is only ever one.
    "harmony": ToolGrammar(
        call=_JsonCall("<|channel|>commentary to=functions.%n <|constrain|>json<|message|>%a"),
        trigger="<|channel|>commentary to=",
        between="<|call|><|start|>assistant",
    ),
    "hermes": ToolGrammar(
        call=_JsonCall(f"<tool_call>\n{_OBJECT}\n</tool_call>"), trigger="<tool_call>", between="\n"
    ),
    "hy3": _argument_tags("", ":opensource", "tool_calls:opensource"),
    "kimi_k2": _list(
        "<|tool_calls_section_begin|>",
        "<|tool_call_begin|>functions.%n:%i<|tool_call_argument_begin|>%a<|tool_call_end|>",
        "<|tool_calls_section_end|>",
        "",
    ),
    "kimi_k3": ToolGrammar(
        call=_TagCall(
            '<|open|>call tool="%n" index="1"<|sep|>',
            '<|open|>argument key="%k" type="%t"<|sep|>',
            "<|close|>argument<|sep|>",
            "<|close|>call<|sep|>",
        ),
        trigger="<|open|>tools<|sep|>",
        begin="<|open|>tools<|sep|>",
        end="<|close|>tools<|sep|>",
    ),
    "lfm2": ToolGrammar(
        call=_python_call,
        trigger="<|tool_call_start|>",
        begin="<|tool_call_start|>[",
        between=", ",
        end="]<|tool_call_end|>",
    ),
    "llama3": ToolGrammar(call=_JsonCall(_PARAMETERS), trigger="", between="; "),
    "longcat": _argument_tags("longcat_"),
    "minicpm5": ToolGrammar(
        call=_TagCall(
            *('<function name="%n">', '<param name="%k">', "</param>", "</function>"),
            knows_cdata=True,
        ),
        trigger="<function name=",
        between="\n",
    ),
    "minimax_m2": _invoke("", "<minimax:tool_call>\n", "</minimax:tool_call>"),
    "minimax_m3": ToolGrammar(
        call=ElementCall(_M3, "\n"),
        trigger=f"{_M3}<tool_call>",
        begin=f"{_M3}<tool_call>\n",
        end=f"{_M3}</tool_call>",
    ),
    "mistral": ToolGrammar(
        call=_JsonCall("[TOOL_CALLS]%n[ARGS]%a"), trigger="[TOOL_CALLS]", between=""
    ),
    "mistral_v3": _list("[TOOL_CALLS][", _OBJECT, "]"),
    "nemotron": _list("<TOOLCALL>[", _OBJECT, "]</TOOLCALL>"),
    "olmo3": ToolGrammar(
        call=_python_call,
        trigger="<function_calls>",
        begin="<function_calls>",
        between="\n",
        end="</function_calls>",
    ),
    "phi4": _list("functools[", _OBJECT, "]"),
    "pythonic": ToolGrammar(call=_python_call, trigger="", begin="[", between=", ", end="]"),
    "qwen3_coder": _function_tags("tool_call"),
    "seed": _function_tags("seed:tool_call"),
    "solar": ToolGrammar(
        call=_JsonCall(
            "<|tool_call:begin|>call-%i<|tool_call:name|>%n<|tool_call:args|>%a<|tool_call:end|>"
        ),
        trigger="<|tool_call:begin|>",
    ),
    "step3": _invoke_step(),
    "xlam": ToolGrammar(call=_JsonCall(_OBJECT), trigger="", begin="[", between=", ", end="]"),
}
"""By the name of the dialect. Where there is none, calls can be read but not enforced."""
