"""Rules become grammars that let through what they mean, token by token, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import byte_tokenizer
import numpy as np
import pytest
from llguidance import LLParserLimits

import pippin.core.constraints.compiler as compiler_module
from pippin.core.constraints.compiler import ConstraintCompiler
from pippin.core.constraints.constraint import Constraint, ConstraintError, ConstraintFactory
from pippin.core.constraints.tool_grammar import Json, Maybe, Pattern, TextUntil, ToolGrammar
from pippin.core.errors import InvalidRequestError, UnsupportedFeatureError
from pippin.core.messages import ToolSpec
from pippin.core.reply_rules import FormatKind, ReplyRules, ResponseFormat, ToolChoice
from pippin.core.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer(byte_tokenizer.make_byte_tokenizer())
(EOS_ID,) = TOKENIZER.eos_token_ids
ADD = ToolSpec(
    name="add",
    parameters={
        "type": "object",
        "properties": {"x": {"type": "integer"}},
        "required": ["x"],
        "additionalProperties": False,
    },
    strict=True,
)
# Not strict, with a keyword that llguidance does not know.
SAY = ToolSpec(name="say", parameters={"properties": {"t": {"type": "string"}}, "not": {}})
# Markers of text, as they are where a tokenizer has no token for them.
TAGGED = ToolGrammar(
    call=lambda tool: [
        f'<call>{{"name": "{tool.name}", "args": ',
        Json(tool.parameters),
        "}</call>",
    ],
    trigger="<call>",
    between="\n",
)
ADD_CALL = '<call>{"name": "add", "args": {"x": 1}}</call>'
SAY_CALL = '<call>{"name": "say", "args": {"t": "é"}}</call>'
# Markers that are tokens; the last one ends the answer.
MARKED = ToolGrammar(
    call=lambda tool: ["<|im_start|>", tool.name, "|", Json(tool.parameters), "<|im_end|>"],
    trigger="<|bos|>",
    begin="<|bos|>calls:",
    end=".",
)
BARE = ToolGrammar(
    call=lambda tool: [f'{{"name": "{tool.name}", "args": ', Json(tool.parameters), "}"],
    trigger="",
    between="; ",
)
FIELDS = ToolGrammar(
    call=lambda tool: [
        f"<f={tool.name}>",
        Maybe(["<t>", TextUntil("</t>")]),
        Maybe(["<b>", TextUntil("<|bos|>")]),
        Maybe(["<p>", TextUntil("\n</p>", ("(?s:.{1,3})", "a.*|\n"))]),
        Maybe(["<q>", TextUntil("<|bos|>", ("a.?",))]),
        Pattern("#[0-9]{2}"),
    ],
    trigger="<f=",
)


def compile_rules(
    rules: ReplyRules, tools: Sequence[ToolSpec] = (), calls: ToolGrammar | None = None
) -> ConstraintFactory | None:
    return ConstraintCompiler(TOKENIZER, 269, calls=calls).compile(rules, tools)


def verdict(factory: ConstraintFactory | None, text: str) -> str:
    """Whether an answer may be ``whole``, only the ``part`` of one, or is ``no`` answer."""
    assert factory is not None
    constraint = factory()
    row = np.zeros(9, dtype=np.uint32)

    def allows(token_id: int) -> bool:
        row[:] = 0xFFFFFFFF
        constraint.fill(row)
        return bool(row[token_id // 32] >> np.uint32(token_id % 32) & 1)

    for token_id in TOKENIZER.encode(text, add_special_tokens=False):
        if not allows(token_id):
            with pytest.raises(ConstraintError):
                constraint.accept(token_id)
            return "no"
        constraint.accept(token_id)
    return "whole" if allows(EOS_ID) else "part"


def form(kind: FormatKind, value: Any = None) -> ReplyRules:
    return ReplyRules(response_format=ResponseFormat(kind, value))


SCHEMA = {
    "type": "object",
    "properties": {"a": {"$ref": "#/$defs/small"}, "b": {"enum": ["x", None]}},
    "required": ["a"],
    "additionalProperties": False,
    "$defs": {"small": {"type": "integer", "minimum": 1, "maximum": 12}},
}
TREE = {
    "type": "object",
    "properties": {"kids": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["kids"],
    "additionalProperties": False,
}
TAGS = {
    "structures": [
        {"begin": "<fn=a>", "schema": {"type": "integer"}, "end": "</fn>"},
        {"begin": "<fn=b>", "schema": {"type": "boolean"}},
    ],
    "triggers": ["<fn="],
}


@pytest.mark.parametrize(
    ("rules", "whole", "part", "no"),
    [
        pytest.param(
            form("json_object"),
            ["{}", '{"a":1}', '{"a": [1, {"é": null}]}', '{\n    "a": 1\n}'],
            ["{", '{"a'],
            ["[]", "1", " {}", "{}x", "{} ", '{"a":  1}', '{"a":\n\n1}', "{'a': 1}"],
            id="json_object",
        ),
        pytest.param(
            form("json_schema", {**SCHEMA, "x-guidance": {"lenient": True}}),
            ['{"a": 12}', '{"a":1,"b":"x"}', '{"a":1, "b":null}'],
            ['{"a": '],
            ['{"a": 13}', '{"b":"x"}', '{"a":1,"c":2}', '{"a":1,"b":"y"}'],
            id="json_schema",
        ),
        pytest.param(
            form("json_schema", TREE),
            ['{"kids": []}', '{"kids":[{"kids":[{"kids":[]}]}, {"kids":[]}]}'],
            ['{"kids":[{"kids":[]}'],
            ["{}", '{"kids":[{}]}', '{"kids":[1]}'],
            id="recursion",
        ),
        pytest.param(
            form("regex", "/[a-c]+\\/|é\n|\\\n\\\\n"),
            ["/ab/", "é\n", "\n\\n"],
            ["/ab", "é"],
            ["ab/", "/d", "/a/x"],
            id="regex",
        ),
        pytest.param(
            form("choice", ['say "é"\n', "say", "<|bos|>x"]),
            ['say "é"\n', "say"],
            ['say "'],
            ["sing", "says"],
            id="choice",
        ),
        pytest.param(
            form("grammar", 'start: "a" b*\nb: "(" b ")" | /[0-9]/'),
            ["a", "a((1))2"],
            ["a((1)"],
            ["b", "a)"],
            id="lark",
        ),
        pytest.param(
            form("grammar", 'root ::= "a" item{2}\nitem ::= [0-9] | "x"\n'),
            ["a1x"],
            ["a1"],
            ["a12x", "ab"],
            id="gbnf",
        ),
        pytest.param(
            form("structural_tag", json.dumps(TAGS)),
            ["<fn=a>1</fn>"],
            ["<fn="],
            ["<fn=c"],
            id="structural_tag of JSON",
        ),
        pytest.param(
            form("structural_tag", TAGS),
            ["", "any <text", "x <fn=a>12</fn> y <fn=b>true z"],
            ["x <fn=", "<fn=a>1</f"],
            ["<fn=c", "<fn=a>x", "<|im_start|>"],
            id="structural_tag",
        ),
    ],
)
def test_a_format_lets_through_what_it_means(
    rules: ReplyRules, whole: list[str], part: list[str], no: list[str]
) -> None:
    factory = compile_rules(rules)
    wanted = {
        text: kind
        for kind, texts in zip(("whole", "part", "no"), (whole, part, no), strict=True)
        for text in texts
    }
    assert {text: verdict(factory, text) for text in wanted} == wanted


def nested_rules(count: int) -> str:
    """A grammar that takes deep recursion to follow."""
    rules = [f"a{i}: a{i + 1}" for i in range(count)]
    return "\n".join(["start: a0", *rules, f'a{count}: "x"'])


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        (form("json_schema", {"type": "foo"}), "Invalid type"),
        (form("json_schema", {"type": "object", "not": {}}), '"not"'),
        (form("json_schema", {"enum": []}), "Unsatisfiable"),
        (form("json_schema", {"enum": [float("nan")]}), "JSON compliant"),
        (form("json_schema", {"enum": ["\ud800"]}), "hex escape"),
        (form("json_schema", {"enum": ["a" * 150_000]}), "is the most"),
        (form("json_schema", "{}"), "wrong type"),
        (form("regex", "a("), "unclosed group"),
        (form("regex", "(?=a)b"), "look-around"),
        (form("regex", "(?s:.{0,20000})"), "#/pattern asks for texts of 20000 characters"),
        (form("regex", 3), "wrong type"),
        (form("choice", []), "wrong type"),
        (form("choice", [1]), "not a text"),
        (form("grammar", "start: foo"), "unknown name"),
        (form("grammar", "start: a\na: a"), "leads back to itself"),
        (form("json_schema", {"$ref": "#"}), "leads back to itself"),
        (form("grammar", "root ::= ("), "GBNF"),
        (form("grammar", "root ::= " + "(" * 5000), "GBNF"),
        (form("grammar", "start: " + "(" * 60_000), "nested"),
        (form("structural_tag", {"triggers": []}), "'structures' is missing"),
        (form("structural_tag", {"triggers": [], "structures": []}), "no structures"),
        (form("structural_tag", {**TAGS, "triggers": ["<x"]}), "no trigger"),
        (form("structural_tag", "{"), "Expecting"),
        (form("structural_tag", "[]"), "wrong type"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_its_field_and_a_reason(
    rules: ReplyRules, reason: str
) -> None:
    with pytest.raises(InvalidRequestError, match=reason) as caught:
        compile_rules(rules)
    assert rules.response_format is not None
    kind = rules.response_format.kind
    assert caught.value.param in ("response_format", f"structured_outputs.{kind}")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_deep_recursion_does_not_end_the_process() -> None:
    """Of a few thousand nested rules a usual thread's stack is too small, and that is no error."""
    deep = {f"a{i}": {"items": {"$ref": f"#/$defs/a{i + 1}"}, "type": "array"} for i in range(1500)}
    schema = {"$ref": "#/$defs/a0", "$defs": {**deep, "a1500": {"type": "integer"}}}
    assert verdict(compile_rules(form("grammar", nested_rules(8000))), "x") == "whole"
    assert verdict(compile_rules(form("json_schema", schema)), "[[[1") == "no"


