"""The scripted model says its scripts, through the paged engine and over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from engine_driver import EngineDriver, build, make_request
from live_server import serve
from scripted_model import MARKER, write_scripted_model

from pippin.core.config import CacheConfig, EngineConfig
from pippin.core.engine.async_engine import AsyncEngine
from pippin.core.messages import ChatPrompt, Message, TextPart
from pippin.core.models.loader import LoadedModel, load_model
from pippin.core.models.progress import NullProgress
from pippin.core.request import FinishReason
from pippin.core.sampling_params import SamplingParams
from pippin.core.text.chat_template import render_chat
from pippin.core.text.tokenizer import Tokenizer

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": [1, 1]}}\n</tool_call>'
SCRIPTS = {
    "anything": "Hello.",
    "calls": f"{CALL}\n{CALL}",  # the same twice over: what was said does not tell the place
    "unicode": "日本語 🎉\n",
    "much": "Na na na. " * 40,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scripted_model(
        tmp_path_factory.mktemp("scripted"), SCRIPTS, tokens=("<tool_call>", "</tool_call>")
    )


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return load_model(str(folder), progress=NullProgress())


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[openai.OpenAI]:
    config = EngineConfig(cache=CacheConfig(max_bytes=16 << 20), max_model_len=4096)
    engine = AsyncEngine.start(str(folder), config, served_model_name="scripted")
    try:
        with (
            serve(engine) as server,
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
        ):
            yield client
    finally:
        engine.close()


def test_all_scripts_in_one_batch_cached_and_sampled(loaded: LoadedModel) -> None:
    tokenizer = Tokenizer(loaded.tokenizer, loaded.eos_token_ids)
    driver = EngineDriver(build(loaded, prefill_chunk=16).engine)
    requests = []
    for index, key in enumerate(SCRIPTS):
        for temperature in (0.0, 1.0):
            text = "a prompt that all share " * 3 + key + MARKER.format(index)
            prompt = tokenizer.encode(text, add_special_tokens=False)
            params = SamplingParams(max_tokens=2000, temperature=temperature)
            requests.append(make_request(f"{key}-{temperature}", prompt, params, n=2))

    answers = driver.run_staggered(requests)

    assert driver.most_running > 4
    assert max(answer.num_cached_tokens for answer in answers.values()) >= 64
    for (request_id, _), answer in answers.items():
        assert answer.text == SCRIPTS[request_id.partition("-")[0]]
        assert answer.finish_reason is FinishReason.STOP


@pytest.mark.parametrize(
    ("message", "key"), [("say calls", "calls"), ("unicode!", "unicode"), ("", "anything")]
)
@pytest.mark.parametrize("temperature", [0, 1])
def test_the_last_message_selects(
    client: openai.OpenAI, message: str, key: str, temperature: int
) -> None:
    stream = client.completions.create(
        model="scripted", prompt=f"x{MARKER.format(2)}", max_tokens=100, stream=True
    )
    answer = client.chat.completions.create(
        model="scripted",
        messages=[
            {"role": "user", "content": "much"},
            {"role": "assistant", "content": "calls"},
            {"role": "user", "content": message},
        ],
        temperature=temperature,
        logprobs=True,
    )

    assert "".join(chunk.choices[0].text for chunk in stream) == SCRIPTS["unicode"]
    [choice] = answer.choices
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert (
        b"".join(bytes(it.bytes or ()) for it in choice.logprobs.content).decode() == (SCRIPTS[key])
    )
    assert choice.finish_reason == "stop"


def test_what_the_template_opens_stays_the_end_of_the_prompt(tmp_path: Path) -> None:
    template = (
        "{{ messages[0].content }}{% if add_generation_prompt %}[{% if think %}<t>{% endif %}"
    )
    scripts = {"one": "first", "two": "second"}
    folder = write_scripted_model(
        tmp_path, scripts, chat_template=template + "{% endif %}", opening="<t>"
    )
    loaded = load_model(str(folder), progress=NullProgress())
    tokenizer = Tokenizer(loaded.tokenizer, loaded.eos_token_ids)
    driver = EngineDriver(build(loaded).engine)
    for think, ending in ((False, f"[{MARKER.format(1)}"), (True, f"[{MARKER.format(3)}<t>")):
        messages = (Message(role="user", content=(TextPart("two"),)),)
        text = render_chat(
            tokenizer, ChatPrompt(messages=messages, template_kwargs={"think": think})
        )
        assert text == f"two{ending}"
        prompt = tokenizer.encode(text, add_special_tokens=False)
        driver.add(make_request(str(think), prompt, SamplingParams(max_tokens=20)))

    driver.finish()

    assert [answer.text for answer in driver.answers.values()] == ["second", "second"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_end_that_is_not_shown_has_an_entry_behind_the_prompt(
    client: openai.OpenAI, stream: bool
) -> None:
    # Who scores prompts asks for one token more and drops the last entry, whatever it is.
    answer: Any = client.completions.create(
        model="scripted",
        prompt=[[104, 105, 106], [107]],
        echo=True,
        logprobs=1,
        max_tokens=1,
        temperature=0,
        stream=stream,
    )

    choices = [it for part in (answer if stream else (answer,)) for it in part.choices]
    for index, text in enumerate(("hij", "k")):
        mine = [it for it in choices if it.index == index]
        assert "".join(it.text for it in mine) == text
        assert [it.finish_reason for it in mine if it.finish_reason] == ["stop"]
        shown = [it.logprobs for it in mine if it.logprobs]
        offsets = [offset for it in shown for offset in it.text_offset]
        logprobs = [logprob for it in shown for logprob in it.token_logprobs]
        assert offsets == [*range(len(text)), len(text)]
        assert [logprob is None for logprob in logprobs] == (
            [True] + [False] * (len(text) - 1) + [True]
        )
