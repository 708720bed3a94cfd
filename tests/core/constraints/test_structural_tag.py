"""Formats of structural tags let through what they describe; what is not supported is refused."""

from __future__ import annotations

from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from pippin.core.constraints.grammar import GrammarWriter
from pippin.core.reply_rules import ReplyRules, ResponseFormat

BYTES = LLTokenizer("byte")


def verdict(form: Any, text: str) -> str:
    """Whether an answer may be ``whole``, only the ``part`` of one, or is ``no`` answer."""
    value = {"type": "structural_tag", "format": form}
    rules = ReplyRules(response_format=ResponseFormat("structural_tag", value))
    grammar = GrammarWriter({}, frozenset(), lambda _: True).write(rules, (), None)
    matcher = LLMatcher(BYTES, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = list(text.encode())
    if matcher.validate_tokens(tokens) < len(tokens):
        return "no"
    matcher.consume_tokens(tokens)
    return "whole" if matcher.is_accepting() else "part"


def const(value: str) -> dict[str, Any]:
    return {"type": "const_string", "value": value}


def tag(begin: str, content: Any, end: Any) -> dict[str, Any]:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


ANY = {"type": "any_text"}
NUMBER = {"type": "json_schema", "json_schema": {"type": "integer"}}
CALLS = [tag("<f=a>", NUMBER, "</f>"), tag("<f=b>", const("x"), ["</f>", "|"])]
TRIGGERED = {"type": "triggered_tags", "triggers": ["<f="], "tags": CALLS}
LISTED = {"type": "tags_with_separator", "tags": CALLS, "separator": ", "}
A, B = "<f=a>12</f>", "<f=b>x|"


@pytest.mark.parametrize(
    ("form", "whole", "part", "no"),
    [
        (const("ab<"), ["ab<"], ["a"], ["abc"]),
        (NUMBER, ["-1"], ["-"], ["x"]),
        ({"type": "regex", "pattern": "a|bc"}, ["a", "bc"], ["b"], ["c"]),
        ({"type": "grammar", "grammar": 'root ::= "a" | "b"'}, ["a", "b"], [""], ["c"]),
        (ANY, ["", "a <f="], [], []),
        ({**ANY, "excludes": ["<f", "bad"]}, ["a <", "ba"], [], ["a <f", "a bad"]),
        ({**ANY, "max_chars": 3}, ["", "é€x"], [], ["abcd"]),
        (tag("<t>", ANY, "</t>"), ["<t></t>", "<t>a</t </t>"], ["<t>a</t"], ["x", "<t></t>x"]),
        (tag("<t>", ANY, ["</t>", "!"]), ["<t>a</t>", "<t>b!"], ["<t>"], ["<t>a!b"]),
        (tag("<t>", {**ANY, "excludes": ["</t>", "x"]}, "</t>"), ["<t>a</t>"], [], ["<t>x"]),
        (tag("<t>", {**ANY, "max_chars": 2}, "</t>"), ["<t>ab</t>"], [], ["<t>abc"]),
        (tag("<t>", NUMBER, ""), ["<t>1"], ["<t>"], ["<t>x"]),
        (tag("<t>", ANY, ""), ["<t>1", "<t>"], ["<"], ["x"]),
        (
            {"type": "sequence", "elements": [ANY, tag("<n>", NUMBER, "."), const("!"), ANY]},
            ["<n>1.!", "ab <n>1.! and"],
            ["a", "a<n>1."],
            ["<n>x", "a<n>1.?"],
        ),
        ({"type": "or", "elements": [const("a"), NUMBER]}, ["a", "1"], [""], ["b"]),
        ({"type": "optional", "content": const("ab")}, ["", "ab"], ["a"], ["b", "abab"]),
        ({"type": "star", "content": const("ab")}, ["", "abab"], ["aba"], ["b"]),
        ({"type": "plus", "content": const("ab")}, ["ab", "abab"], [""], ["b"]),
        (
            {"type": "repeat", "min": 1, "max": 2, "content": const("a")},
            ["a", "aa"],
            [""],
            ["aaa"],
        ),
        ({"type": "repeat", "min": 1, "max": -1, "content": const("a")}, ["aaa"], [""], ["b"]),
        (TRIGGERED, ["", "hi", f"x {A} y {B}z", A], ["<f=", "a<f=b>"], ["<f=c", "<f=a>x"]),
        ({**TRIGGERED, "excludes": ["no"]}, [f"n{A}o"], [], ["no", f"{A}no"]),
        ({**TRIGGERED, "at_least_one": True}, [A, f"{A} b{B} c"], ["", "<f="], ["hi", f" {A}"]),
        ({**TRIGGERED, "stop_after_first": True}, ["hi", f"a{A}"], ["<f="], [f"{A}b", A + A]),
        (
            {**TRIGGERED, "stop_after_first": True, "at_least_one": True},
            [A, B],
            [""],
            ["hi", f"{A}b"],
        ),
        (
            tag("<t>", TRIGGERED, "</t>"),
            ["<t></t>", f"<t>a{A}b{B}</t>"],
            [f"<t>{A}"],
            [f"<t>{A}</t>x"],
        ),
        (LISTED, ["", A, f"{A}, {B}, {A}"], [f"{A}, "], ["hi", A + B]),
        ({**LISTED, "at_least_one": True}, [A], [""], [f"{A} "]),
        ({**LISTED, "stop_after_first": True}, ["", B], ["<f="], [f"{A}, "]),
    ],
)
def test_a_format_lets_through_what_it_describes(
    form: Any, whole: list[str], part: list[str], no: list[str]
) -> None:
    wanted = dict.fromkeys(whole, "whole") | dict.fromkeys(part, "part") | dict.fromkeys(no, "no")
    assert {text: verdict(form, text) for text in wanted} == wanted


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ([], "format is not an object"),
        ({}, "format.type is None"),
        ({"type": "token", "token": 3}, "format.type is 'token'; supported are"),
        ({"type": "or", "elements": [{"type": "dispatch"}]}, r"format.elements\[0\].type is"),
        ({"type": "or", "elements": []}, "format.elements is not a list"),
        ({"type": "const_string"}, "format.value is missing"),
        ({"type": "const_string", "value": 3}, "format.value is not a text"),
        ({**ANY, "max_tokens": 5}, "format.max_tokens is not supported: 5"),
        ({**ANY, "max_chars": 99_999}, "characters to be counted"),
        ({**ANY, "odd": 1}, "format.odd is not supported"),
        ({**NUMBER, "style": "qwen_xml"}, "format.style is not supported: 'qwen_xml'"),
        (tag("<t>", NUMBER, {"type": "token"}), "format.end is neither"),
        ({"type": "star", "content": ANY}, "format.content is free text"),
        ({"type": "sequence", "elements": [ANY, NUMBER]}, r"format.elements\[0\] is free text"),
        ({**TRIGGERED, "triggers": ["<g"]}, r"no trigger in format.triggers begins format.tags\[0"),
        ({**LISTED, "tags": [NUMBER]}, r"format.tags\[0\].type is not 'tag'"),
        ({"type": "repeat", "min": 3, "max": 2, "content": NUMBER}, "format.max is less"),
    ],
)
def test_what_is_not_supported_is_refused_by_its_path(form: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        verdict(form, "")
