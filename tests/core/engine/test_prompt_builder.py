"""Prompts become requests, or errors that name the field."""

from typing import Any

import byte_tokenizer as tokenizers
import pytest

from pippin.core.engine.prompt_builder import PromptBuilder
from pippin.core.errors import ContextLengthError, InvalidRequestError
from pippin.core.messages import ChatPrompt, Message, Prompt, TextPart, TextPrompt, TokensPrompt
from pippin.core.reply_rules import ReplyRules, ResponseFormat
from pippin.core.request import Request
from pippin.core.sampling_params import SamplingParams
from pippin.core.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer(tokenizers.make_byte_tokenizer())
LIMIT = 40


def make_builder(**options: Any) -> PromptBuilder:
    return PromptBuilder(TOKENIZER, **({"max_model_len": LIMIT} | options))


def build(prompt: Prompt, params: SamplingParams | None = None, **options: Any) -> Request:
    return make_builder(**options).build(prompt, params or SamplingParams(), request_id="r")


def chat(text: str) -> ChatPrompt:
    return ChatPrompt(messages=[Message(role="user", content=[TextPart(text)])])


def test_request_carries_everything_given() -> None:
    params = SamplingParams(max_tokens=3)
    request = make_builder().build(
        TokensPrompt([1, 2]),
        params,
        request_id="r1",
        num_sequences=2,
        cache_salt="s",
        arrival_at=1.5,
    )
    assert request == Request(
        request_id="r1",
        prompt_token_ids=(1, 2),
        params=params,
        num_sequences=2,
        cache_salt="s",
        arrival_at=1.5,
    )


def test_text_is_encoded_with_the_tokenizers_special_tokens_if_wanted() -> None:
    hf = tokenizers.make_byte_tokenizer()
    hf.add_bos_token = True
    builder = PromptBuilder(Tokenizer(hf), max_model_len=LIMIT)
    bos = hf.convert_tokens_to_ids(tokenizers.BOS)
    assert builder.tokenize(TextPrompt("ab")) == [bos, *b"ab"]
    assert builder.tokenize(TextPrompt("ab", add_special_tokens=False)) == [*b"ab"]


def test_chat_gets_no_special_tokens_beside_the_templates() -> None:
    hf = tokenizers.make_byte_tokenizer(chat_template="{{ bos_token }}{{ messages[0].content }}")
    hf.add_bos_token = True
    builder = PromptBuilder(Tokenizer(hf), max_model_len=LIMIT)
    assert builder.tokenize(chat("ab")) == [hf.convert_tokens_to_ids(tokenizers.BOS), *b"ab"]


@pytest.mark.parametrize("prompt", [TextPrompt(""), TokensPrompt([])])
def test_prompt_without_tokens_is_refused(prompt: Prompt) -> None:
    with pytest.raises(InvalidRequestError, match="no tokens") as caught:
        build(prompt)
    assert caught.value.param == "prompt"


def test_chat_that_renders_to_nothing_is_refused() -> None:
    builder = PromptBuilder(
        Tokenizer(tokenizers.make_byte_tokenizer(chat_template="{{ '' }}")), max_model_len=LIMIT
    )
    with pytest.raises(InvalidRequestError, match="no tokens") as caught:
        builder.tokenize(chat("u"))
    assert caught.value.param == "messages"


@pytest.mark.parametrize("token_id", [-1, TOKENIZER.vocab_size])
def test_id_outside_the_vocabulary_is_refused_by_field(token_id: int) -> None:
    cases: dict[str, tuple[Prompt, SamplingParams]] = {
        "prompt": (TokensPrompt([1, token_id]), SamplingParams()),
        "logit_bias": (TextPrompt("a"), SamplingParams(logit_bias={1: 0.5, token_id: 1.0})),
        "stop_token_ids": (TextPrompt("a"), SamplingParams(stop_token_ids=(1, token_id))),
    }
    for param, (prompt, params) in cases.items():
        with pytest.raises(InvalidRequestError, match=f"{param}.* {token_id},") as caught:
            build(prompt, params)
        assert caught.value.param == param


def test_last_id_of_the_vocabulary_is_accepted() -> None:
    last = TOKENIZER.vocab_size - 1
    params = SamplingParams(logit_bias={last: 1.0}, stop_token_ids=(last,))
    assert build(TokensPrompt([0, last]), params).prompt_token_ids == (0, last)


def test_vocabulary_of_the_model_is_what_counts() -> None:
    wide = TOKENIZER.vocab_size + 5
    assert build(TokensPrompt([wide - 1]), vocab_size=wide).num_prompt_tokens == 1
    with pytest.raises(InvalidRequestError):
        build(TokensPrompt([10]), vocab_size=10)


@pytest.mark.parametrize(
    ("num_prompt_tokens", "max_tokens"),
    [(LIMIT, 0), (LIMIT - 1, None), (LIMIT - 1, 1), (1, LIMIT - 1)],
)
def test_what_just_fits_is_accepted(num_prompt_tokens: int, max_tokens: int | None) -> None:
    request = build(TokensPrompt([1] * num_prompt_tokens), SamplingParams(max_tokens=max_tokens))
    assert request.num_prompt_tokens == num_prompt_tokens


@pytest.mark.parametrize(
    ("num_prompt_tokens", "max_tokens"),
    [(LIMIT + 1, 0), (LIMIT, None), (LIMIT, 1), (1, LIMIT)],
)
def test_what_is_one_token_too_long_is_refused(
    num_prompt_tokens: int, max_tokens: int | None
) -> None:
    with pytest.raises(ContextLengthError, match=rf"{LIMIT} .* {num_prompt_tokens} ") as caught:
        build(TokensPrompt([1] * num_prompt_tokens), SamplingParams(max_tokens=max_tokens))
    assert caught.value.param == "prompt"
    assert caught.value.num_prompt_tokens == num_prompt_tokens
    assert caught.value.max_tokens == max_tokens


def test_chat_that_is_too_long_names_its_messages() -> None:
    with pytest.raises(ContextLengthError) as caught:
        build(chat("x" * LIMIT))
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("prompt", "param"), [(TextPrompt("\ud83d"), "prompt"), (chat("\ud83d"), "messages")]
)
def test_half_of_a_surrogate_pair_is_refused(prompt: Prompt, param: str) -> None:
    with pytest.raises(InvalidRequestError, match="surrogate") as caught:
        build(prompt)
    assert caught.value.param == param


def test_rules_that_bind_make_a_constraint_for_each_answer() -> None:
    rules = ReplyRules(response_format=ResponseFormat("choice", ["yes", "no"]))
    bound = make_builder().build(chat("hi"), SamplingParams(), request_id="r", rules=rules)
    assert bound.constraint is not None
    assert bound.constraint() is not bound.constraint()
    for loose in (None, ReplyRules(), ReplyRules(thinking_budget=5)):
        free = make_builder().build(chat("hi"), SamplingParams(), request_id="r", rules=loose)
        assert free.constraint is None


def test_a_bad_grammar_is_the_callers_fault() -> None:
    rules = ReplyRules(response_format=ResponseFormat("regex", "("))
    with pytest.raises(InvalidRequestError, match="unclosed") as caught:
        make_builder().build(chat("hi"), SamplingParams(), request_id="r", rules=rules)
    assert caught.value.param == "structured_outputs.regex"
