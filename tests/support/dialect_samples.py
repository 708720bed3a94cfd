"""What models write in each dialect, made from calls; and what a parser makes of it, in short."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pippin.core.constraints.tool_grammar import (
    Either,
    Json,
    Maybe,
    Members,
    Pattern,
    Piece,
    TextUntil,
)
from pippin.core.messages import ToolSpec
from pippin.core.parsing.detect import make_parser
from pippin.core.parsing.events import (
    ContentDelta,
    ReasoningDelta,
    ReplyEvent,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)
from pippin.core.parsing.tool_grammars import TOOL_GRAMMARS

Call = tuple[str, Mapping[str, Any]]

TYPES = {"s": "string", "t": "string", "n": "integer", "f": "number", "b": "boolean"} | {
    "o": "object",
    "a": "array",
    "z": "null",
}
PAYLOADS: tuple[Mapping[str, Any], ...] = (
    {},
    {"s": "Paris"},
    {"s": "", "n": -3},
    {"s": "naïve 東京 🎉\u2028.", "t": "x"},
    {"s": 'say "hi"\n\tto C:\\temp\\new', "b": True},
    {"n": 0, "f": 2.5, "b": False},
    {"o": {"k": [1, {"deep": None}], "text": "}]{[ , : '"}, "a": [[0], {"q": "x"}, "x"]},
    {"s": "a < b && <tool, </para [TOOL ]<] |> ``` <|", "a": [True, "<|tool"]},
)


def tool(name: str, arguments: Iterable[str] = TYPES) -> ToolSpec:
    """A tool that takes these arguments, all of them required."""
    properties = {key: {"type": TYPES[key]} for key in arguments}
    required = list(properties)
    return ToolSpec(name=name, parameters={"properties": properties, "required": required})


TOOLS = (tool("get_weather"), tool("search"))


def _fill(
    pieces: Sequence[Piece], arguments: Mapping[str, Any], values: Iterator[Any], number: str
) -> str:
    text = ""
    for piece in pieces:
        match piece:
            case str():
                text += piece
            case Json(schema) if "required" in schema:
                text += json.dumps(arguments, ensure_ascii=False)
            case Json():
                text += json.dumps(next(values), ensure_ascii=False)
            case TextUntil(end):
                text += f"{next(values)}{end}"
            case Pattern():
                text += number
            case Maybe():
                pass  # as good as any other way
            case Either(options):
                text += _fill(options[0], arguments, values, number)
            case Members(rows, between):
                text += between.join([_fill(row, arguments, values, number) for row, _ in rows])
            case _:
                raise AssertionError("all arguments are required, and of one type")
    return text


def from_grammar(name: str) -> Callable[[Sequence[Call]], str]:
    """Writes calls as the dialect's grammar has them, which keeps the two from drifting apart."""
    grammar = TOOL_GRAMMARS[name]

    def write(calls: Sequence[Call]) -> str:
        written = []
        for number, (function, arguments) in enumerate(calls):
            values = iter(arguments.values())
            pieces = grammar.call(tool(function, arguments))
            written.append(_fill(pieces, arguments, values, str(number)))
        return grammar.begin + grammar.between.join(written) + grammar.end

    return write


def _each(write: Callable[[str, Mapping[str, Any]], str], begin: str = "", end: str = "") -> Any:
    return lambda calls: begin + "\n".join(write(*call) for call in calls) + end


def _json(name: str, arguments: Mapping[str, Any]) -> str:
    return json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)


def _tags(argument: str, end: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda arguments: "".join(
        argument.replace("K", key) + (value if isinstance(value, str) else json.dumps(value)) + end
        for key, value in arguments.items()
    )


def _gemma(value: Any, quote: str) -> str:
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_gemma(each, quote)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_gemma(each, quote) for each in value) + "]"
    return f"{quote}{value}{quote}" if isinstance(value, str) else json.dumps(value)


