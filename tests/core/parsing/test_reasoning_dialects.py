"""Reasoning is told from content in every dialect, wherever it was opened and however it ends."""

from __future__ import annotations

from itertools import product

import pytest
from dialect_samples import WRITERS, Reply, parse
from hypothesis import given
from hypothesis import strategies as st

from pippin.core.parsing.detect import make_parser
from pippin.core.parsing.dialects import REASONING_DIALECTS

TAGS = sorted(set(REASONING_DIALECTS) - {"harmony"})
THOUGHTS = ("", "hm", "a < b\n\n<b> [T", "naïve 東京 🎉\nline\n- 1", '{"name": "search"}', "<think")
ANSWERS = ("", "Hi.", "\tindented\n\nlines\n", "1 < 2 <| [/ 東京", "{}")


def both(text: str, dialect: str, tools: str | None = None, *, inside: bool = False) -> Reply:
    """What the text says, whole and one character after the other."""
    reply = parse([text], tools, dialect, starts_in_reasoning=inside)
    assert parse(text, tools, dialect, starts_in_reasoning=inside) == reply
    return reply


@pytest.mark.parametrize("dialect", TAGS)
class TestTags:
    def test_the_model_opens_and_closes_it(self, dialect: str) -> None:
        tags = REASONING_DIALECTS[dialect]
        for begin, end in product(tags.opens, tags.closes):
            for thought, answer, line in product(THOUGHTS, ANSWERS, ("", "\n", "\n\n")):
                text = f"{begin}{line}{thought}{line}{end}{line}{answer}"
                reply = both(text, dialect)
                assert (reply.reasoning, reply.content) == (thought, answer)

    def test_the_template_opened_it(self, dialect: str) -> None:
        tags = REASONING_DIALECTS[dialect]
        reply = both(f"hm\n{tags.end}\n\nHi.", dialect, inside=True)
        assert (reply.reasoning, reply.content) == ("hm", "Hi.")
        again = both(f"\n{tags.opens[0]}\nhm\n{tags.end}Hi.", dialect, inside=True)
        assert (again.reasoning, again.content) == ("hm", "Hi.")

    def test_what_is_never_closed_is_all_reasoning(self, dialect: str) -> None:
        tags = REASONING_DIALECTS[dialect]
        assert both(f"{tags.opens[0]}hm, {tags.end[:-1]}", dialect).content == ""
        assert both("hm, \n", dialect, inside=True) == Reply("hm, \n", order="R")

    def test_an_end_without_a_beginning_is_left_out(self, dialect: str) -> None:
        reply = both(f"One.\n{REASONING_DIALECTS[dialect].end}\n\nTwo.", dialect)
        assert reply == Reply("", "One.Two.", order="C")

    def test_it_may_come_again(self, dialect: str) -> None:
        tags = REASONING_DIALECTS[dialect]
        text = f"{tags.opens[0]}a{tags.end}One.{tags.opens[0]}b{tags.end}Two."
        assert both(text, dialect).order == "RCRC"

    def test_what_stands_around_content_is_left_out(self, dialect: str) -> None:
        tags = REASONING_DIALECTS[dialect]
        text = f"{tags.opens[0]}hm{tags.end}" + "".join(tags.silent[:1]) + "Hi."
        assert both(text + "".join(tags.silent[1:2]), dialect).content == "Hi."

    def test_calls_follow_it(self, dialect: str) -> None:
        tags = REASONING_DIALECTS[dialect]
        for name in ("hermes", "llama3"):
            call = WRITERS[name]([("search", {"s": "x"})])
            reply = both(f"{tags.opens[0]}hm{tags.end}\n\n{call}", dialect, name)
            assert (reply.order, reply.whole_calls) == ("RT", [("search", {"s": "x"})])

    def test_it_is_known_while_it_lasts(self, dialect: str) -> None:
        tags = REASONING_DIALECTS[dialect]
        parser = make_parser(None, dialect, starts_in_reasoning=True)
        seen = [parser.is_reasoning]
        for piece in ("hm", tags.end, "Hi.", tags.opens[0], "hm"):
            parser.feed(piece)
            seen.append(parser.is_reasoning)
        assert seen == [True, True, False, False, True, True]

    def test_prompts_say_whether_it_is_open(self, dialect: str) -> None:
        tags = REASONING_DIALECTS[dialect]
        begin, end = tags.opens[0], tags.end
        assert tags.starts_in_reasoning(f"user: hi\n{begin}\n")
        assert not tags.starts_in_reasoning(f"{begin}\n\n{end}\n\n")
        assert not tags.starts_in_reasoning(f"user: what is {begin} for?\nassistant:")
        assert tags.starts_in_reasoning(f"{begin}a{end}{begin}and so", continues=True)
        assert not tags.starts_in_reasoning(f"{begin}a{end}and so", continues=True)


def test_a_call_in_the_middle_ends_reasoning_where_markers_are_tokens() -> None:
    call = WRITERS["kimi_k2"]([("search", {})])
    assert both(f"<think>hm{call}", "think", "kimi_k2").order == "RT"
    call = WRITERS["hermes"]([("search", {})])
    assert both(f"<think>I could write {call}", "think", "hermes").order == "R"


HARMONY = (
    "<|channel|>analysis<|message|>hm\nhm<|end|><|start|>assistant<|channel|>commentary<|message|>"
    "Wait.<|end|><|start|>assistant<|channel|>commentary to=functions.search "
    '<|constrain|>json<|message|>{"s": "x"}<|call|><|start|>assistant<|channel|>final<|message|>'
    "1 < 2<|return|>"
)


def test_harmony_has_channels() -> None:
    reply = both(HARMONY, "harmony")
    assert (reply.reasoning, reply.content) == ("hm\nhm", "Wait.\n1 < 2")
    assert reply.whole_calls == [("search", {"s": "x"})]
    assert reply.order == "RCTC"
    inside = both(
        "hm<|end|><|start|>assistant<|channel|>final<|message|>Hi", "harmony", inside=True
    )
    assert (inside.reasoning, inside.content) == ("hm", "Hi")
    code = "<|channel|>analysis to=python code<|message|>print(1)<|call|>"
    assert both(code, "harmony") == Reply("", "print(1)", order="C")


@given(data=st.data(), length=st.integers(0, len(HARMONY)))
def test_harmony_shows_no_marker_however_it_is_cut(data: st.DataObject, length: int) -> None:
    at = data.draw(st.integers(0, length))
    reply = parse([HARMONY[:at], HARMONY[at:length]], None, "harmony")
    assert reply == parse([HARMONY[:length]], None, "harmony")
    for shown in (reply.reasoning, reply.content.replace("1 < 2", "")):
        assert "analysis" not in shown
        assert "|>" not in shown


@given(
    st.lists(st.sampled_from(("<|start|>", "<|message|>", "<|channel|>", "x" * 300, " to=a ", "{")))
)
def test_harmony_takes_anything(pieces: list[str]) -> None:
    assert parse(pieces, None, "harmony") == parse(["".join(pieces)], None, "harmony")
