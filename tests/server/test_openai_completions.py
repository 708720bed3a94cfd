from __future__ import annotations

import json
from typing import Any

import pytest
from fake_engine import Fail, FakeEngine, FakeGeneration

from pippin.core.errors import InvalidRequestError
from pippin.core.messages import Prompt, TextPrompt, TokensPrompt
from pippin.core.reply_rules import ReplyRules
from pippin.core.request import PositionLogprobs, TokenLogprob
from pippin.core.sampling_params import SamplingParams
from pippin.server.adapters.openai_completions_reply import CompletionLayout

from .conftest import MakeClient

PATH = "/v1/completions"


def _body(prompt: object, **changes: object) -> dict[str, Any]:
    return {"model": "tiny", "prompt": prompt, **changes}


@pytest.mark.parametrize(
    ("prompt", "submitted"),
    [
        ("ab", [TextPrompt("ab")]),
        (["ab", "c"], [TextPrompt("ab"), TextPrompt("c")]),
        ([1, 2], [TokensPrompt((1, 2))]),
        ([[1, 2], [3]], [TokensPrompt((1, 2)), TokensPrompt((3,))]),
    ],
)
def test_all_forms_of_a_prompt(
    make_client: MakeClient, prompt: object, submitted: list[object]
) -> None:
    engine = FakeEngine()

    answer = make_client(engine).post(PATH, json=_body(prompt, n=2))

    assert [it.prompt for it in engine.submissions] == submitted
    assert [it["index"] for it in answer.json()["choices"]] == list(range(2 * len(submitted)))
    assert answer.json()["usage"]["completion_tokens"] == 4 * len(submitted)


def test_defaults_are_those_of_the_old_api(make_client: MakeClient) -> None:
    engine = FakeEngine()

    make_client(engine).post(PATH, json=_body("x"))

    assert engine.submissions[0].params == SamplingParams(max_tokens=16)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt.0"),
        ({"prompt": None}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt.0"),
        ({"prompt": [256]}, "prompt"),
        ({"prompt": [[1], [-1]]}, "prompt"),
        ({"prompt": ["x"] * 129}, "prompt"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "end"}, "suffix"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stream_options": {}}, "stream_options"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"prompt_logprobs": 1, "echo": True, "logprobs": 2}, "prompt_logprobs"),
        ({"messages": []}, "messages"),
    ],
)
def test_what_cannot_be_honoured(
    make_client: MakeClient, changes: dict[str, object], param: str
) -> None:
    engine = FakeEngine()

    answer = make_client(engine).post(PATH, json={**_body("x"), **changes})

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert not engine.submissions


def test_values_that_ask_for_nothing_are_taken(make_client: MakeClient) -> None:
    answer = make_client().post(PATH, json=_body("x", n=2, best_of=2, suffix=None))

    assert answer.status_code == 200


def test_a_prompt_can_be_scored_without_an_answer(make_client: MakeClient) -> None:
    engine = FakeEngine()

    answer = make_client(engine).post(
        PATH, json=_body([104, 105, 106], echo=True, max_tokens=0, logprobs=1)
    )

    assert engine.submissions[0].params.num_prompt_logprobs == 1
    [choice] = answer.json()["choices"]
    assert choice["text"] == "hij"
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"] == {
        "tokens": ["h", "i", "j"],
        "token_logprobs": [None, -0.5, -0.5],
        "top_logprobs": [None, {"i": -0.5}, {"j": -0.5}],
        "text_offset": [0, 1, 2],
    }


def test_logprobs_of_the_prompt_by_token_id(make_client: MakeClient) -> None:
    body = _body([[104, 105], [106]], prompt_logprobs=2)

    choices = make_client().post(PATH, json=body).json()["choices"]

    assert [choice["prompt_logprobs"] for choice in choices] == [
        [
            None,
            {
                "7": {"logprob": -0.5, "rank": 1, "decoded_token": "i"},
                "0": {"logprob": -1.0, "rank": 2, "decoded_token": "alt0"},
            },
        ],
        [None],
    ]
    assert choices[0]["logprobs"] is None