def choose(mode: Any, *, parallel: bool = True, only: Sequence[str] | None = None) -> ReplyRules:
    return ReplyRules(
        tool_choice=ToolChoice(mode, "add" if mode == "named" else None),
        parallel_tool_calls=parallel,
        response_format=None if only is None else ResponseFormat("choice", only),
    )


BOTH = f"{ADD_CALL}\n{SAY_CALL}"
WRONG = ADD_CALL.replace("1", '"a"')


@pytest.mark.parametrize(
    ("rules", "whole", "no"),
    [
        (choose("auto"), ["hi", ADD_CALL, f"a {BOTH} b", f"{SAY_CALL} {ADD_CALL}"], [WRONG]),
        (choose("auto", parallel=False), ["hi", f"a {SAY_CALL}"], [WRONG, BOTH, f"{SAY_CALL} b"]),
        (choose("auto", only=["yes"]), ["yes", BOTH], ["hi", f"a {ADD_CALL}", WRONG]),
        (choose("required"), [ADD_CALL, SAY_CALL, BOTH], ["hi", f"a {ADD_CALL}", WRONG]),
        (choose("required", parallel=False), [ADD_CALL, SAY_CALL], [BOTH]),
        (choose("required", only=["yes"]), [ADD_CALL], ["yes"]),
        (choose("named"), [ADD_CALL], [SAY_CALL, BOTH, "hi", f"{ADD_CALL}\n{ADD_CALL}"]),
        (choose("none", only=["yes"]), ["yes"], [ADD_CALL]),
    ],
)
def test_tool_choice_and_strict_are_enforced(
    rules: ReplyRules, whole: list[str], no: list[str]
) -> None:
    factory = compile_rules(rules, [ADD, SAY], TAGGED)
    wanted = dict.fromkeys(whole, "whole") | dict.fromkeys(no, "no")
    assert {text: verdict(factory, text) for text in wanted} == wanted


