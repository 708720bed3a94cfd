"""What is told of an answer is the same however its tokens came, and logprobs are of its content.

Tokens go the whole way: through the engine's output processor into the reader.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from byte_tokenizer import make_byte_tokenizer, make_sentencepiece_tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pippin.core.engine.output_processor import OutputProcessor
from pippin.core.parsing.detect import make_parser
from pippin.core.parsing.events import ContentDelta, ReasoningDelta
from pippin.core.parsing.reply_reader import ReplyReader
from pippin.core.request import FinishReason, PositionLogprobs, RawLogprobs
from pippin.core.sampling_params import SamplingParams
from pippin.core.text.tokenizer import Tokenizer

BYTES = Tokenizer(make_byte_tokenizer())
SPECIAL = min(BYTES.special_ids - set(BYTES.eos_token_ids))
(EOS,) = BYTES.eos_token_ids

CALL = '<tool_call>\n{"name": "look", "arguments": {"city": "the 🙂"}}\n</tool_call>'
FRAGMENTS = {
    "hermes": ("<think>", "</think>", CALL, "<tool_call>", "</tool_call>", "<tool", "</thi", "{"),
    "kimi_k2": (
        *("<think>", "</think>", "<|tool_calls_section_begin|><|tool_call_begin|>functions.look:0"),
        *("<|tool_call_argument_begin|>{}", "<|tool_call_end|><|tool_calls_section_end|>"),
    ),
    "llama3": ("<think>", "</think>", '{"name": "look", "parameters": {"city": "x"}}', '{"n', ";"),
    "harmony": (
        *("<|channel|>analysis<|message|>", "<|end|><|start|>assistant", "<|channel|>final"),
        *("<|message|>", "<|channel|>commentary to=functions.look <|message|>{}", "<|call|>"),
    ),
}
TALK = st.text("a <\n🙂", max_size=3) | st.sampled_from(("the", " 🙂", "\n\n", "\n"))


@st.composite
def answers(draw: st.DrawFn) -> tuple[str, bool, str]:
    dialect = draw(st.sampled_from(sorted(FRAGMENTS)))
    parts = st.lists(TALK | st.sampled_from(FRAGMENTS[dialect]), max_size=8)
    return dialect, draw(st.booleans()), "".join(draw(parts))


class Told:
    """All that is said of one answer."""

    def __init__(
        self,
        token_ids: Sequence[int],
        borders: Sequence[int],
        reader: ReplyReader,
        stop: tuple[str, ...] = (),
        *,
        dialect: tuple[str | None, bool] = (None, False),
    ) -> None:
        def parser() -> object:
            name, is_open = dialect
            return make_parser(name, "think" if name else None, starts_in_reasoning=is_open)

        processor = OutputProcessor(
            BYTES,
            SamplingParams(num_logprobs=0, stop=stop),
            request_id="r",
            index=0,
            make_parser=parser,  # type: ignore[arg-type]
        )
        self.parts: list[tuple[str, list[PositionLogprobs]]] = []
        self.reasoning = ""
        is_new = True
        ends = sorted({0, len(token_ids), *(it % (len(token_ids) + 1) for it in borders)})
        for start, stop_at in pairwise(ends if len(ends) > 1 else [0, 0]):
            ids = token_ids[start:stop_at]
            output = processor.process(
                ids,
                logprobs=[RawLogprobs(it, -0.5) for it in ids],
                finish_reason=FinishReason.STOP if stop_at == len(token_ids) else None,
            )
            for event, logprobs in reader.read_scored(output):
                if isinstance(event, ContentDelta):
                    if is_new:
                        self.parts.append(("", []))
                    text, before = self.parts[-1]
                    self.parts[-1] = (text + event.text, [*before, *logprobs])
                else:
                    assert not logprobs
                if isinstance(event, ReasoningDelta):
                    self.reasoning += event.text
                is_new = not isinstance(event, ContentDelta)
            if processor.is_finished:
                break
        self.num_reasoning_tokens = reader.num_reasoning_tokens


def tell(
    token_ids: Sequence[int], borders: Sequence[int], dialect: str, is_open: bool, stop: str = ""
) -> Told:
    reader = ReplyReader(
        make_parser(dialect, "think", starts_in_reasoning=is_open), with_logprobs=True
    )
    stops = (stop,) if stop else ()
    return Told(token_ids, borders, reader, stops, dialect=(dialect, is_open))


def check_parts(told: Told) -> None:
    for text, logprobs in told.parts:
        spelled = b"".join(it.chosen.raw for it in logprobs).decode()
        assert text in (spelled, f"\n{spelled}")  # a line break that stands for a call


@settings(max_examples=300, deadline=None)
@given(
    answers(), st.lists(st.integers(0, 300), max_size=6), st.sampled_from(["", "the", "\n", "a"])
)
@example(("hermes", True, f"hm\n</think>\n\nthe 🙂.\n{CALL}\n\nthe"), [], "")
@example(("hermes", False, " <tool_call>"), [], "")
def test_cuts_into_outputs_change_nothing(
    answer: tuple[str, bool, str], borders: list[int], stop: str
) -> None:
    dialect, is_open, text = answer
    token_ids = [*BYTES.encode(text, add_special_tokens=False), SPECIAL, EOS]
    whole = tell(token_ids, [], dialect, is_open, stop)
    each = tell(token_ids, range(len(token_ids)), dialect, is_open, stop)
    some = tell(token_ids, borders, dialect, is_open, stop)

    for other in (each, some):
        assert other.parts == whole.parts
        assert other.reasoning == whole.reasoning
        assert other.num_reasoning_tokens == whole.num_reasoning_tokens
    check_parts(whole)


def test_a_token_across_a_border_is_cut_to_what_is_content() -> None:
    (the,) = BYTES.encode("the", add_special_tokens=False)
    close = BYTES.encode("</think>", add_special_tokens=False)
    wide = BYTES.encode(" 🙂", add_special_tokens=False)
    told = tell([the, *close, *wide, the], [], "hermes", is_open=True)
    ((text, logprobs),) = told.parts
    assert text == " 🙂the"
    assert [it.chosen.raw for it in logprobs] == [*map(BYTES.token_bytes, wide), b"the"]
    assert told.num_reasoning_tokens == 1 + len(close)

    told = tell(BYTES.encode("the", add_special_tokens=False), [], "hermes", False, stop="e")
    ((text, logprobs),) = told.parts
    assert (text, [(it.chosen.text, it.chosen.raw) for it in logprobs]) == ("th", [("th", b"th")])


@pytest.mark.parametrize("kind", ["strip", "metaspace", "keep"])
def test_spaces_that_the_decoder_drops_are_no_tokens(kind: str) -> None:
    tokenizer = Tokenizer(make_sentencepiece_tokenizer(kind=kind))
    token_ids = tokenizer.encode("the a🙂.", add_special_tokens=False)
    processor = OutputProcessor(tokenizer, SamplingParams(num_logprobs=0), request_id="r", index=0)
    reader = ReplyReader(make_parser(None, None), with_logprobs=True)
    output = processor.process(
        token_ids,
        logprobs=[RawLogprobs(it, -0.5) for it in token_ids],
        finish_reason=FinishReason.LENGTH,
    )
    ((event, logprobs),) = reader.read_scored(output)
    assert isinstance(event, ContentDelta)
    assert b"".join(it.chosen.raw for it in logprobs) == event.text.encode()


@given(st.lists(st.sampled_from([*b"a \xf0\x9f\x98\x80\xff", SPECIAL]), max_size=8))
def test_bytes_that_spell_nothing_are_told_once(token_ids: list[int]) -> None:
    shown = [it for it in token_ids if it != SPECIAL]
    borders: Sequence[int]
    for borders in ([], range(len(token_ids))):
        reader = ReplyReader(make_parser(None, None), with_logprobs=True)
        told = Told(token_ids, borders, reader)
        raw = b"".join(it.chosen.raw for _, logprobs in told.parts for it in logprobs)
        assert raw == bytes(shown)
