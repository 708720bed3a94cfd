"""Which files hold prompts to warm, and what a server is asked for them."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine

from pippin.cli.cache_warm import Warmed, run_warm_url, warm
from pippin.cli.warm_prompts import read_warm_prompts
from pippin.core.errors import ConfigError, InvalidRequestError, PippinError
from pippin.core.messages import ChatPrompt, TextPrompt
from pippin.server.app import create_app
from pippin.server.config import ServerConfig

HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
CHAT = {"messages": HELLO, "add_generation_prompt": False}


def write(folder: Path, text: str) -> Path:
    path = folder / "prompts"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Once upon\na time", [("all of it", {"prompt": "Once upon\na time"})]),
        (json.dumps(HELLO, indent=1), [("prompt 1", CHAT)]),
        (json.dumps({"prompt": "x"}), [("prompt 1", {"prompt": "x"})]),
        (
            json.dumps([HELLO, {"messages": HELLO, "tools": [TOOL]}], indent=1),
            [("prompt 1", CHAT), ("prompt 2", {**CHAT, "tools": [TOOL]})],
        ),
        (
            f'{{"prompt": "[a"}}\n\n{json.dumps(HELLO)}\n',
            [("line 1", {"prompt": "[a"}), ("line 3", CHAT)],
        ),
    ],
)
def test_all_forms_are_read(
    tmp_path: Path, text: str, expected: list[tuple[str, dict[str, Any]]]
) -> None:
    read = read_warm_prompts(write(tmp_path, text))
    assert [(prompt.place, prompt.body) for prompt in read] == expected
    assert [prompt.path for prompt in read] == [
        "/v1/completions" if "prompt" in body else "/v1/chat/completions" for _, body in expected
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (" \n", "holds no prompt"),
        ('{"prompt": "x"}\n{"prompt"\n', "line 2 is not JSON"),
        ('{"prompt": "x"}\n{"prompt": 7}\n', "line 2 must be a list of messages"),
        ('{"prompt": "x"}\n["x"]\n', "line 2 must be"),
        ('[{"prompt": "x", "n": 2}]', "prompt 1 must be"),
        ('[{"role": "cook", "content": "x"}]', "prompt 1: Invalid value for 'messages.0.role'"),
        ('{"messages": [], "tools": [1]}', "prompt 1: Invalid"),
        ("[{", "line 1 is not JSON"),
    ],
)
def test_what_is_no_prompt_is_named_by_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_warm_prompts(write(tmp_path, text))
    assert said in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "prompts").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_warm_prompts(tmp_path / "prompts")


def ask(engine: FakeEngine, file: Path) -> tuple[Warmed, list[tuple[int, int]]]:
    """Warm an app in this process."""
    told: list[tuple[int, int]] = []

    async def run() -> Warmed:
        app: Any = create_app(engine, ServerConfig())
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await warm(
                client, read_warm_prompts(file), lambda done, total: told.append((done, total))
            )

    return asyncio.run(run()), told


def test_every_prompt_is_asked_for_with_one_token(tmp_path: Path) -> None:
    engine = FakeEngine(["x"])
    engine.num_cached_tokens = 2
    file = write(tmp_path, f'{{"prompt": "abc"}}\n{json.dumps(HELLO)}\n')
    warmed, told = ask(engine, file)
    text, chat = engine.submissions
    assert text.prompt == TextPrompt("abc")
    assert isinstance(chat.prompt, ChatPrompt)
    assert not chat.prompt.add_generation_prompt
    assert [it.params.max_tokens for it in engine.submissions] == [1, 1]
    assert (warmed.num_prompts, warmed.num_cached, warmed.problems) == (2, 4, [])
    assert told == [(0, 2), (1, 2), (2, 2)]


def test_a_refused_prompt_does_not_keep_the_others_from_it(tmp_path: Path) -> None:
    engine = FakeEngine(submit_error=InvalidRequestError("too long"))
    warmed, _ = ask(engine, write(tmp_path, '{"prompt": "a"}\n{"prompt": "b"}'))
    assert warmed.problems == ["line 1: too long", "line 2: too long"]
    assert len(engine.submissions) == 2


def test_nobody_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(PippinError, match="did not compute"):
        run_warm_url("http://127.0.0.1:9", write(tmp_path, "hello"), api_key=None, as_json=False)
