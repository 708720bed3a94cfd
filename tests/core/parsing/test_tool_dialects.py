"""Every tool dialect: whole, cut anywhere, cut short, and broken."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from typing import Any

import pytest
from dialect_samples import PAYLOADS, TOOLS, WRITERS, Call, parse
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pippin.core.parsing.argument_types import to_json
from pippin.core.parsing.detect import TOOL_PARSER_NAMES, make_parser
from pippin.core.parsing.dialects import TOOL_DIALECTS
from pippin.core.parsing.output_parser import Piece
from pippin.core.parsing.reply_parser import ReplyParser

TWO: Sequence[Call] = (("get_weather", PAYLOADS[4]), ("search", PAYLOADS[6]))
# These begin calls without a marker, so only at an answer's start.
AT_START = ("llama3", "pythonic", "xlam")


def expected(calls: Sequence[Call]) -> list[Call]:
    return [(name, dict(arguments)) for name, arguments in calls]


def test_every_dialect_has_samples() -> None:
    assert set(WRITERS) == set(TOOL_PARSER_NAMES)


@pytest.mark.parametrize("dialect", WRITERS)
class TestEveryDialect:
    def test_calls_are_read_however_they_are_cut(self, dialect: str) -> None:
        for calls in (*([("get_weather", payload)] for payload in PAYLOADS), TWO):
            text = WRITERS[dialect](calls)
            reply = parse([text], dialect)
            assert reply.whole_calls == expected(calls), text
            assert reply.content.strip() == ""
            assert parse(text, dialect) == reply

    def test_text_around_calls_stays(self, dialect: str) -> None:
        before = "" if dialect in AT_START else "Let me see: 1 < 2.\n\n"
        for payload in PAYLOADS:
            text = before + WRITERS[dialect]([("search", payload)])
            reply = parse([text], dialect)
            assert reply.whole_calls == expected([("search", payload)])
            assert reply.content == before.rstrip()
            assert parse(text, dialect) == reply

    def test_every_cut_gives_the_same(self, dialect: str) -> None:
        text = WRITERS[dialect]([("get_weather", PAYLOADS[7]), ("search", {})])
        reply = parse([text], dialect)
        for cut in range(1, len(text), 3):
            assert parse([text[:cut], text[cut:]], dialect) == reply

    def test_a_call_cut_short_is_content_or_a_call_without_an_end(self, dialect: str) -> None:
        text = WRITERS[dialect]([("get_weather", {"s": "Par\nis", "n": 12})])
        ((_, arguments, _),) = parse([text], dialect).calls
        for length in range(len(text)):
            reply = parse([text[:length]], dialect)
            assert parse(text[:length], dialect) == reply
            if reply.calls:
                assert reply.content.strip() == ""  # no part of a marker is said
                assert arguments.startswith(reply.calls[0][1])
            elif dialect != "harmony":
                assert reply.content == text[:length]

    def test_a_call_with_a_broken_name_is_content(self, dialect: str) -> None:
        text = WRITERS[dialect]([("get_weather", {"s": "x"})])
        for broken in (
            text.replace("get_weather", "get?weather"),
            text.replace("get_weather", ""),
            text.replace("get_weather", "g" * 300 + "\n"),
        ):
            reply = parse([broken], dialect)
            assert parse(broken, dialect) == reply
            assert not reply.whole_calls
            if dialect != "harmony":
                assert reply.content == broken

    def test_text_without_calls_is_content(self, dialect: str) -> None:
        for text in ("", "\n", "Hello.\n", "if a < b: x = [1, {2}]\n", '{"name": "Bob"}', "[1, 2]"):
            assert parse([text], dialect).content == text
            assert parse(text, dialect).content == text

    def test_the_name_comes_before_the_arguments_are_whole(self, dialect: str) -> None:
        text = WRITERS[dialect]([("get_weather", {"s": "a" * 50})])
        reply = parse([text[: text.index("aaa") + 3]], dialect)
        assert [name for name, _, _ in reply.calls] == ["get_weather"]


_MARKERS = {
    marker
    for dialect in TOOL_DIALECTS.values()
    for marker in (*dialect.opens, *dialect.wraps, *dialect.closes)
}
_WORDS = ("<think>", "</think>", "get_weather", "name", "a=1", "\\u12", *'{}":\n ')
_NOISE = st.lists(st.sampled_from([*_WORDS, *sorted(_MARKERS)]) | st.text(max_size=3), max_size=12)


@given(data=st.data(), dialect=st.sampled_from(sorted(WRITERS)))
@settings(max_examples=200, deadline=None)
def test_any_text_in_any_pieces_gives_the_same(data: st.DataObject, dialect: str) -> None:
    pieces = data.draw(_NOISE)
    call = WRITERS[dialect]([("search", data.draw(st.sampled_from(PAYLOADS)))])
    at, stop = sorted(data.draw(st.integers(0, len(call))) for _ in range(2))
    place = data.draw(st.integers(0, len(pieces)))
    pieces = [*pieces[:place], call[:at], call[at:stop], *pieces[place:]]
    reply = parse(["".join(pieces)], dialect, "think")
    assert parse(pieces, dialect, "think") == reply
    assert parse("".join(pieces), dialect, "think") == reply


@given(
    dialect=st.sampled_from(sorted(WRITERS)),
    text=st.text(st.characters(codec="utf-8")) | st.just("<![CDATA[x"),
)
@settings(max_examples=200, deadline=None)
def test_any_string_is_an_argument(dialect: str, text: str) -> None:
    # Elsewhere it is but text.
    assume(dialect != "minicpm5" or not text.strip().startswith("<![CDATA["))
    call: Call = ("search", {"s": text.strip() + "."})
    assert parse([WRITERS[dialect]([call])], dialect).whole_calls == expected([call])


@pytest.mark.parametrize(
    ("dialect", "library"),
    [
        *(
            (name, name)
            for name in ("glm", "longcat", "kimi_k2", "kimi_k3", "minimax_m2", "gemma4")
        ),
        *(("hermes", "json_tools"), ("qwen3_coder", "qwen3_coder"), ("mistral", "mistral")),
        *(("gemma", "function_gemma"), ("lfm2", "pythonic"), ("minicpm5", "minicpm5")),
    ],
)
def test_the_library_reads_the_same(dialect: str, library: str) -> None:
    module = importlib.import_module(f"mlx_lm.tool_parsers.{library.replace('glm', 'glm47')}")
    wire = [{"function": {"name": each.name, "parameters": each.parameters}} for each in TOOLS]
    for payload in PAYLOADS[1:5]:
        text = WRITERS[dialect]([("search", payload)])
        body = text.removeprefix(module.tool_call_start).removesuffix(module.tool_call_end)
        found = module.parse_tool_call(body, wire)
        read = found[0] if isinstance(found, list) else found
        assert parse([text], dialect).whole_calls == [(read["name"], read["arguments"])]


MORE: list[tuple[str, str, list[Call]]] = [
    ("hermes", '<tool_call>{"arguments": {"s": "x"}, "name": "search"}', [("search", {"s": "x"})]),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": "{\\"s\\": 1}"}</tool_call>',
        [("f", {"s": 1})],
    ),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>', [("f", {"a": 1})]),
    ("hermes", '<tool_call>{"name": "f", "arguments": null}</tool_call>', [("f", {})]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"r": "\\d\n"}}', [("f", {"r": "\\d\n"})]),
    (
        "hermes",
        '<tool_call>{"type": "function", "function": {"name": "f", "arguments": {}}}</tool_call>',
        [("f", {})],
    ),
    ("llama3", '<|python_tag|>{"name": "f", "parameters": {}}', [("f", {})]),
    ("llama3", '{"name": "unknown", "parameters": {}}', []),
    ("llama3", 'So: {"name": "search", "parameters": {}}', []),
    ("xlam", '```json\n[{"name": "search", "arguments": {}}]\n```', [("search", {})]),
    ("pythonic", "[unknown(a=1)]", []),
    (
        "qwen3_coder",
        "<function=search>\n<parameter=n>\n1\n</parameter>\n</function>",
        [("search", {"n": 1})],
    ),
    ("glm", "<tool_call>search</tool_call>", [("search", {})]),
    (
        "minicpm5",
        '<function name="search"><param name="s"><![CDATA[a</param>]]></param></function>',
        [("search", {"s": "a</param>"})],
    ),
    ("gemma4", '<|tool_call>call:f{"a":["x\\n", y]}<tool_call|>', [("f", {"a": ["x\n", "y"]})]),
    (
        "gigachat",
        'function call<|role_sep|>\n{"name": "f", "arguments": {}}<|message_sep|>\n\n',
        [("f", {})],
    ),
    (
        "minicpm5",
        '<function name="search"><param name="s"><![CDATA[\na\n]]></param></function>',
        [("search", {"s": "\na\n"})],
    ),
    (
        "qwen3_coder",
        "<function=search><parameter=s><![CDATA[a]]></parameter></function>",
        [("search", {"s": "<![CDATA[a]]>"})],
    ),
    (
        "kimi_k3",
        '<|open|>call tool="f"<|sep|><|open|>json type="object"<|sep|>{"a": 1}'
        "<|close|>json<|sep|><|close|>call<|sep|>",
        [("f", {"a": 1})],
    ),
    ("functionary_v3", "search\n{}", [("search", {})]),
    (
        "harmony",
        "<|start|>assistant to=functions.f<|channel|>commentary json<|message|>{}<|call|>",
        [("f", {})],
    ),
]


@pytest.mark.parametrize(("dialect", "text", "calls"), MORE)
def test_other_ways_of_writing_calls(dialect: str, text: str, calls: list[Call]) -> None:
    reply = parse([text], dialect)
    assert reply.whole_calls == calls
    assert parse(text, dialect) == reply
    assert calls or reply.content == text


# What stands between "Before.\n" and "\nBehind."; all calls, and whether they are whole.
BROKEN: list[tuple[str, str, list[tuple[str, str, bool]]]] = [
    (
        "hermes",
        '<tool_call>\n{"name": "f", "arguments": {"a": tru, "b": [1]}}\n</tool_call>',
        [("f", '{"a": tru, "b": [1]}}', False)],
    ),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"a":\u00a01}}</tool_call>',
        [("f", '{"a":\u00a01}}', False)],
    ),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {a}}\n'
        '<tool_call>{"name": "g", "arguments": {}}</tool_call>',
        [("f", "{a}}", False), ("g", "{}", True)],
    ),
    (
        "granite",
        '<|tool_call|>[{"name": "g", "arguments": {}}, {"name": "f", "arguments": {"a" 1}}]'
        "</tool_call>",
        [("g", "{}", True), ("f", '{"a" 1}}]', False)],
    ),
    (
        "kimi_k2",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>"
        "{1}<|tool_call_end|><|tool_calls_section_end|>",
        [("f", "{1}", False)],
    ),
    (
        "glm",
        "<tool_call>f\n<arg_key>s</arg_key>oh<arg_value>x</arg_value>\n</tool_call>",
        [("f", "{", False)],
    ),
    (
        "qwen3_coder",
        "<tool_call>\n<function=f>\n<parameter=s>\nx\n</parameter>\noh\n</function>\n</tool_call>",
        [("f", '{"s": "x"', False)],
    ),
    (
        "lfm2",
        "<|tool_call_start|>[f(a=1, b=Foo, c=2), g()]<|tool_call_end|>",
        [("f", '{"a": 1, "b": ', False)],
    ),
    (
        "harmony",
        "<|channel|>commentary to=functions.f<|message|>{a}<|call|>"
        "<|start|>assistant<|channel|>final<|message|>",
        [("f", "{a}", False)],
    ),
]


@pytest.mark.parametrize(("dialect", "text", "calls"), BROKEN)
def test_a_call_that_goes_wrong_is_never_content(
    dialect: str, text: str, calls: list[tuple[str, str, bool]]
) -> None:
    text = f"Before.\n{text}\nBehind."
    reply = parse([text], dialect)
    assert reply.calls == calls
    assert reply.content.split() == ["Before.", "Behind."]
    assert parse(text, dialect) == reply


def test_pieces_are_the_text_and_say_what_of_it_is_content() -> None:
    call = WRITERS["hermes"]([("search", {"s": "x"})])
    text = f"<think>\nWell.\n</think>\n\nOne\n<two\n{call}\n\nThree.<tool_call>oh</tool_call>\n"
    content = ["One\n<two", "Three.", "<tool_call>oh", "</tool_call>", "\n"]
    for fed in ([text], list(text)):
        parser = make_parser("hermes", "think", TOOLS)
        assert isinstance(parser, ReplyParser)
        pieces: list[Piece] = []
        for each in fed:
            parser.feed(each)
            pieces += parser.pieces
        parser.close()
        pieces += parser.pieces
        assert "".join(it.text for it in pieces) == text
        assert "".join(it.text for it in pieces if it.is_content) == "".join(content)
        assert "".join(it.text for it in pieces if it.is_reasoning) == "\nWell.\n</think>"


def test_the_text_of_a_call_that_has_started_is_decided_on_at_once() -> None:
    parser = make_parser("hermes", None)
    assert isinstance(parser, ReplyParser)
    parser.feed('<tool_call>{"name": "f", ')
    assert parser.pieces == [Piece('<tool_call>{"name": "f", ', is_content=False)]
    parser.feed("")
    assert parser.pieces == []


def test_content_goes_on_in_a_new_line_behind_a_call() -> None:
    text = f"One.\n{WRITERS['hermes']([('search', {})])}\n\nTwo."
    assert parse([text], "hermes").content == "One.\nTwo."


def test_ids_are_the_models_own_where_it_writes_them() -> None:
    call: Call = ("search", {})
    assert parse([WRITERS["kimi_k2"]([call, call])], "kimi_k2").ids == [
        "functions.search:0",
        "functions.search:1",
    ]
    twice = WRITERS["kimi_k2"]([call]) * 2
    assert len(set(parse([twice], "kimi_k2").ids)) == 2
    text = "[TOOL_CALLS]search[CALL_ID]abcDEF123[ARGS]{}"
    assert parse([text], "mistral").ids == ["abcDEF123"]
    assert [len(each) for each in parse([WRITERS["mistral"]([call])], "mistral").ids] == [9]
    made = parse([WRITERS["hermes"]([call, call])], "hermes").ids
    assert len(set(made)) == 2
    assert all(each.startswith("call_") and len(each) == 29 for each in made)


def test_deep_nesting_is_no_danger() -> None:
    deep = "[" * 50_000
    cut_short = '<tool_call>{"name": "f", "arguments": {"a": ' + deep
    assert parse([cut_short], "hermes").calls == [("f", '{"a": ' + deep, False)]
    text = f"<function=f>\n<parameter=a>\n{deep}\n</parameter>\n</function>"
    assert parse([text], "qwen3_coder").whole_calls == [("f", {"a": deep})]


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "12", "12"),
        ({"type": "integer"}, "12", 12),
        ({"type": "integer"}, "twelve", "twelve"),
        ({"type": "boolean"}, "True", True),
        ({"type": "boolean"}, "FALSE", False),
        ({"type": "array"}, "['a', None]", ["a", None]),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": ["string", "null"]}, "12", "12"),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "12", 12),
        ({"enum": ["1", "2"]}, "1", "1"),
        ({}, '{"a": 1}', {"a": 1}),
        ({}, "text", "text"),
        ({}, "NaN", "NaN"),
    ],
)
def test_tags_hold_what_the_schema_says(schema: dict[str, Any], text: str, value: Any) -> None:
    assert json.loads(to_json(text, schema)) == value
