"""Claude Code, Codex and opencode: each reads a file with its own tool, as the model asks."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from live_server import LiveServer
from weather import ANSWER, TOOL_RESULT, question_for


def run(folder: Path, *command: str, **environment: str) -> str:
    """Run a program that knows nothing of whoever starts the test, and give what it said."""
    work = folder / "work"
    work.mkdir()
    (work / "weather.txt").write_text(TOOL_RESULT)
    subprocess.run(["git", "init", "--quiet", work], check=True)
    proxies = {name: value for name, value in os.environ.items() if "proxy" in name.lower()}
    ended = subprocess.run(
        command,
        cwd=work,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), **proxies, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@pytest.mark.parametrize("model", ["claude-scripted", "claude-searching"])
def test_claude_code(server: LiveServer, npm: Any, tmp_path: Path, model: str) -> None:
    """It runs a command, or searches for a tool and has it loaded."""
    said = run(
        tmp_path,
        npm.program("claude"),
        *("--print", question_for("Bash"), "--output-format", "json"),
        *("--model", model, "--allowedTools", "Bash"),
        ANTHROPIC_BASE_URL=server.url,
        ANTHROPIC_API_KEY="none",
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
    )
    result = json.loads(said)
    assert (result["result"].strip(), result["num_turns"]) == (ANSWER, 2)


CODEX = """
model = "scripted"
model_provider = "here"
[model_providers.here]
name = "here"
base_url = "{url}/v1"
wire_api = "responses"
"""


def _codex(server: LiveServer, npm: Any, folder: Path, tool: str) -> list[dict[str, Any]]:
    (folder / ".codex").mkdir()
    (folder / ".codex" / "config.toml").write_text(CODEX.format(url=server.url))
    said = run(
        folder,
        npm.program("codex"),
        *("exec", "--json", "--sandbox", "read-only", question_for(tool)),
    )
    return [json.loads(line).get("item", {}) for line in said.splitlines()]


def test_codex(server: LiveServer, npm: Any, tmp_path: Path) -> None:
    items = _codex(server, npm, tmp_path, "exec_command")

    ran = [it["aggregated_output"] for it in items if it.get("status") == "completed"]
    messages = [it["text"].strip() for it in items if it.get("type") == "agent_message"]
    assert (ran, messages[-1]) == ([TOOL_RESULT], ANSWER)


def test_codex_calls_a_tool_of_a_namespace(server: LiveServer, npm: Any, tmp_path: Path) -> None:
    """What it answers shows that it knew its own tool again."""
    items = _codex(server, npm, tmp_path, "multi_agent_v1__close_agent")

    assert [it["text"].strip() for it in items if it.get("type") == "agent_message"] == [ANSWER]


def test_opencode(server: LiveServer, npm: Any, tmp_path: Path) -> None:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "options": {"baseURL": f"{server.url}/v1", "apiKey": "none"},
        "models": {"scripted": {"limit": {"context": 16384, "output": 2048}}},
    }
    config = {"provider": {"here": provider}, "model": "here/scripted", "autoupdate": False}
    said = run(
        tmp_path,
        npm.program("opencode"),
        *("run", "--format", "json", question_for("bash")),
        OPENCODE_CONFIG_CONTENT=json.dumps(config),
        OPENCODE_DISABLE_MODELS_FETCH="1",
    )
    parts = [json.loads(line)["part"] for line in said.splitlines()]
    ran = [it["state"]["output"] for it in parts if it["type"] == "tool"]
    texts = [it["text"].strip() for it in parts if it["type"] == "text"]
    assert (ran, texts[-1]) == ([TOOL_RESULT], ANSWER)