def _python(name: str, arguments: Mapping[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def _m3(value: Any, tag: str) -> str:
    ns = "]<]minimax[>["
    if isinstance(value, Mapping):
        inner = "".join(_m3(each, key) for key, each in value.items())
    elif isinstance(value, list):
        inner = "".join(_m3(each, "item") for each in value)
    else:
        inner = value if isinstance(value, str) else json.dumps(value)
    return f"{ns}<{tag}>{inner}{ns}</{tag}>"


def _bars(name: str) -> str:
    return f"<\uff5c{name}\uff5c>"


_STEP_TAGS = _tags('<steptml:parameter name="K">', "</steptml:parameter>")

WRITERS: dict[str, Callable[[Sequence[Call]], str]] = {
    **{name: from_grammar(name) for name in TOOL_GRAMMARS},
    "functionary_v3": _each(lambda name, each: f">>>{name}\n{json.dumps(each)}"),
    "gemma": _each(
        lambda name, each: (
            f"<start_function_call>call:{name}{_gemma(each, '<escape>')}<end_function_call>"
        )
    ),
    "gemma4": _each(
        lambda name, each: "<|tool_call>call:" + name + _gemma(each, '<|"|>') + "<tool_call|>"
    ),
    "gigachat": _each(lambda *call: "function call<|role_sep|>\n" + _json(*call)),
    "lfm2": lambda calls: (
        "<|tool_call_start|>[" + ", ".join(_python(*call) for call in calls) + "]<|tool_call_end|>"
    ),
    "minimax_m3": _each(
        lambda name, each: (
            f']<]minimax[>[<invoke name="{name}">'
            + "".join(_m3(value, key) for key, value in each.items())
            + "]<]minimax[>[</invoke>"
        ),
        "]<]minimax[>[<tool_call>\n",
        "]<]minimax[>[</tool_call>",
    ),
    "olmo3": _each(_python, "<function_calls>", "</function_calls>"),
    "pythonic": lambda calls: "[" + ", ".join(_python(*call) for call in calls) + "]",
    "step3": _each(
        lambda name, each: (
            f"{_bars('tool_call_begin')}function{_bars('tool_sep')}"
            f'<steptml:invoke name="{name}">{_STEP_TAGS(each)}</steptml:invoke>'
            f"{_bars('tool_call_end')}"
        ),
        _bars("tool_calls_begin"),
        _bars("tool_calls_end"),
    ),
}


@dataclass
class Reply:
    """What events say, whatever their number.

    Attributes:
        calls: Name, arguments, and whether the call was ended.
    """

    reasoning: str = ""
    content: str = ""
    calls: list[tuple[str, str, bool]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list, compare=False)
    order: str = ""

    @property
    def whole_calls(self) -> list[Call]:
        """The calls that were ended, decoded."""
        return [(name, json.loads(text)) for name, text, is_whole in self.calls if is_whole]


def summarize(events: Iterable[ReplyEvent]) -> Reply:
    """Join deltas, and check that the events come as they must."""
    reply = Reply()
    for event in events:
        letter = type(event).__name__[0]
        if not reply.order.endswith(letter):
            reply.order += letter
        match event:
            case ReasoningDelta(text):
                reply.reasoning += text
            case ContentDelta(text):
                reply.content += text
            case ToolCallStart(index, call_id, name):
                assert index == len(reply.calls)
                reply.calls.append((name, "", False))
                reply.ids.append(call_id)
            case ToolCallDelta(index, text):
                name, arguments, is_whole = reply.calls[-1]
                assert index == len(reply.calls) - 1
                assert not is_whole
                reply.calls[-1] = (name, arguments + text, False)
            case ToolCallEnd(index):
                name, arguments, is_whole = reply.calls[-1]
                assert index == len(reply.calls) - 1
                assert not is_whole
                assert isinstance(json.loads(arguments), dict)
                reply.calls[-1] = (name, arguments, True)
    return reply


def parse(
    pieces: Iterable[str],
    tools: str | None,
    reasoning: str | None = None,
    *,
    starts_in_reasoning: bool = False,
) -> Reply:
    """What an answer that comes in these pieces says."""
    parser = make_parser(tools, reasoning, TOOLS, starts_in_reasoning=starts_in_reasoning)
    events = [event for piece in pieces for event in parser.feed(piece)]
    return summarize(events + parser.close())
