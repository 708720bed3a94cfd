"""An agent's session of 30 turns prefills what is new and no more, through all three APIs.

The models are tiny and random, so every answer is a call that a grammar forces. New is what stood
in no earlier prompt or answer of the session.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
from live_server import serve
from tiny_models import family_named, save_tiny_model
from transformers import AutoTokenizer

from pippin.core.config import CacheConfig, EngineConfig, SchedulerConfig
from pippin.core.engine.async_engine import AsyncEngine
from pippin.core.engine.stats import StepStats
from pippin.server.config import ServerConfig

NUM_TURNS, NUM_TOKENS = 30, 12_000
BLOCK_SIZE = CacheConfig().block_size
# A random model writes blanks where JSON lets it, and spells out what could be one token: its calls
# have no JSON, and nothing that it may say holds text of the tokenizer's merged tokens.
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "<|im_end|>\n{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}{% for call in message.tool_calls or [] %}"
    "<tool_call>{{ call.function.name }}\n{% for key, value in call.function.arguments.items() %}"
    "<arg_key>{{ key }}</arg_key>\n<arg_value>{{ value }}</arg_value>\n{% endfor %}</tool_call>"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CALL_TOKENS = ["<tool_call>", "<arg_key>file</arg_key>\n<arg_value>", "</arg_value>\n</tool_call>"]
PARAMETERS = {
    "type": "object",
    "properties": {"file": {"enum": ["a/app.py", "a/keys.py", "b/blocks.py", "b/rows.py"]}},
    "required": ["file"],
    "additionalProperties": False,
}
REMINDER = "<system-reminder>The list of tasks is empty.</system-reminder>"
RULES = "You are a coding agent. " + "Read before you write, and say what you found. " * 40


@dataclass
class Usage:
    """What the requests of a session told of their tokens."""

    prompts: list[int] = field(default_factory=list)
    cached: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)

    def add(self, prompt: int, cached: int, answer: int) -> None:
        self.prompts.append(prompt)
        self.cached.append(cached)
        self.answers.append(answer)

    @property
    def num_prefilled(self) -> int:
        return sum(self.prompts) - sum(self.cached)

    @property
    def num_new(self) -> int:
        """What the first prompt found, other sessions have brought."""
        return self.prompts[-1] - sum(self.answers[:-1]) - self.cached[0]


class Session(Protocol):
    """A conversation through one API."""

    usage: Usage

    def ask(self, client: httpx.Client, result: str, said: str) -> None:
        """Tell what the last call gave, and perhaps say more; take in the next call."""


@dataclass
class Chat:
    messages: list[dict[str, Any]] = field(
        default_factory=lambda: [{"role": "system", "content": RULES}]
    )
    usage: Usage = field(default_factory=Usage)

    def ask(self, client: httpx.Client, result: str, said: str) -> None:
        if "tool_calls" in self.messages[-1]:
            call_id = self.messages[-1]["tool_calls"][0]["id"]
            self.messages.append({"role": "tool", "tool_call_id": call_id, "content": result})
        if said:
            self.messages.append({"role": "system", "content": REMINDER})
            self.messages.append({"role": "user", "content": said})
        reply = post(
            client,
            "chat/completions",
            messages=self.messages,
            tools=[
                {"type": "function", "function": {"name": "chat_read", "parameters": PARAMETERS}}
            ],
            tool_choice="required",
            parallel_tool_calls=False,
        )
        message = reply["choices"][0]["message"]
        self.messages.append({k: v for k, v in message.items() if v is not None})
        usage = reply["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        self.usage.add(usage["prompt_tokens"], cached, usage["completion_tokens"])


@dataclass
class Responses:
    stores: bool
    items: list[dict[str, Any]] = field(default_factory=list)
    last: dict[str, Any] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)

    def ask(self, client: httpx.Client, result: str, said: str) -> None:
        new: list[dict[str, Any]] = []
        if self.last:
            call_id = self.last["output"][-1]["call_id"]
            new.append({"type": "function_call_output", "call_id": call_id, "output": result})
        if said:
            new.append({"role": "developer", "content": REMINDER})
            new.append({"role": "user", "content": said})
        goes_on = {"previous_response_id": self.last["id"]} if self.stores and self.last else {}
        name = "stored_read" if self.stores else "whole_read"
        self.last = reply = post(
            client,
            "responses",
            instructions=RULES,
            input=[*self.items, *new],
            store=self.stores,
            tools=[{"type": "function", "name": name, "parameters": PARAMETERS}],
            tool_choice="required",
            parallel_tool_calls=False,
            **goes_on,
        )
        if not self.stores:
            self.items += [*new, *reply["output"]]
        usage = reply["usage"]
        cached = usage["input_tokens_details"]["cached_tokens"]
        self.usage.add(usage["input_tokens"], cached, usage["output_tokens"])


@dataclass
class Messages:
    """As Claude Code has it: a header that changes, and reminders of two kinds."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)

    def ask(self, client: httpx.Client, result: str, said: str) -> None:
        turn = len(self.messages)
        new: list[dict[str, Any]] = []
        if turn:
            call_id = self.messages[-1]["content"][-1]["id"]
            new.append({"type": "tool_result", "tool_use_id": call_id, "content": result})
        if said:
            new += [{"type": "text", "text": REMINDER}, {"type": "text", "text": said}]
        self.messages.append({"role": "user", "content": new})
        if turn % 8 == 6:
            self.messages.append({"role": "system", "content": REMINDER})
        header = f"x-anthropic-billing-header: cc_version=2.1.{turn}; cch={turn:05x};"
        reply = post(
            client,
            "messages",
            max_tokens=200,
            system=[{"type": "text", "text": header}, {"type": "text", "text": RULES}],
            messages=self.messages,
            tools=[{"name": "messages_read", "input_schema": PARAMETERS}],
            tool_choice={"type": "any", "disable_parallel_tool_use": True},
        )
        self.messages.append({"role": "assistant", "content": reply["content"]})
        usage = reply["usage"]
        cached = usage["cache_read_input_tokens"]
        self.usage.add(usage["input_tokens"] + cached, cached, usage["output_tokens"])


