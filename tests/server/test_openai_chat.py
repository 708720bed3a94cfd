from __future__ import annotations

import json
from typing import Any

import pytest
from fake_engine import FakeEngine, Together, make_card

from pippin.core.messages import ChatPrompt, TextPart, ToolCall
from pippin.core.request import FinishReason
from pippin.core.sampling_params import SamplingParams

from .conftest import MakeClient

PATH = "/v1/chat/completions"
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


def _prompt_of(engine: FakeEngine) -> ChatPrompt:
    prompt = engine.submissions[-1].prompt
    assert isinstance(prompt, ChatPrompt)
    return prompt


def test_all_roles_reach_the_engine(make_client: MakeClient) -> None:
    engine = FakeEngine()
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    function = {"name": "f", "arguments": '{"x": [1]}'}
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "developer", "content": parts},
        {"role": "user", "content": "hi", "name": "Ann"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "hm",
            "tool_calls": [{"id": "1", "type": "function", "function": function}],
        },
        {"role": "tool", "content": "42", "tool_call_id": "1"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "assistant", "content": None, "refusal": "never"},
    ]

    answer = make_client(engine).post(PATH, json={**CHAT, "messages": messages})

    assert answer.status_code == 200, answer.text
    sent = _prompt_of(engine).messages
    assert [it.role for it in sent] == [
        "system", "developer", "user", "assistant", "tool", "assistant", "assistant",
    ]  # fmt: skip
    assert [it.text for it in sent] == ["be kind", "ab", "hi", "", "42", "no", "never"]
    assert sent[1].content == (TextPart("a"), TextPart("b"))
    assert sent[2].name == "Ann"
    assert sent[3].tool_calls == (ToolCall(call_id="1", name="f", arguments={"x": [1]}),)
    assert sent[3].reasoning == "hm"
    assert sent[4].tool_call_id == "1"


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_media_are_refused_by_name(make_client: MakeClient, kind: str) -> None:
    parts = [{"type": "text", "text": "what is it?"}, {"type": kind, kind: {"url": "x"}}]

    answer = make_client().post(
        PATH, json={**CHAT, "messages": [{"role": "user", "content": parts}]}
    )

    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["param"] == "messages.0.content.1.type"
    assert error["code"] == "unsupported_value"
    assert kind in error["message"]


def test_an_assistant_turn_must_say_something(make_client: MakeClient) -> None:
    answer = make_client().post(PATH, json={**CHAT, "messages": [{"role": "assistant"}]})

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages.0.content"


def test_all_settings_reach_the_engine(make_client: MakeClient) -> None:
    engine = FakeEngine()
    body = {
        **CHAT,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": -1,
        "frequency_penalty": 2,
        "logit_bias": {"5": 10, "6": -1.5},
        "seed": 7,
        "stop": ["x", "y"],
        "stop_token_ids": [3],
        "min_tokens": 2,
        "max_completion_tokens": 9,
        "ignore_eos": True,
        "logprobs": True,
        "top_logprobs": 3,
        "n": 2,
        "cache_salt": "mine",
        "chat_template_kwargs": {"enable_thinking": False},
        "add_generation_prompt": False,
        "user": "u",
        "metadata": {"a": "b"},
        "safety_identifier": "s",
        "prompt_cache_key": "k",
    }

    assert make_client(engine).post(PATH, json=body).status_code == 200

    [submission] = engine.submissions
    assert submission.params == SamplingParams(
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=-1,
        frequency_penalty=2,
        logit_bias={5: 10, 6: -1.5},
        seed=7,
        stop=("x", "y"),
        stop_token_ids=(3,),
        min_tokens=2,
        max_tokens=9,
        ignore_eos=True,
        num_logprobs=3,
    )
    assert submission.num_sequences == 2
    assert submission.cache_salt == "mine"
    assert _prompt_of(engine).template_kwargs == {"enable_thinking": False}
    assert _prompt_of(engine).add_generation_prompt is False


