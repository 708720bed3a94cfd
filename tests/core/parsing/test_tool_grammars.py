"""Grammars let through what the parsers read, and only calls of the tools that there are."""

from __future__ import annotations

from collections.abc import Sequence

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

    def test_calls_begin_with_what_is_looked_for_in_free_text(self, dialect: str) -> None:
        grammar = TOOL_GRAMMARS[dialect]
        head = grammar.call(tool("search"))[0]
        assert isinstance(head, str)
        assert (grammar.begin + head).startswith(grammar.trigger)
