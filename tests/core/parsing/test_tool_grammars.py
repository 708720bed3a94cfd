"""Grammars let through what the parsers read, and only calls of the tools that there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from dialect_samples import PAYLOADS, from_grammar, parse, tool
from llguidance import LLMatcher, LLTokenizer

from pippin.core.constraints.grammar import GrammarWriter
from pippin.core.messages import ToolSpec
from pippin.core.parsing.detect import TOOL_PARSER_NAMES
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
        ({"$ref": "#/$defs/s"}, ['"7"'], ["7", "Rome"]),
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
        if TOOL_GRAMMARS[dialect].call is TOOL_GRAMMARS["pythonic"].call:
            text = text.replace(")", ", )")
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