@pytest.mark.parametrize(
    ("calls", "whole", "no"),
    [
        (
            MARKED,
            ["hi", 'a<|bos|>calls:<|im_start|>add|{"x":1}<|im_start|>say|{}.'],
            ["<|im_start|>", '<|bos|>calls:<|im_start|>add|{"x":true}', "<|bos|>hi"],
        ),
        (
            BARE,
            ["", "hello {", '{"name": "add", "args": {"x":1}}; {"name": "say", "args": {}}'],
            ['{"a', '{"name": "add", "args": {}}'],
        ),
        (
            FIELDS,
            [
                *("a <f=add>#12 b", "<f=say><t>x<y</t>#34", "<f=say><t></t><b>x\n<|bos|>#34"),
                *("<f=say><p>a<\n</p>#34", "<f=say><p>\n\n</p>#34", "<f=say><q>a/<|bos|>#34"),
            ],
            [
                *("<f=foo>", "<f=add>#x", "<f=add><c>", "<f=say><p>\n</p>", "<f=say><p>b"),
                *("<f=say><p>abcd", "<f=say><q>b", "<f=say><q>abc", "<f=say><q><|bos|>"),
            ],
        ),
    ],
    ids=["marked", "bare", "fields"],
)
def test_calls_of_every_build_are_enforced(
    calls: ToolGrammar, whole: list[str], no: list[str]
) -> None:
    factory = compile_rules(choose("auto"), [ADD, SAY], calls)
    wanted = dict.fromkeys(whole, "whole") | dict.fromkeys(no, "no")
    assert {text: verdict(factory, text) for text in wanted} == wanted


def test_only_what_must_be_enforced_is() -> None:
    assert compile_rules(ReplyRules()) is None
    assert compile_rules(choose("auto"), [SAY], TAGGED) is None
    assert compile_rules(choose("none", parallel=False), [ADD], TAGGED) is None
    assert compile_rules(choose("auto"), [SAY]) is None
    with pytest.raises(InvalidRequestError, match="no such tool"):
        compile_rules(choose("named"), [SAY], TAGGED)


