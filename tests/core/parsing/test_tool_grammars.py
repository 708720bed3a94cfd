"""Grammars let through what the parsers read, and only calls of the tools that there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from dialect_samples import PAYLOADS, from_grammar, parse, summarize, tool
from llguidance import LLMatcher, LLTokenizer

from pippin.core.constraints.grammar import GrammarWriter
from pippin.core.engine.reply_dialect import ReplyDialect
from pippin.core.messages import ToolSpec
from pippin.core.parsing.detect import TOOL_PARSER_NAMES, make_parser
from pippin.core.parsing.tool_grammars import TOOL_GRAMMARS
from pippin.core.reply_rules import ReplyRules, ToolChoice

BYTES = LLTokenizer("byte")
REQUIRED = ReplyRules(tool_choice=ToolChoice("required"))


def lets_through(dialect: str, tools: Sequence[ToolSpec], text: str) -> bool:
    writer = GrammarWriter({}, frozenset(), lambda _: True)
    matcher = LLMatcher(BYTES, writer.write(REQUIRED, tools, TOOL_GRAMMARS[dialect]))
    assert not matcher.is_error(), matcher.get_error()
    taken = matcher.consume_tokens(list(text.encode()))
    return bool(taken and matcher.is_accepting())


def test_grammars_belong_to_dialects() -> None:
    assert set(TOOL_GRAMMARS) <= set(TOOL_PARSER_NAMES)


def test_names_are_quoted_in_json() -> None:
    assert lets_through("mistral_v3", [tool('a"b', [])], from_grammar("mistral_v3")([('a"b', {})]))
    pieces = TOOL_GRAMMARS["hermes"].call(tool('a"b', []))
    assert '"a\\"b"' in pieces


STRING = {"type": "string"}


@pytest.mark.parametrize("dialect", ["qwen3_coder", "kimi_k3", "pythonic"])
@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"anyOf": [{"properties": {"s": STRING}}]}, "anyOf"),
        ({"properties": {"s": STRING}, "minProperties": 1}, "minProperties"),
        ({"properties": {"s": STRING}, "patternProperties": {"x": STRING}}, "patternProperties"),
        ({"properties": {"s": STRING}, "dependentRequired": {"s": ["t"]}}, "dependentRequired"),
        ({"properties": {"s": STRING}, "not": {}}, "not"),
        ({"properties": {"s": STRING}, "additionalProperties": STRING}, "additionalProperties"),
        ({"properties": {"s": STRING}, "required": ["s", "t"]}, "'t'"),
        ({"required": ["s"]}, "required"),
        ({"$ref": "#/$defs/a"}, r"\$ref"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, r"\$ref"),
        ({"properties": {"s": {"items": {"$ref": "#"}}}}, r"\$ref"),
    ],
)
def test_what_strict_arguments_cannot_be_held_to_one_by_one_is_refused(
    dialect: str, schema: dict[str, Any], named: str
) -> None:
    call = TOOL_GRAMMARS[dialect].call
    with pytest.raises(ValueError, match=named):
        call(ToolSpec(name="f", parameters=schema, strict=True))
    assert call(ToolSpec(name="f", parameters=schema))


def test_strings_without_quotes_that_cannot_be_held_to_their_schema_are_refused() -> None:
    schema = {"properties": {"s": {**STRING, "not": {"const": "a"}}}}
    with pytest.raises(ValueError, match="not"):
        TOOL_GRAMMARS["glm"].call(ToolSpec(name="f", parameters=schema, strict=True))


@pytest.mark.parametrize(
    ("schema", "yes", "no"),
    [
        ({"anyOf": [STRING, {"type": "null"}]}, ["null", "Rome", "7", "{"], []),
        ({"anyOf": [{**STRING, "maxLength": 2}, {"type": "null"}]}, ["null", '"ab"'], ["ab"]),
        ({"$ref": "#/$defs/s"}, ["7", "Rome"], []),
        ({"$ref": "#/$defs/e"}, ["Rome"], ["Bath"]),
        ({**STRING, "pattern": "a.c"}, ["xa.cx"], ["ac", "\na.c"]),
        ({**STRING, "pattern": "^a$"}, ["a"], ["aa", "ba"]),
        ({**STRING, "maxLength": 40}, ["</par"], ["</parameter>"]),
        ({"enum": ["a\nb", 1]}, ["a\nb", "1"], ["2"]),
    ],
)
def test_strict_strings_without_quotes(
    schema: dict[str, Any], yes: list[str], no: list[str]
) -> None:
    parameters = {"properties": {"s": schema}, "required": ["s"]} | {
        "$defs": {"s": STRING, "e": {**STRING, "const": "Rome"}}
    }
    look = ToolSpec(name="look", parameters=parameters, strict=True)
    verdicts = {
        value: lets_through(
            "qwen3_coder",
            [look],
            "<tool_call>\n<function=look>\n<parameter=s>\n"
            f"{value}\n</parameter>\n</function>\n</tool_call>",
        )
        for value in (*yes, *no)
    }
    assert verdicts == dict.fromkeys(yes, True) | dict.fromkeys(no, False)


NESTED = {
    "properties": {
        "o": {
            "type": "object",
            "properties": {"item": STRING, "a b": STRING, "m": {"type": ["integer", "null"]}},
            "required": ["item"],
        },
        "l": {"type": "array", "items": {"enum": ["x", 1]}, "minItems": 1, "maxItems": 2},
        "any": {},
    },
    "required": ["o"],
}
M3 = "]<]minimax[>["


@pytest.mark.parametrize(
    ("dialect", "body", "arguments"),
    [
        ("gemma4", '{o:{item:<|"|>7<|"|>}}', {"o": {"item": "7"}}),
        (
            "gemma4",
            '{o:{item:<|"|>"}<|"|>,<|"|>a b<|"|>:<|"|><|"|>,m:null},l:[<|"|>x<|"|>,1]}',
            {"o": {"item": '"}', "a b": "", "m": None}, "l": ["x", 1]},
        ),
        (
            "gemma4",
            '{o:{item:<|"|>a<|"|>,m:-3},any:{"k,": ["\\n", 1]}}',
            {"o": {"item": "a", "m": -3}, "any": {"k,": ["\n", 1]}},
        ),
        ("gemma4", "{o:{m:1}}", None),
        ("gemma4", '{o:{item:<|"|>a<|"|>},l:[]}', None),
        ("gemma4", '{o:{item:<|"|>a<|"|>},l:[1,1,1]}', None),
        ("gemma4", '{o:{item:<|"|>a<|"|>},}', None),
        ("gemma4", "{}", None),
        (
            "minimax_m3",
            f'{M3}<o>{{"item": "7", "a b": "x"}}{M3}</o>',
            {"o": {"item": "7", "a b": "x"}},
        ),
        (
            "minimax_m3",
            f'{M3}<o>{{"item": "7"}}{M3}</o>{M3}<any>[1]{M3}</any>'.replace(
                f"{M3}<any>",
                f"{M3}<l>{M3}<item>x{M3}</item>{M3}<item>1{M3}</item>{M3}</l>{M3}<any>",
            ),
            {"o": {"item": "7"}, "l": ["x", 1], "any": [1]},
        ),
        ("minimax_m3", f"{M3}<l>{M3}<item>x{M3}</item>{M3}</l>", None),
        ("minimax_m3", f'{M3}<o>{{"item": "7"}}{M3}</o>{M3}<l>{M3}</l>', None),
    ],
)
def test_values_inside_of_values(dialect: str, body: str, arguments: dict[str, Any] | None) -> None:
    look = ToolSpec(name="look", parameters=NESTED)
    texts = {
        "gemma4": f"<|tool_call>call:look{body}<tool_call|>",
        "minimax_m3": f'{M3}<tool_call>\n{M3}<invoke name="look">{body}{M3}</invoke>\n'
        f"{M3}</tool_call>",
    }
    assert lets_through(dialect, [look], texts[dialect]) == (arguments is not None)
    if arguments is not None:
        parser = make_parser(dialect, None, [look])
        reply = summarize([*parser.feed(texts[dialect]), *parser.close()])
        assert reply.whole_calls == [("look", arguments)]


def test_an_element_cannot_have_every_name() -> None:
    parameters = {"properties": {"a b": STRING, "c": STRING}}
    with pytest.raises(ValueError, match="'a b'"):
        TOOL_GRAMMARS["minimax_m3"].call(ToolSpec(name="f", parameters=parameters, strict=True))
    assert TOOL_GRAMMARS["minimax_m3"].call(ToolSpec(name="f", parameters=parameters))


@pytest.mark.parametrize(
    ("value", "is_let_through"),
    [("abc", True), ("abcd", False), ("<![CDATA[<&]]>", True), ("<![CDATA[abcd]]>", False)],
)
def test_sections_of_text_are_counted_by_what_is_in_them(value: str, is_let_through: bool) -> None:
    parameters = {"properties": {"s": {**STRING, "maxLength": 3}}, "required": ["s"]}
    look = ToolSpec(name="look", parameters=parameters, strict=True)
    text = f'<function name="look"><param name="s">{value}</param></function>'
    assert lets_through("minicpm5", [look], text) == is_let_through


@pytest.mark.parametrize(
    ("rules", "text", "is_let_through"),
    [
        (ReplyRules(), "all\nHello >> there", True),
        (ReplyRules(), 'all\nWait.>>>look\n{"s": "x"}>>>look\n{"s": "y"}', True),
        (ReplyRules(), 'look\n{"s": "x"}>>>look\n{"s": "y"}', True),
        (ReplyRules(), 'all\nWait.>>>look\n{"s": 1}', False),
        (ReplyRules(), "all\nWait.>>>other\n{}", False),
        (ReplyRules(), "Hello", False),
        (ReplyRules(parallel_tool_calls=False), 'all\nWait.>>>look\n{"s": "x"}', True),
        (ReplyRules(parallel_tool_calls=False), 'look\n{"s": "x"}>>>look\n{"s": "y"}', False),
    ],
)
def test_recipients_stand_before_calls_and_before_text(
    rules: ReplyRules, text: str, is_let_through: bool
) -> None:
    dialect = ReplyDialect("functionary_v3")
    parameters = {"properties": {"s": STRING}, "required": ["s"], "additionalProperties": False}
    look = ToolSpec(name="look", parameters=parameters, strict=True)
    writer = GrammarWriter({}, frozenset(), lambda _: True, dialect.content_begin)
    matcher = LLMatcher(BYTES, writer.write(rules, [look], dialect.calls), log_level=0)
    taken = matcher.validate_tokens(list(text.encode()))
    assert (taken == len(text)) == is_let_through
    if is_let_through:
        matcher.consume_tokens(list(text.encode()))
        assert matcher.is_accepting()
        assert not parse([text], "functionary_v3").content.startswith("all")


@pytest.mark.parametrize("dialect", TOOL_GRAMMARS)
class TestEveryGrammar:
    def test_it_lets_calls_through(self, dialect: str) -> None:
        for payload in (PAYLOADS[0], PAYLOADS[3], PAYLOADS[5]):
            tools = (tool("get_weather", payload), tool("search", payload))
            text = from_grammar(dialect)([("search", payload), ("get_weather", payload)])
            assert lets_through(dialect, tools, text)
            assert not lets_through(dialect, tools[:1], text)
            assert not lets_through(dialect, tools, "x" + text)

    def test_arguments_are_held_to_their_types(self, dialect: str) -> None:
        text = from_grammar(dialect)([("search", {"n": 7})])
        assert lets_through(dialect, [tool("search", ["n"])], text)
        assert not lets_through(dialect, [tool("search", ["n"])], text.replace("7", '"7"'))

    def test_what_is_optional_may_be_left_out(self, dialect: str) -> None:
        parameters = {"properties": {"n": {"$ref": "#/$defs/n"}, "s": {"enum": ["a+", "b"]}}} | {
            "$defs": {"n": {"type": "integer"}}
        }
        search = ToolSpec(name="search", parameters=parameters, strict=True)
        written = from_grammar(dialect)
        assert lets_through(dialect, [search], written([("search", {})]))
        text = written([("search", {"s": "a+"})])
        assert lets_through(dialect, [search], text)
        assert not lets_through(dialect, [search], text.replace("a+", "aa"))
        assert parse([text], dialect).whole_calls == [("search", {"s": "a+"})]

    @pytest.mark.parametrize("name", ["x%ay", "%i%n", "%k-%t"])
    def test_names_are_no_places(self, dialect: str, name: str) -> None:
        text = from_grammar(dialect)([(name, {"n": 7})])
        assert name in text
        assert lets_through(dialect, [tool(name, ["n"])], text)

    def test_calls_begin_with_what_is_looked_for_in_free_text(self, dialect: str) -> None:
        grammar = TOOL_GRAMMARS[dialect]
        head = grammar.call(tool("search"))[0]
        assert isinstance(head, str)
        assert (grammar.begin + head).startswith(grammar.trigger)
