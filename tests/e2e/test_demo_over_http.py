"""The demo model behind a real socket, spoken to by the official client."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import openai
import pytest
from live_server import posted, read_to_end, read_until, serve
from tiny_models import save_tiny_model

from pippin.core.config import CacheConfig, EngineConfig, SchedulerConfig
from pippin.core.engine.async_engine import AsyncEngine
from pippin.core.engine.stats import StepStats
from pippin.core.errors import DownloadError
from pippin.core.models.demo import fetch_demo
from pippin.core.models.progress import NullProgress
from pippin.core.request import FinishReason
from pippin.server.config import ServerConfig

TIMEOUT_S = 60
QUESTION = "What is the capital of France?"
LONG = "The quick brown fox jumps over the lazy dog, and then it sleeps. " * 60
CHAT = "/v1/chat/completions"


@dataclass
class Demo:
    """A server with the demo model, and what its engine counts."""

    url: str
    port: int
    engine: AsyncEngine
    client: openai.OpenAI
    steps: list[StepStats] = field(default_factory=list)

    def prefilled_by(self, work: Callable[[], None]) -> int:
        """Prompt tokens that ran in chunks meanwhile."""
        before = sum(step.num_prefill_tokens for step in self.steps)
        work()
        return sum(step.num_prefill_tokens for step in self.steps) - before

    def metric(self, name: str) -> float:
        """A number of ``/metrics``."""
        text = httpx.get(f"{self.url}/metrics").text
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        assert found is not None, f"no {name} in {text}"
        return float(found[1])

    def is_idle(self) -> bool:
        """Whether all blocks are free or evictable and nobody runs or waits."""
        return (
            self.metric('pippin_kv_blocks{state="used"}') == 0
            and self.metric("pippin_running_answers") == 0
            and self.metric("pippin_waiting_requests") == 0
        )


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def demo_folder() -> Path:
    try:
        return fetch_demo(NullProgress())
    except DownloadError as error:
        pytest.skip(f"the demo model cannot be fetched here: {error}")


@pytest.fixture(scope="module")
def demo(demo_folder: Path) -> Iterator[Demo]:
    config = EngineConfig(
        max_model_len=4096,
        cache=CacheConfig(block_size=16, max_bytes=512 << 20),
        scheduler=SchedulerConfig(prefill_chunk=128, mixed_prefill_chunk=64),
    )
    engine = AsyncEngine.start(str(demo_folder), config, served_model_name="demo")
    steps: list[StepStats] = []
    engine.observe(steps.append)
    try:
        with (
            serve(engine, ServerConfig(port=0, sse_keepalive_s=0.02)) as server,
            openai.OpenAI(
                base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=TIMEOUT_S
            ) as client,
        ):
            yield Demo(server.url, server.port, engine, client, steps)
    finally:
        engine.close()


def test_a_chat_answer_and_its_stream_are_the_same(demo: Demo) -> None:
    whole = demo.client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": QUESTION}], temperature=0, max_tokens=12
    )
    stream = demo.client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)

    text = whole.choices[0].message.content
    assert text is not None
    assert "Paris" in text
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert streamed == text
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens


def test_many_callers_at_once_get_what_one_alone_gets(demo: Demo) -> None:
    prompts = ["Water boils at", "My favourite book is", "def add(a, b):", "Dear Sir,", "1, 2, 3,"]

    def ask(prompt: str) -> str:
        answer = demo.client.completions.create(
            model="demo", prompt=prompt, temperature=0, max_tokens=8
        )
        return answer.choices[0].text

    alone = [ask(prompt) for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        together = list(pool.map(ask, prompts))

    assert together == alone
    assert len(set(alone)) == len(prompts)


def test_seeds_repeat_and_answers_of_one_request_differ(demo: Demo) -> None:
    def ask(seed: int) -> list[str | None]:
        answer = demo.client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": "Tell me a story."}],
            temperature=1.2,
            max_tokens=8,
            n=3,
            seed=seed,
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert answer.usage is not None
        assert answer.usage.completion_tokens <= 24
        return [choice.message.content for choice in answer.choices]

    first = ask(1)

    assert ask(1) == first
    assert len(set(first)) == 3
    assert ask(2) != first


def test_logprobs_are_probabilities(demo: Demo) -> None:
    answer = demo.client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        max_tokens=6,
        logprobs=True,
        top_logprobs=5,
    )

    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 6
    for entry in logprobs.content:
        assert len(entry.top_logprobs) == 5
        total = sum(math.exp(candidate.logprob) for candidate in entry.top_logprobs)
        assert total <= 1 + 1e-5
        # Greedy takes the likeliest, which comes first.
        assert entry.token == entry.top_logprobs[0].token
        assert entry.logprob == entry.top_logprobs[0].logprob
    assert "".join(entry.token for entry in logprobs.content) == answer.choices[0].message.content


def test_a_stop_string_that_begins_inside_a_token_cuts_the_answer(demo: Demo) -> None:
    def ask(stop: str | None) -> openai.types.CompletionChoice:
        answer = demo.client.completions.create(
            model="demo",
            prompt="The capital of France is",
            temperature=0,
            max_tokens=12,
            logprobs=0,
            stop=stop,
        )
        return answer.choices[0]

    free = ask(None)
    assert free.logprobs is not None
    tokens = free.logprobs.tokens
    assert tokens is not None
    at = next(
        i
        for i, (one, two) in enumerate(itertools.pairwise(tokens))
        if i and len(one) > 1 and len(two) > 1
    )
    stop = tokens[at][-1] + tokens[at + 1][:2]
    cut = ask(stop)

    assert cut.text == free.text[: free.text.index(stop)]
    assert cut.finish_reason == "stop"


def test_echo_with_logprobs_tells_of_the_prompt_alone(demo: Demo) -> None:
    prompt = "One, two, three, four"
    answer = demo.client.completions.create(
        model="demo", prompt=prompt, max_tokens=0, echo=True, logprobs=2
    )
    with_more = demo.client.completions.create(
        model="demo", prompt=prompt, max_tokens=3, echo=True, logprobs=2, temperature=0
    )

    choice, more = answer.choices[0], with_more.choices[0]
    assert choice.text == prompt
    assert more.text.startswith(prompt)
    assert choice.logprobs is not None
    assert more.logprobs is not None
    values, more_values = choice.logprobs.token_logprobs, more.logprobs.token_logprobs
    assert values is not None
    assert more_values is not None
    assert "".join(choice.logprobs.tokens or ()) == prompt
    assert values[0] is None
    assert all(value is not None and value <= 0 for value in values[1:])
    assert more_values[: len(values)] == pytest.approx(values, abs=1e-4)
    assert len(more_values) == len(values) + 3
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(values)


def test_token_ids_go_there_and_back(demo: Demo) -> None:
    body = {"prompt": "Grüße, 世界 🙂", "return_token_strs": True}
    tokens = httpx.post(f"{demo.url}/tokenize", json=body).json()
    text = httpx.post(f"{demo.url}/detokenize", json={"tokens": tokens["tokens"]}).json()

    assert text["prompt"] == body["prompt"]
    assert tokens["count"] == len(tokens["tokens"]) == len(tokens["token_strs"])
    answer = demo.client.completions.create(
        model="demo", prompt=tokens["tokens"], max_tokens=1, temperature=0
    )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == tokens["count"]


def test_cached_tokens_are_those_that_were_not_computed(demo: Demo) -> None:
    usages = []

    def ask() -> None:
        answer = demo.client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": LONG[:700]}],
            temperature=0,
            max_tokens=1,
        )
        usages.append(answer.usage)

    computed = [demo.prefilled_by(ask) for _ in range(2)]

    for usage, chunks in zip(usages, computed, strict=True):
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        cached = usage.prompt_tokens_details.cached_tokens or 0
        # The last token of a prompt is computed with the first draw, in no chunk.
        assert cached + chunks + 1 == usage.prompt_tokens
    assert computed[1] < 16 < computed[0]


@pytest.mark.parametrize("stream", [False, True])
def test_a_caller_who_leaves_during_the_prompt_frees_its_blocks(demo: Demo, stream: bool) -> None:
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": f"{stream} {LONG}"}],
        "stream": stream,
        "max_tokens": 2000,
    }
    before = len(demo.steps)
    with posted(demo.port, CHAT, body):
        wait_until(lambda: demo.metric('pippin_kv_blocks{state="used"}') > 0)
    wait_until(demo.is_idle)

    ended = [answer for step in demo.steps[before:] for answer in step.finished]
    assert [answer.finish_reason for answer in ended] == [FinishReason.ABORT]


def test_a_caller_who_leaves_a_stream_frees_its_blocks(demo: Demo) -> None:
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": "Count to a thousand."}],
        "stream": True,
        "max_tokens": 2000,
    }
    with posted(demo.port, CHAT, body) as connection:
        assert b'"content":' in read_until(connection, b'"content":')
        assert not demo.is_idle()
    wait_until(demo.is_idle)


def test_a_stream_that_waits_is_kept_alive(demo: Demo) -> None:
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": f"Alive? {LONG}"}],
        "stream": True,
        "max_tokens": 1,
    }
    with posted(demo.port, CHAT, body) as connection:
        received = read_to_end(connection)

    assert b": keep-alive" in received.partition(b"data:")[0]
    # On a slow machine one more may slip in before the connection closes.
    after = received.partition(b"data: [DONE]\n\n")[2]
    assert set(after.replace(b": keep-alive", b"").decode()) <= set("0123456789abcdef\r\n")


@contextmanager
def command(model: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`pippin serve`, and the port it has taken."""
    with subprocess.Popen(
        [sys.executable, "-m", "pippin.cli", "serve", str(model), "--port", "0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200", "PIPPIN_KV_DISK_SIZE": "off"},
    ) as process:
        assert process.stderr is not None
        try:
            said = ""
            for line in process.stderr:
                said += line
                if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                    break
            assert found is not None, said
            yield process, int(found[1])
        finally:
            process.kill()


def test_sigterm_lets_a_stream_end_and_refuses_what_is_new(tmp_path: Path) -> None:
    """With a tiny model, whose long answer takes seconds on a machine of any kind."""
    body = {
        "model": "tiny",
        "prompt": "the inn",
        "stream": True,
        "min_tokens": 3000,
        "max_tokens": 3000,
        "temperature": 0,
    }
    path = "/v1/completions"
    model = save_tiny_model("llama-tied", tmp_path / "tiny")
    with command(model) as (process, port), posted(port, path, body) as running:
        url = f"http://127.0.0.1:{port}"
        assert b'"text":' in read_until(running, b'"text":')
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(f"{url}/health").status_code == 503)
        refusal = httpx.post(f"{url}{path}", json=body)
        rest = read_to_end(running)

        assert refusal.status_code == 503
        assert json.loads(refusal.text)["error"]["code"] == "draining"
        assert b'"finish_reason":"length"' in rest
        assert b"data: [DONE]" in rest
        assert process.wait(TIMEOUT_S) == 0