@pytest.mark.parametrize(
    ("rules", "tool", "param"),
    [
        (choose("required"), SAY, "tool_choice"),
        (choose("auto"), ADD, "tools"),
        (choose("auto", only=["yes"]), ADD, "tools"),
        (choose("auto", parallel=False), SAY, "parallel_tool_calls"),
    ],
)
def test_what_a_dialect_without_a_grammar_cannot_enforce_is_refused(
    rules: ReplyRules, tool: ToolSpec, param: str
) -> None:
    with pytest.raises(UnsupportedFeatureError) as caught:
        compile_rules(rules, [tool])
    assert caught.value.param == param


def test_a_strict_tool_that_cannot_be_followed_is_refused_and_another_kept_loosely() -> None:
    odd = ToolSpec(name="odd", parameters={"type": "foo"})
    for rules in (choose("required"), choose("auto", only=["yes"]), choose("named", only=["yes"])):
        tools = [ToolSpec(name="add", parameters=SAY.parameters, strict=True)]
        with pytest.raises(InvalidRequestError) as caught:
            compile_rules(rules, tools, TAGGED)
        assert caught.value.param == "tools"
    bad = ReplyRules(response_format=ResponseFormat("json_schema", {"type": "foo"}))
    with pytest.raises(InvalidRequestError) as caught:
        compile_rules(bad, [ADD], TAGGED)
    assert caught.value.param == "response_format"
    factory = compile_rules(choose("required"), [odd], TAGGED)
    assert verdict(factory, '<call>{"name": "odd", "args": {"a": [1]}}</call>') == "whole"


def test_what_was_compiled_is_kept_and_answers_go_their_own_ways() -> None:
    compiler = ConstraintCompiler(TOKENIZER, 269)
    compiler.compile(form("choice", ["ab", "ac"]))
    compiled = list(compiler._compiled.values())
    factory = compiler.compile(form("choice", ["ab", "ac"]))
    assert list(compiler._compiled.values()) == compiled
    assert factory is not None
    one, other = factory(), factory()
    one.accept(ord("a"))
    twin = one.copy()
    twin.accept(ord("b"))
    one.accept(ord("c"))
    other.accept(ord("a"))
    assert (one.num_accepted, twin.num_accepted, other.num_accepted) == (2, 2, 1)
    for number in range(70):
        compiler.compile(form("choice", [str(number)]))
    assert len(compiler._compiled) == 64
    assert json.loads(next(iter(compiler._compiled)))["grammars"]


LONG = {"type": "string", "maxLength": 20_000}


def test_lengths_that_cannot_be_counted_are_refused_by_path() -> None:
    for schema, path in (
        ({"properties": {"maxLength": LONG}}, "#/properties/maxLength/maxLength"),
        ({"items": {"anyOf": [{"pattern": "^a{1,20000}$"}]}}, "#/items/anyOf/0/pattern"),
        ({"properties": {n: {"minLength": int(n)} for n in ("6000", "6001")}}, "#/properties/6001"),
    ):
        with pytest.raises(InvalidRequestError, match=path) as caught:
            compile_rules(form("json_schema", schema))
        assert caught.value.param == "response_format"
    tool = ToolSpec(name="add", parameters={"properties": {"x": LONG}}, strict=True)
    with pytest.raises(InvalidRequestError, match="#/properties/x/maxLength of the tool 'add'"):
        compile_rules(choose("required"), [tool], TAGGED)
    many = {"properties": {n: {"type": "string", "maxLength": 9_000} for n in "abc"}}
    compile_rules(form("json_schema", {**many, "default": {"maxLength": 20_000}}))


def test_lengths_that_cannot_be_counted_do_not_bind_tools_that_are_not_strict() -> None:
    schema = {"properties": {"x": {**LONG, "enum": ["a", "b"]}}, "required": ["x"]}
    factory = compile_rules(choose("required"), [ToolSpec(name="f", parameters=schema)], TAGGED)
    assert verdict(factory, '<call>{"name": "f", "args": {"x": "b"}}</call>') == "whole"
    assert verdict(factory, '<call>{"name": "f", "args": {"x": "c"}}</call>') == "no"


def test_an_answer_that_spends_the_limits_harms_no_later_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiler_module, "_LIMITS", LLParserLimits(max_lexer_states=500))
    compiler = ConstraintCompiler(TOKENIZER, 269)
    rules = form("regex", "(?s:.{0,3000})x{3}")
    assert verdict(compiler.compile(rules), "yxxx") == "whole"
    factory = compiler.compile(rules)
    assert factory is not None
    with pytest.raises(ConstraintError, match="states"):
        write_much(factory())
    assert verdict(compiler.compile(rules), "yxxx") == "whole"


def write_much(constraint: Constraint) -> None:
    row = np.zeros(9, dtype=np.uint32)
    for _ in range(3000):
        constraint.fill(row)
        constraint.accept(ord("x"))