def test_a_field_falls_back_to_the_model_and_then_to_the_api(make_client: MakeClient) -> None:
    card = make_card(default_sampling={"temperature": 0.6, "top_k": 20.0, "top_p": 0.8})
    engine = FakeEngine(card=card)
    client = make_client(engine)

    client.post(PATH, json=CHAT)
    client.post(PATH, json={**CHAT, "temperature": 0, "top_p": None, "top_k": -1, "stop": "x"})

    model_defaults, request_first = (it.params for it in engine.submissions)
    assert model_defaults == SamplingParams(temperature=0.6, top_k=20, top_p=0.8)
    assert isinstance(model_defaults.top_k, int)
    assert request_first == SamplingParams(temperature=0, top_k=0, top_p=0.8, stop=("x",))


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"seed": 2**64}, "seed"),
        ({"stop": [str(i) for i in range(17)]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"logit_bias": {"256": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"stop_token_ids": [256]}, "stop_token_ids"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
        ({"max_tokens": 3, "min_tokens": 4}, "min_tokens"),
    ],
)
def test_values_that_cannot_be_honoured(
    make_client: MakeClient, changes: dict[str, object], param: str
) -> None:
    engine = FakeEngine()

    answer = make_client(engine).post(PATH, json={**CHAT, **changes})

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert not engine.submissions


def test_both_names_of_the_limit_may_agree(make_client: MakeClient) -> None:
    engine = FakeEngine()

    answer = make_client(engine).post(
        PATH, json={**CHAT, "max_tokens": 1, "max_completion_tokens": 1}
    )

    assert engine.submissions[0].params.max_tokens == 1
    assert answer.json()["choices"][0]["finish_reason"] == "length"
    assert answer.json()["choices"][0]["message"]["content"] == "Hel"


@pytest.mark.parametrize("stream", [False, True])
def test_an_aborted_generation_is_no_answer(make_client: MakeClient, stream: bool) -> None:
    engine = FakeEngine(finish_reason=FinishReason.ABORT)

    answer = make_client(engine).post(PATH, json={**CHAT, "stream": stream})

    assert answer.status_code == (200 if stream else 500)
    assert "generation_failed" in answer.text
    assert "[DONE]" not in answer.text


@pytest.mark.parametrize("logprob", [float("-inf"), float("nan"), -1e9])
@pytest.mark.parametrize("stream", [False, True])
def test_a_logprob_is_always_a_json_number(
    make_client: MakeClient, logprob: float, stream: bool
) -> None:
    engine = FakeEngine()
    engine.logprob = logprob

    answer = make_client(engine).post(PATH, json={**CHAT, "logprobs": True, "stream": stream})

    assert '"logprob":-9999.0' in answer.text


def test_chunks_that_arrive_together_leave_in_one_message(make_client: MakeClient) -> None:
    engine = FakeEngine((Together(("a", "", "b")), "c"))

    with make_client(engine).stream("POST", PATH, json={**CHAT, "stream": True}) as answer:
        messages = [part for part in answer.iter_raw() if part]

    contents = [
        [json.loads(frame[6:])["choices"][0]["delta"].get("content") for frame in _frames(part)]
        for part in messages[:2]
    ]
    # The test client hands on each body message as it is.
    assert contents == [["", "a", "b"], ["c"]]


def _frames(part: bytes) -> list[str]:
    return [frame for frame in part.decode().split("\n\n") if frame.startswith("data: {")]


def test_a_stream_has_headers_that_keep_proxies_from_buffering(make_client: MakeClient) -> None:
    answer = make_client().post(PATH, json={**CHAT, "stream": True})

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-accel-buffering"] == "no"
    assert "no-store" in answer.headers["cache-control"]


def test_ids_of_the_engine_are_unique_even_if_callers_repeat_theirs(
    make_client: MakeClient,
) -> None:
    engine = FakeEngine()
    client = make_client(engine)

    for _ in range(2):
        client.post(PATH, json=CHAT, headers={"x-request-id": "same"})

    assert len({it.request_id for it in engine.submissions}) == 2
