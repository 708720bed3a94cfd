"""Constrained answers in the engine: exact, and nobody else notices them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from engine_driver import AlwaysOn, Answer, EngineDriver, build, greedy
from tiny_models import EOS_ID, make_tiny_model

from pippin.core.constraints.compiler import ConstraintCompiler
from pippin.core.constraints.constraint import Constraint, ConstraintError, MaskRow
from pippin.core.constraints.thinking import ThinkingMarkers
from pippin.core.engine import masking
from pippin.core.engine.draft_source import HostSource
from pippin.core.engine.factory import BuiltEngine
from pippin.core.engine.masking import build_masks
from pippin.core.engine.prompt_builder import PromptBuilder
from pippin.core.messages import TextPrompt
from pippin.core.models.loader import LoadedModel
from pippin.core.reply_rules import FormatKind, ReplyRules, ResponseFormat
from pippin.core.request import FinishReason, Request
from pippin.core.sampling_params import SamplingParams

SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["fish", "fowl"]},
        "sizes": {"type": "array", "items": {"enum": [1, 22, 333]}, "minItems": 2, "maxItems": 4},
    },
    "required": ["kind", "sizes"],
    "additionalProperties": False,
    # A random model would fill pages with blanks.
    "x-guidance": {"whitespace_flexible": False},
}
COMPACT = ReplyRules(
    response_format=ResponseFormat("grammar", f"start: %json {json.dumps(SCHEMA)}")
)
HEAD = "A prompt with a head that some share, "


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return make_tiny_model("qwen3")


def form(kind: FormatKind, value: Any = None) -> ReplyRules:
    return ReplyRules(response_format=ResponseFormat(kind, value))


def make(
    loaded: LoadedModel,
    built: BuiltEngine,
    request_id: str,
    rules: ReplyRules | None,
    *,
    text: str = "hi",
    n: int = 1,
    **params: Any,
) -> Request:
    prompts = PromptBuilder(
        built.tokenizer,
        max_model_len=built.max_model_len,
        vocab_size=loaded.vocab_size,
    )
    settings = SamplingParams(**{"max_tokens": 60, "seed": 3, **params})
    return prompts.build(
        TextPrompt(text), settings, request_id=request_id, num_sequences=n, rules=rules
    )


def mixed(loaded: LoadedModel, built: BuiltEngine) -> list[Request]:
    """Free and constrained answers, hot and greedy, of shared and of other prompts."""
    requests = []
    for index in range(8):
        rules = [None, COMPACT, None, form("regex", "[a-f]{30}")][index % 4]
        text = f"{HEAD}{index}" if index % 3 else f"number {index}" * (index + 1)
        n = 3 if index in (4, 5) else 1
        params: dict[str, Any] = {"temperature": float(index % 2), "ignore_eos": rules is None}
        requests.append(make(loaded, built, f"r{index}", rules, text=text, n=n, **params))
    return requests


def tokens(answers: Mapping[tuple[str, int], Answer]) -> dict[tuple[str, int], list[int]]:
    return {key: answer.token_ids for key, answer in answers.items()}


@pytest.fixture(scope="module")
def alone(loaded: LoadedModel) -> dict[tuple[str, int], list[int]]:
    """Each request by itself, in an engine of its own."""
    answers = dict[tuple[str, int], list[int]]()
    built = build(loaded, block_size=8)
    for request in mixed(loaded, built):
        built.engine.scheduler.cache.clear_index()
        answers |= tokens(EngineDriver(built.engine).run([request]))
    return answers


class Prophet:
    """Guesses from the answers themselves, and errs at every fifth position."""

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        self._texts = texts

    def propose(self, token_ids: Sequence[int], max_tokens: int) -> list[int]:
        start = len(token_ids)
        for text in self._texts:
            if list(text[:start]) == list(token_ids):
                guess = list(enumerate(text[start : start + max_tokens], start))
                return [token if place % 5 else (token + 1) % 256 for place, token in guess]
        return []


@pytest.mark.parametrize("mode", ["together", "preempted", "warm", "speculated"])
def test_answers_are_the_same_as_alone(
    loaded: LoadedModel, alone: dict[tuple[str, int], list[int]], mode: str
) -> None:
    built = build(loaded, block_size=8, num_tokens=400 if mode == "preempted" else 8192)
    driver = EngineDriver(built.engine)
    requests = mixed(loaded, built)
    if mode == "speculated":
        by_id = {request.request_id: request.prompt_token_ids for request in requests}
        texts = [[*by_id[name], *answer] for (name, _), answer in alone.items()]
        speculator = AlwaysOn(HostSource("prophet", lambda: Prophet(texts)), max_tokens=5)
        built.engine._speculator = speculator
    if mode == "warm":
        for request in requests:
            EngineDriver(built.engine).run([request])
    got = tokens(driver.run_staggered(requests))

    assert got == alone
    if mode == "preempted":
        assert driver.num_preempted
    if mode == "warm":
        assert any(answer.num_cached_tokens for answer in driver.answers.values())
    if mode == "speculated":
        assert 0 < speculator.counts.num_accepted < speculator.counts.num_drafted
    for (name, _), answer in driver.answers.items():
        if name in ("r1", "r5"):
            value = json.loads(answer.text)
            assert (answer.finish_reason, list(value)) == (FinishReason.STOP, ["kind", "sizes"])
        if name in ("r3", "r7"):
            assert len(answer.text) == 30


def test_drafts_that_the_grammar_refuses_are_not_drawn(loaded: LoadedModel) -> None:
    """Guesses out of a free answer: what follows a refused one has no mask at all."""
    built = build(loaded)
    rules = COMPACT
    want = EngineDriver(built.engine).run([make(loaded, built, "a", rules)])["a", 0]
    source = HostSource(
        "wrong", lambda: Prophet([[*b"hi", *want.token_ids[:9], *b"zzzzzzzzz" * 9]])
    )
    built.engine._speculator = AlwaysOn(source, max_tokens=7)

    got = EngineDriver(built.engine).run([make(loaded, built, "a", rules)])["a", 0]

    assert got.token_ids == want.token_ids


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "lfm2", "mamba2"])
def test_every_kind_of_cache_takes_constraints(family: str) -> None:
    loaded = make_tiny_model(family)
    built = build(loaded)
    rules = COMPACT
    answers = EngineDriver(built.engine).run([make(loaded, built, "a", rules, n=2)])
    assert {*json.loads(answers["a", 0].text)} == {"kind", "sizes"}
    assert {*json.loads(answers["a", 1].text)} == {"kind", "sizes"}


def test_the_grammar_says_where_the_answer_ends(loaded: LoadedModel) -> None:
    built = build(loaded)
    wishes: list[dict[str, Any]] = [
        {"ignore_eos": True},
        {"min_tokens": 20},
        {"logit_bias": {EOS_ID: -100.0, ord("z"): 100.0}},
        {"min_tokens": 20, "stop_token_ids": (EOS_ID, ord("e"))},
    ]
    requests = [
        make(loaded, built, str(i), form("choice", ["yes"]), num_logprobs=5, **wish)
        for i, wish in enumerate(wishes)
    ]
    answers = EngineDriver(built.engine).run(requests)
    for answer in answers.values():
        assert (answer.text, answer.finish_reason) == ("yes", FinishReason.STOP)
        assert [entry.chosen.logprob for entry in answer.logprobs] == [0.0, 0.0, 0.0]


def test_a_longer_answer_is_chosen_where_the_grammar_leaves_the_choice(
    loaded: LoadedModel,
) -> None:
    built = build(loaded)
    request = make(loaded, built, "a", form("regex", "[ab]+"), n=4, min_tokens=25)
    answers = EngineDriver(built.engine).run([request])
    assert all(len(answer.text) >= 25 for answer in answers.values())


def test_a_callers_stop_cuts_a_constrained_answer(loaded: LoadedModel) -> None:
    built = build(loaded)
    rules = form("choice", ["yes, no"])
    requests = [
        make(loaded, built, "text", rules, stop=(", ",)),
        make(loaded, built, "token", rules, stop_token_ids=(ord("s"),)),
        make(loaded, built, "length", rules, max_tokens=4),
    ]
    answers = EngineDriver(built.engine).run(requests)
    assert {name: answer.text for (name, _), answer in answers.items()} == {
        "text": "yes",
        "token": "ye",
        "length": "yes,",
    }


def test_a_thinking_budget_closes_the_thinking_and_leaves_the_rest_free(
    loaded: LoadedModel,
) -> None:
    built = build(loaded)
    markers = ThinkingMarkers("<think>", "</think>")
    compiler = ConstraintCompiler(built.tokenizer, loaded.vocab_size, thinking=markers)
    rules = {
        "free": ReplyRules(),
        "budget": ReplyRules(thinking_budget=10),
        "both": ReplyRules(thinking_budget=10, response_format=ResponseFormat("choice", ["yes"])),
    }
    requests = [
        replace(
            make(loaded, built, name, None, text="x<think>\n", ignore_eos=True),
            constraint=compiler.compile(given, prompt="x<think>\n"),
        )
        for name, given in rules.items()
    ]
    answers = EngineDriver(built.engine).run(requests)
    free, bound = answers["free", 0], answers["budget", 0]
    end = built.tokenizer.encode("</think>", add_special_tokens=False)
    assert bound.token_ids[: 10 + len(end)] == [*free.token_ids[:10], *end]
    assert len(bound.token_ids) == 60
    assert answers["both", 0].token_ids == [
        *free.token_ids[:10],
        *end,
        *b"yes",
        EOS_ID,
    ]


class Fragile:
    """Lets all through until it fails, in one way or the other."""

    is_over = False
    rules_end = True

    def __init__(self, last: int, fault: Exception, *, in_fill: bool) -> None:
        self.num_accepted = 0
        self._last, self._fault, self._in_fill = last, fault, in_fill

    def fill(self, row: MaskRow) -> None:
        if self._in_fill and self.num_accepted == self._last:
            raise self._fault

    def accept(self, token_id: int) -> None:
        if not self._in_fill and self.num_accepted == self._last:
            raise self._fault
        self.num_accepted += 1

    def copy(self) -> Constraint:
        return Fragile(self._last, self._fault, in_fill=self._in_fill)


@pytest.mark.parametrize("last", [0, 5])
@pytest.mark.parametrize(
    ("in_fill", "fault"), [(True, ConstraintError("lost")), (False, ValueError("lost"))]
)
@pytest.mark.parametrize("drafts", [False, True])
def test_a_constraint_that_fails_ends_its_own_answer_only(
    loaded: LoadedModel, last: int, fault: Exception, in_fill: bool, drafts: bool
) -> None:
    built = build(loaded, block_size=8)
    free = make(loaded, built, "free", None, ignore_eos=True)
    json_one = make(loaded, built, "json", COMPACT)
    alone = {
        name: EngineDriver(built.engine).run([request])[name, 0].token_ids
        for name, request in {"free": free, "json": json_one}.items()
    }
    if drafts:
        texts = [[*b"hi", *answer] for answer in alone.values()]
        source = HostSource("prophet", lambda: Prophet(texts))
        built.engine._speculator = AlwaysOn(source, max_tokens=5)
    broken = Request(
        request_id="broken",
        prompt_token_ids=free.prompt_token_ids,
        params=greedy(40),
        constraint=lambda: Fragile(last, fault, in_fill=in_fill),
    )

    answers = EngineDriver(built.engine).run([free, broken, json_one])

    ended = answers["broken", 0]
    assert ended.finish_reason is FinishReason.ERROR
    assert ended.error is not None
    assert ended.error.endswith("lost")
    assert len(ended.token_ids) <= last + 1
    assert {name: answers[name, 0].token_ids for name in alone} == alone
    later = make(loaded, built, "later", None, ignore_eos=True)
    assert EngineDriver(built.engine).run([later])["later", 0].token_ids == alone["free"]


def test_steps_of_free_answers_build_no_masks(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build(loaded)
    rows = list[int]()

    def spy(items: Any, vocab_size: int, drawn: Any) -> Any:
        rows.append(len(items))
        return build_masks(items, vocab_size, drawn)

    monkeypatch.setattr(masking, "build_masks", spy)
    free = make(loaded, built, "free", None, ignore_eos=True)
    bound = make(loaded, built, "bound", form("choice", ["yes"]))
    EngineDriver(built.engine).run([free])
    assert not rows
    EngineDriver(built.engine).run([free, bound])
    assert len(rows) <= 6
