"""Text, stops and log probabilities of an answer, whatever the steps that its tokens come in."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import byte_tokenizer as tokenizers
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pippin.core.engine.output_processor import OutputProcessor, prompt_logprobs
from pippin.core.parsing.detect import make_parser
from pippin.core.request import FinishReason, PositionLogprobs, RawLogprobs, RequestOutput
from pippin.core.sampling_params import SamplingParams
from pippin.core.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer(tokenizers.make_byte_tokenizer())
(EOS,) = TOKENIZER.eos_token_ids
SPECIAL = min(TOKENIZER.special_ids)


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def make_processor(tokenizer: Tokenizer = TOKENIZER, **params: Any) -> OutputProcessor:
    return OutputProcessor(tokenizer, SamplingParams(**params), request_id="r", index=1)


THOUGHT = "<think>\nI must.\n</think>\n\n"
CALL = '<tool_call>\n{"name": "look", "arguments": {"city": "Rome"}}\n</tool_call>\n'
ANSWER = f"{THOUGHT}Wait.\nNow {CALL}End.\n"
OPEN_ANSWER = f"{THOUGHT}Wait.\nNow "


@given(
    case=st.sampled_from(
        [
            *((ANSWER, stop, ANSWER) for stop in ("must", "Rome", "name", "tool", "k>", "w <")),
            (ANSWER, "\n", f"{THOUGHT}Wait."),
            (ANSWER, ".\nN", f"{THOUGHT}Wait"),
            (ANSWER, "End", f"{OPEN_ANSWER}{CALL}"),
            (ANSWER, "d.\n", f"{OPEN_ANSWER}{CALL}En"),
            ("<tool_call>oh Rome.", "Rome", "<tool_call>oh "),
            ("a < b", "<", "a "),
            ("Now <tool_call>\n{", "{", "Now <tool_call>\n"),
            ('<tool_call>\n{"name": "look", "a', "a", '<tool_call>\n{"name": "look", "a'),
        ]
    ),
    places=st.lists(st.integers(0, 200), max_size=6) | st.just(list(range(200))),
)
def test_stop_strings_are_looked_for_in_content_only(
    case: tuple[str, str, str], places: Sequence[int]
) -> None:
    text, stop, expected = case
    processor = OutputProcessor(
        TOKENIZER,
        SamplingParams(stop=(stop,), num_logprobs=0),
        request_id="r",
        index=0,
        make_parser=lambda: make_parser("hermes", "think"),
    )
    outputs = run(processor, into_steps(encode(text), places))
    assert text_of(outputs) == expected
    assert outputs[-1].stop_reason == (None if expected == text else stop)
    assert "".join(entry.chosen.text for entry in entries_of(outputs)) == expected


def raw_for(token_ids: Sequence[int]) -> list[RawLogprobs]:
    return [RawLogprobs(token_id, -0.5, ((token_id, -0.5), (97, -2.0))) for token_id in token_ids]


def run(
    processor: OutputProcessor,
    steps: Sequence[Sequence[int]],
    finish_reason: FinishReason | None = FinishReason.LENGTH,
) -> list[RequestOutput]:
    """All outputs, up to the one that ends the answer."""
    outputs: list[RequestOutput] = []
    for number, step in enumerate(steps, start=1):
        last = finish_reason if number == len(steps) else None
        outputs.append(processor.process(step, logprobs=raw_for(step), finish_reason=last))
        if processor.is_finished:
            break
    return outputs


def text_of(outputs: Sequence[RequestOutput]) -> str:
    return "".join(output.text for output in outputs)


def entries_of(outputs: Sequence[RequestOutput]) -> list[PositionLogprobs]:
    return [entry for output in outputs for entry in output.logprobs]


def into_steps(token_ids: list[int], places: Sequence[int]) -> list[list[int]]:
    borders = sorted({0, len(token_ids), *(place % (len(token_ids) + 1) for place in places)})
    return [token_ids[a:b] for a, b in pairwise(borders)] or [[]]


class Reference:
    """What an answer shows, worked out from all of its tokens at once."""

    def __init__(self, token_ids: list[int], stops: Sequence[str], min_tokens: int) -> None:
        self.starts, completing = [], []
        spelled = b""
        for number, token_id in enumerate(token_ids, start=1):
            self.starts.append(len(spelled.decode()))
            spelled_before = len(spelled.decode())
            spelled += b"" if token_id in TOKENIZER.special_ids else bytes([token_id])
            completing += [number] * (len(spelled.decode()) - spelled_before)
        self.text, self.matched = spelled.decode(), None
        self.num_tokens, self.num_entries = len(token_ids), len(token_ids)
        for stop_at in range(1, len(self.text) + 1):
            ending = [stop for stop in stops if self.text[:stop_at].endswith(stop)]
            if ending and completing[stop_at - 1] > min_tokens:
                self.matched = max(ending, key=len)
                self.num_tokens = completing[stop_at - 1]
                self.text = self.text[: stop_at - len(self.matched)]
                self.num_entries = sum(start < len(self.text) for start in self.starts)
                break


ASCII_TOKENS = st.lists(st.sampled_from([*b"aaabbc", SPECIAL]), max_size=20)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3).map(tuple)


@settings(deadline=None, max_examples=400)
@given(ASCII_TOKENS, STOPS, st.integers(0, 12), st.lists(st.integers(0, 99), max_size=8))
@example([SPECIAL, 97, SPECIAL, 98, 97], ("ba",), 0, [1, 2, 3, 4])
@example([97, SPECIAL, 98], ("b",), 0, [])
@example([97, 98, 98], ("ab", "bb"), 2, [2])
def test_any_steps_give_what_the_whole_answer_gives(
    token_ids: list[int], stops: tuple[str, ...], min_tokens: int, places: list[int]
) -> None:
    expected = Reference(token_ids, stops, min_tokens)
    processor = make_processor(stop=stops, min_tokens=min_tokens, num_logprobs=1)
    outputs = run(processor, into_steps(token_ids, places))
    assert text_of(outputs) == expected.text
    last = outputs[-1]
    assert last.stop_reason == expected.matched
    assert last.finish_reason is (
        FinishReason.LENGTH if expected.matched is None else FinishReason.STOP
    )
    drawn = [token_id for output in outputs for token_id in output.token_ids]
    assert drawn == token_ids[: expected.num_tokens]
    offsets = [offset for output in outputs for offset in output.text_offsets]
    assert offsets == expected.starts[: expected.num_tokens]
    assert last.num_output_tokens == expected.num_tokens
    entries = entries_of(outputs)
    shown = [(entry.chosen.token_id, entry.text_offset) for entry in entries]
    assert shown == list(zip(token_ids, expected.starts, strict=True))[: expected.num_entries]


@settings(deadline=None, max_examples=200)
@given(ASCII_TOKENS, STOPS)
def test_entry_leaves_with_the_text_of_its_token(
    token_ids: list[int], stops: tuple[str, ...]
) -> None:
    processor = make_processor(stop=stops, num_logprobs=0)
    text = spelled = ""
    for output in run(processor, [[token_id] for token_id in token_ids]):
        text += output.text
        spelled += "".join(
            entry.chosen.text
            for entry in output.logprobs
            if entry.chosen.token_id not in TOKENIZER.special_ids
        )
        assert spelled == text


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=12), st.lists(st.integers(0, 99), max_size=8))
def test_real_text_keeps_its_bytes_and_offsets(text: str, places: list[int]) -> None:
    token_ids = encode(text)
    outputs = run(make_processor(num_logprobs=0), into_steps(token_ids, places))
    assert text_of(outputs) == text
    entries = entries_of(outputs)
    assert b"".join(entry.chosen.raw for entry in entries) == text.encode()
    for number, entry in enumerate(entries):
        before = b"".join(map(TOKENIZER.token_bytes, token_ids[:number]))
        assert entry.text_offset == len(before.decode("utf-8", "ignore"))
        assert entry.text_end == len(
            (before + TOKENIZER.token_bytes(token_ids[number])).decode("utf-8", "ignore")
        )


def test_output_names_its_answer_and_cached_tokens() -> None:
    output = make_processor().process([97], num_cached_tokens=5)
    assert output == RequestOutput(
        request_id="r",
        index=1,
        text="a",
        token_ids=(97,),
        text_offsets=(0,),
        num_output_tokens=1,
        num_cached_tokens=5,
    )


@pytest.mark.parametrize("text", ["a🙂", "你"])
def test_stop_string_of_several_byte_characters_is_found(text: str) -> None:
    outputs = run(make_processor(stop=("🙂", "你")), [[b] for b in text.encode()])
    assert text_of(outputs) == text[:-1]
    assert outputs[-1].stop_reason == text[-1]


def test_cut_inside_of_a_token_keeps_its_entry() -> None:
    the = encode("the")
    assert len(the) == 1
    outputs = run(make_processor(stop=("e",), num_logprobs=0), [the])
    assert text_of(outputs) == "th"
    assert [entry.chosen.text for entry in entries_of(outputs)] == ["the"]


def test_fragments_of_a_character_behind_the_cut_have_no_entry() -> None:
    outputs = run(make_processor(stop=("🙂",), num_logprobs=0), [[b] for b in "a🙂".encode()])
    assert [entry.chosen.raw for entry in entries_of(outputs)] == [b"a"]


def test_eos_token_counts_but_is_not_shown() -> None:
    outputs = run(make_processor(num_logprobs=0), [[97], [98, EOS]], FinishReason.STOP)
    assert text_of(outputs) == "ab"
    assert outputs[-1].token_ids == (98, EOS)
    assert outputs[-1].num_output_tokens == 3
    assert outputs[-1].stop_reason is None
    assert len(entries_of(outputs)) == 2


def test_text_of_a_stop_token_is_not_shown() -> None:
    outputs = run(make_processor(stop_token_ids=(98,)), [[97, 98]], FinishReason.STOP)
    assert text_of(outputs) == "a"
    assert outputs[-1].stop_reason == 98
    assert outputs[-1].token_ids == (97, 98)


@pytest.mark.parametrize(("ignore_eos", "stop_reason"), [(False, None), (True, EOS)])
def test_eos_is_a_stop_reason_only_as_a_stop_token(
    ignore_eos: bool, stop_reason: int | None
) -> None:
    processor = make_processor(stop_token_ids=(EOS,), ignore_eos=ignore_eos)
    assert run(processor, [[EOS]], FinishReason.STOP)[-1].stop_reason == stop_reason


def test_stop_string_before_the_eos_token_is_the_reason() -> None:
    outputs = run(make_processor(stop=("b",)), [[97, 98, EOS]], FinishReason.STOP)
    assert (text_of(outputs), outputs[-1].stop_reason) == ("a", "b")
    assert outputs[-1].token_ids == (97, 98)


def test_held_text_is_released_at_the_end_and_only_then() -> None:
    processor = make_processor(stop=("abc",), num_logprobs=0)
    first = processor.process([*b"xab"], logprobs=raw_for(b"xab"))
    assert (first.text, len(first.logprobs)) == ("x", 1)
    last = processor.process([], logprobs=[], finish_reason=FinishReason.LENGTH)
    assert (last.text, len(last.logprobs)) == ("ab", 2)
    assert last.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("reason", [FinishReason.ABORT, FinishReason.ERROR])
def test_open_character_is_released_at_any_end(reason: FinishReason) -> None:
    outputs = run(make_processor(num_logprobs=0), [[0xF0]], reason)
    assert text_of(outputs) == "\ufffd"
    assert outputs[-1].finish_reason is reason
    assert len(entries_of(outputs)) == 1


def test_text_that_the_end_releases_can_complete_a_stop_string() -> None:
    tokenizer = Tokenizer(tokenizers.make_sentencepiece_tokenizer(kind="keep"))
    run_of_bytes = tokenizer.encode("🙂", add_special_tokens=False)
    outputs = run(make_processor(tokenizer, stop=("🙂",), num_logprobs=0), [run_of_bytes])
    assert (text_of(outputs), outputs[-1].stop_reason) == ("", "🙂")
    assert outputs[-1].finish_reason is FinishReason.STOP
    assert entries_of(outputs) == []


def test_stop_string_ends_the_answer_before_the_engine_does() -> None:
    processor = make_processor(stop=("b",))
    assert processor.process([97]).finish_reason is None
    assert not processor.is_finished
    assert processor.process([98]).finish_reason is FinishReason.STOP
    assert processor.is_finished
    with pytest.raises(AssertionError):
        processor.process([99])


def test_entries_carry_the_candidates() -> None:
    (entry,) = entries_of(run(make_processor(num_logprobs=2), [[0xE4]]))
    assert (entry.chosen.text, entry.chosen.raw, entry.chosen.logprob) == ("\ufffd", b"\xe4", -0.5)
    assert [(top.token_id, top.text, top.logprob) for top in entry.top] == [
        (0xE4, "\ufffd", -0.5),
        (97, "a", -2.0),
    ]


def test_no_entries_unless_asked_for() -> None:
    assert entries_of(run(make_processor(), [[97]])) == []


def test_prompt_logprobs_stand_at_the_prompts_text() -> None:
    token_ids = [SPECIAL, *encode("a🙂b")]
    raw = [None, *raw_for(token_ids[1:])]
    entries = prompt_logprobs(TOKENIZER, token_ids, raw)
    assert entries[0] is None
    placed = [(e.chosen.token_id, e.text_offset) for e in entries if e is not None]
    assert placed == list(zip(token_ids[1:], [0, 1, 1, 1, 1, 2], strict=True))
