"""Reasoning comes first, ends when its budget is spent, and the grammar begins behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import byte_tokenizer
import numpy as np
import pytest

from pippin.core.constraints.compiler import ConstraintCompiler
from pippin.core.constraints.constraint import Constraint, ConstraintError
from pippin.core.constraints.thinking import Thinking, ThinkingMarkers
from pippin.core.engine.reply_dialect import ReplyDialect
from pippin.core.messages import ToolSpec
from pippin.core.reply_rules import ReplyRules, ResponseFormat, ToolChoice
from pippin.core.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer(byte_tokenizer.make_byte_tokenizer())
(EOS_ID,) = TOKENIZER.eos_token_ids
VOCAB_SIZE = 269


# To the test's tokenizer ``<think>`` is one token; the others are several.
def read_by(dialect: str) -> ThinkingMarkers:
    markers = ReplyDialect("hermes", dialect).thinking
    assert markers is not None
    return markers


MARKERS, BRACKETS = read_by("think"), read_by("mistral")
FORMAT = ResponseFormat("choice", ["yes", "no"])


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def make(
    markers: ThinkingMarkers,
    *,
    prompt: str = "",
    budget: int | None = None,
    response_format: ResponseFormat | None = FORMAT,
    content_begin: str = "",
    tools: Sequence[ToolSpec] = (),
    choice: Literal["auto", "none"] = "auto",
) -> Constraint:
    compiler = ConstraintCompiler(
        TOKENIZER, VOCAB_SIZE, thinking=markers, content_begin=content_begin
    )
    rules = ReplyRules(
        response_format=response_format,
        thinking_budget=budget,
        tool_choice=ToolChoice(choice),
    )
    factory = compiler.compile(rules, tools, prompt=prompt)
    assert factory is not None
    return factory()


def allowed(constraint: Constraint) -> set[int]:
    # One word more than there are tokens: logits may be wider than the vocabulary.
    row = np.full(10, 0xFFFFFFFF, dtype=np.uint32)
    constraint.fill(row)
    bits = np.unpackbits(row.view(np.uint8), bitorder="little")
    return {int(i) for i in np.flatnonzero(bits) if i < VOCAB_SIZE}


def tell(constraint: Constraint, text: str) -> None:
    for token_id in encode(text):
        assert token_id in allowed(constraint)
        constraint.accept(token_id)


def forced_text(constraint: Constraint) -> str:
    """What must come, as long as it is one token each time."""
    token_ids = list[int]()
    while len(options := allowed(constraint)) == 1 and EOS_ID not in options:
        token_ids += options
        constraint.accept(token_ids[-1])
    return TOKENIZER.decode(token_ids, skip_special_tokens=False)


@pytest.mark.parametrize("markers", [MARKERS, BRACKETS])
@pytest.mark.parametrize("thoughts", ["", "hm", "<|bos|> [/THIN </thin yes"])
def test_the_grammar_begins_behind_the_reasoning(markers: ThinkingMarkers, thoughts: str) -> None:
    opened = make(markers, prompt=f"hi{markers.begin}\n")
    unopened = make(markers)
    tell(unopened, markers.begin)
    for constraint in (opened, unopened):
        tell(constraint, thoughts)
        assert allowed(constraint) == {*range(VOCAB_SIZE)} - {EOS_ID}
        tell(constraint, markers.end)
        assert allowed(constraint) == {ord("y"), ord("n")}
        tell(constraint, "yes")
        assert allowed(constraint) == {EOS_ID}


def test_the_model_need_not_think() -> None:
    constraint = make(MARKERS)
    assert allowed(constraint) == {ord("y"), ord("n"), *encode("<think>")}
    tell(constraint, "yes")
    assert allowed(constraint) == {EOS_ID}


def test_a_grammar_that_begins_like_the_marker_leaves_both_ways_open() -> None:
    answers = ["[no]", "[THIS]", "[THINK"]
    for answer in answers:
        constraint = make(BRACKETS, response_format=ResponseFormat("choice", answers))
        twin = constraint.copy()
        tell(constraint, answer)
        assert EOS_ID in allowed(constraint)
        for written, character in enumerate(BRACKETS.begin):
            # As drafts are tried: they must leave no trace.
            tell(twin.copy(), f"{BRACKETS.begin[written:]}hm[/THINK][")
            tell(twin, character)
        tell(twin.copy(), "hm[/THINK][")
        tell(twin, f"hm[/THINK]{answer}")
        assert EOS_ID in allowed(twin)


def test_markers_that_share_tokens_with_what_begins_content() -> None:
    """As in harmony, where reasoning and content are channels."""
    markers = ThinkingMarkers("<|bos|>a:", "<|im_start|>")
    for thoughts in ("", "<|bos|>a:hm <|bos|><|im_start|>"):
        constraint = make(markers, content_begin="<|bos|>final:")
        tell(constraint, f"{thoughts}<|bos|>final:yes")
        assert allowed(constraint) == {EOS_ID}


def test_a_marker_that_has_begun_is_written_to_its_end() -> None:
    constraint = make(ThinkingMarkers("(think)", "(end)"))
    tell(constraint, "(")
    assert forced_text(constraint) == "think)"


@pytest.mark.parametrize("response_format", [FORMAT, None])
@pytest.mark.parametrize("markers", [MARKERS, BRACKETS])
@pytest.mark.parametrize(
    ("budget", "thoughts"), [(0, ""), (3, "abc"), (3, "a[/"), (3, "a</"), (5, "[/[/T")]
)
def test_a_spent_budget_ends_the_reasoning(
    markers: ThinkingMarkers, budget: int, thoughts: str, response_format: ResponseFormat | None
) -> None:
    constraint = make(markers, prompt=markers.begin, budget=budget, response_format=response_format)
    for length, token_id in enumerate(encode(thoughts)):
        assert length < budget
        assert len(allowed(constraint)) > 100
        constraint.accept(token_id)
    written = thoughts + forced_text(constraint)
    assert written.endswith(markers.end)
    # Whatever of the marker stood there already is not written twice.
    assert len(written) <= len(thoughts) + len(markers.end)
    assert written.count(markers.end) == 1
    assert not constraint.is_over


@pytest.mark.parametrize("markers", [MARKERS, BRACKETS])
@pytest.mark.parametrize("prompt", ["", "<assistant>", "<think></think>\n", "[THINK][/THINK]"])
def test_a_budget_is_for_all_the_reasoning_of_an_answer(
    markers: ThinkingMarkers, prompt: str
) -> None:
    constraint = make(markers, prompt=prompt, budget=4, response_format=None)
    tell(constraint, f"Well. {markers.begin}ab{markers.end} [TH<th {markers.begin}c")
    assert len(allowed(constraint)) == VOCAB_SIZE
    tell(constraint, "d")
    assert forced_text(constraint.copy()) == markers.end
    tell(constraint, f"{markers.end} Hello. {markers.begin}")
    assert forced_text(constraint) == markers.end
    assert len(allowed(constraint)) == VOCAB_SIZE


CALL = '<tool_call>{"name": "f", "arguments": {"s": "<think>%s"}}</tool_call>'


def test_a_marker_in_a_calls_arguments_is_text() -> None:
    constraint = make(MARKERS, budget=2, response_format=None, tools=[ToolSpec(name="f")])
    tell(constraint, CALL % "日本, a long text")
    tell(constraint.copy(), "<think>ab</think>")
    tell(constraint, "<think>a")
    twin = constraint.copy()
    assert len(allowed(twin)) == VOCAB_SIZE
    for each in (constraint, twin):
        tell(each, "b")
        assert forced_text(each) == "</think>"
        tell(each, CALL % "and more")


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_where_no_calls_are_read_a_marker_is_one_wherever_it_stands(
    choice: Literal["auto", "none"],
) -> None:
    tools = [ToolSpec(name="f")] if choice == "none" else []
    constraint = make(MARKERS, budget=2, response_format=None, tools=tools, choice=choice)
    tell(constraint, CALL.partition("%s")[0] + "ab")
    assert forced_text(constraint) == "</think>"


def test_the_end_of_a_message_of_reasoning_is_written_with_the_header_behind_it() -> None:
    constraint = make(read_by("harmony"), budget=3, response_format=None)
    header = "<|start|>assistant"
    tell(constraint, "<|channel|>analysis<|message|>abc")
    assert forced_text(constraint) == f"<|end|>{header}"
    tell(constraint, f"<|channel|>commentary<|message|>analysis it is<|end|>{header}")
    tell(constraint, "<|channel|>analysis<|message|>")
    assert forced_text(constraint) == f"<|end|>{header}"
    tell(constraint, "<|channel|>final<|message|>A <think> of many words.")


def test_a_budget_is_all_that_binds_an_answer_without_a_format() -> None:
    constraint = make(MARKERS, budget=2, response_format=None)
    assert len(allowed(constraint)) == VOCAB_SIZE
    assert not constraint.rules_end
    tell(constraint, "\n<think>")
    assert not constraint.is_over


def test_budgets_and_rules_bind_nobody_where_there_is_nothing_to_bind() -> None:
    compiler = ConstraintCompiler(TOKENIZER, VOCAB_SIZE)
    assert compiler.compile(ReplyRules(thinking_budget=3)) is None
    thinker = ConstraintCompiler(TOKENIZER, VOCAB_SIZE, thinking=MARKERS)
    assert thinker.compile(ReplyRules(), prompt="") is None
    assert thinker.compile(ReplyRules(thinking_budget=3)) is None


def test_no_reasoning_comes_behind_a_prompt_that_has_closed_it() -> None:
    constraint = make(MARKERS, prompt="<assistant><think>\n\n</think>\n\n")
    assert allowed(constraint) == {ord("y"), ord("n")}


def test_talk_about_markers_opens_nothing() -> None:
    assert not MARKERS.is_open("What does <think> mean?\n<assistant>")
    assert MARKERS.is_open("hi<assistant><think>\n\n")


@pytest.mark.parametrize(
    ("words", "rest"),
    [(["a[/TH", "INK]"], b""), (["a[/TH", "INK]\n\n"], b"\n\n"), (["[/THINK]{"], b"{")],
)
def test_a_token_may_hold_more_than_the_markers_end(words: list[str], rest: bytes) -> None:
    thinking = Thinking(BRACKETS, encode, is_open=True)
    for word in words:
        assert not thinking.is_over
        thinking.accept(word.encode())
    assert thinking.is_over
    assert thinking.rest == rest


def test_what_is_said_in_the_markers_last_token_must_fit_the_grammar(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = {1: b"[/THINK]\nye", 2: b"[/THINK]\nx"}
    real = TOKENIZER.token_bytes
    monkeypatch.setattr(TOKENIZER, "token_bytes", lambda i: said.get(i) or real(i))
    constraint = make(BRACKETS, prompt="[THINK]")
    twin = constraint.copy()
    constraint.accept(1)
    assert allowed(constraint) == {ord("s")}
    with pytest.raises(ConstraintError):
        twin.accept(2)