def post(client: httpx.Client, path: str, **body: object) -> Any:
    reply = client.post(f"/v1/{path}", json={"model": "tiny", "temperature": 0, **body})
    assert reply.status_code == 200, reply.text
    return reply.json()


def run_session(client: httpx.Client, session: Session) -> None:
    """The user speaks in every sixth turn."""
    rng = random.Random(5)
    words = ["def", "return", "cache", "block", "None", "self.", "(tokens)", "= 0", "#", "\n    "]
    for turn in range(NUM_TURNS):
        listing = " ".join(rng.choice(words) for _ in range(rng.randrange(25, 84)))
        session.ask(client, listing, "Now look for more." if turn % 6 == 0 else "")


@dataclass
class Tiny:
    """A server with a tiny model, and what its engine counts."""

    client: httpx.Client
    steps: list[StepStats]

    def prefilled_by(self, work: Callable[[], None]) -> int:
        """Prompt tokens that ran in chunks meanwhile: all but the last of each prompt."""
        before = len(self.steps)
        work()
        return sum(step.num_prefill_tokens for step in self.steps[before:])


def save_agent(name: str, folder: Path, settings: Mapping[str, object]) -> Path:
    family = family_named(name)
    save_tiny_model(replace(family, settings={**family.settings, **settings}), folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(CALL_TOKENS)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 16384}))
    return folder


FULL = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
HYBRID = {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}


@pytest.fixture(scope="module", params=[("llama-tied", FULL), ("lfm2", HYBRID)], ids=lambda p: p[0])
def tiny(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Tiny]:
    folder = save_agent(request.param[0], tmp_path_factory.mktemp("tiny") / "t", request.param[1])
    config = EngineConfig(
        cache=CacheConfig(max_bytes=64 << 20), scheduler=SchedulerConfig(prefill_chunk=512)
    )
    engine = AsyncEngine.start(str(folder), config, served_model_name="tiny")
    steps: list[StepStats] = []
    engine.observe(steps.append)
    stored = ServerConfig(port=0, response_store=folder / "responses.sqlite")
    try:
        with (
            serve(engine, stored) as server,
            httpx.Client(base_url=server.url, timeout=60) as client,
        ):
            yield Tiny(client, steps)
    finally:
        engine.close()


def test_sessions_prefill_only_what_is_new(tiny: Tiny) -> None:
    sessions: dict[str, Session] = {
        "chat": Chat(),
        "responses": Responses(stores=False),
        "responses, previous": Responses(stores=True),
        "messages": Messages(),
    }

    def run_all() -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda session: run_session(tiny.client, session), sessions.values()))

    num_run = tiny.prefilled_by(run_all)

    usages = {name: session.usage for name, session in sessions.items()}
    for name, usage in usages.items():
        assert usage.prompts[-1] >= NUM_TOKENS, name
        assert usage.num_prefilled <= 1.05 * usage.num_new, name
    told = sum(usage.num_prefilled - NUM_TURNS for usage in usages.values())
    assert num_run == told


def test_equal_prompts_in_flight_are_prefilled_once(tiny: Tiny) -> None:
    said = "Four callers ask for the very same thing at once. " * 60
    replies: list[Any] = []

    def ask(_: int) -> None:
        messages = [{"role": "user", "content": said}]
        replies.append(post(tiny.client, "chat/completions", messages=messages, max_tokens=4))

    def ask_all() -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(ask, range(4)))

    num_run = tiny.prefilled_by(ask_all)

    num_prompt = replies[0]["usage"]["prompt_tokens"]
    assert num_prompt > 2000
    assert num_run < num_prompt + 3 * BLOCK_SIZE
    assert len({reply["choices"][0]["message"]["content"] for reply in replies}) == 1