def test_the_prompt_is_not_scored_unless_asked_for(make_client: MakeClient) -> None:
    engine = FakeEngine()
    client = make_client(engine)

    client.post(PATH, json=_body("x", echo=True))
    client.post(PATH, json=_body("x", logprobs=2))

    assert [it.params.num_prompt_logprobs for it in engine.submissions] == [None, None]


@pytest.mark.parametrize(
    "changes", [{}, {"echo": True}, {"logprobs": 2}, {"echo": True, "logprobs": 0}]
)
def test_a_stream_tells_the_same_as_an_object(
    make_client: MakeClient, changes: dict[str, object]
) -> None:
    client = make_client()
    body = _body(["ab", "c"], n=2, **changes)

    whole = client.post(PATH, json=body).json()
    stream = client.post(
        PATH, json={**body, "stream": True, "stream_options": {"include_usage": True}}
    )

    frames = stream.text.split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(frame[6:]) for frame in frames[:-2]]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks.pop()["usage"] == whole["usage"]
    for choice in whole["choices"]:
        mine = [it["choices"][0] for it in chunks if it["choices"][0]["index"] == choice["index"]]
        assert "".join(it["text"] for it in mine) == choice["text"]
        assert [it["finish_reason"] for it in mine if it["finish_reason"]] == ["stop"]
        for key, values in (choice["logprobs"] or {}).items():
            shown = [value for it in mine if it["logprobs"] for value in it["logprobs"][key]]
            assert shown == values


def test_offsets_count_from_the_echo(make_client: MakeClient) -> None:
    client = make_client()

    alone = client.post(PATH, json=_body("ab", logprobs=0)).json()["choices"][0]
    behind = client.post(PATH, json=_body("ab", logprobs=0, echo=True)).json()["choices"][0]

    assert alone["logprobs"]["text_offset"] == [0, 3]
    assert behind["logprobs"]["text_offset"] == [0, 1, 2, 5]


def test_the_chosen_token_is_among_the_likeliest_shown(make_client: MakeClient) -> None:
    [choice] = make_client().post(PATH, json=_body("x", logprobs=0)).json()["choices"]

    assert choice["logprobs"]["top_logprobs"] == [{"Hel": -0.5}, {"lo": -0.5}]


def test_one_failed_answer_ends_all(make_client: MakeClient) -> None:
    engine = FakeEngine(("a", Fail("broken")))

    answer = make_client(engine).post(PATH, json=_body(["x", "y"]))

    assert answer.status_code == 500
    assert all(it.generation.num_aborts for it in engine.submissions)


class PickyEngine(FakeEngine):
    """Refuses the prompt "bad"."""

    async def submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        request_id: str,
        num_sequences: int = 1,
        cache_salt: str = "",
        rules: ReplyRules | None = None,
    ) -> FakeGeneration:
        if prompt == TextPrompt("bad"):
            raise InvalidRequestError("I will not", param="prompt")
        return await super().submit(
            prompt,
            params,
            request_id=request_id,
            num_sequences=num_sequences,
            cache_salt=cache_salt,
            rules=rules,
        )


@pytest.mark.parametrize("prompts", [["x", "bad"], ["bad", "x"]])
def test_one_refused_prompt_ends_all(make_client: MakeClient, prompts: list[str]) -> None:
    engine = PickyEngine()

    answer = make_client(engine).post(PATH, json=_body(prompts))

    assert answer.status_code == 400
    assert [it.generation.num_aborts for it in engine.submissions] == [1]


def test_of_two_tokens_with_one_text_the_likelier_is_shown() -> None:
    best, twin = TokenLogprob(1, "x", b"x", -0.1), TokenLogprob(2, "x", b"x", -3.0)
    layout = CompletionLayout(num_prompts=1, num_answers=1, with_logprobs=True)

    rows = layout.logprobs(0, [PositionLogprobs(twin, (best, twin), 0, 1)], with_echo=False)

    assert rows is not None
    assert rows["top_logprobs"] == [{"x": -0.1}]
    assert rows["token_logprobs"] == [-3.0]
