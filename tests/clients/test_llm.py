"""Simon Willison's ``llm``, as a program: a chain of tools, and a schema."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from live_server import LiveServer
from weather import ANSWER, QUESTION, SCHEMA_QUESTION, TOOL_RESULT

LOOK = f"""
def look(city: str) -> str:
    "Tell the weather of a city."
    open("asked", "a").write(city)
    return {TOOL_RESULT!r}
"""
MODEL = """
- model_id: here
  model_name: scripted
  api_base: {}/v1
  supports_tools: true
  supports_schema: true
"""


def run(server: LiveServer, folder: Path, *arguments: str) -> str:
    pytest.importorskip("llm")
    (folder / "extra-openai-models.yaml").write_text(MODEL.format(server.url))
    environment = {**os.environ, "LLM_USER_PATH": str(folder), "OPENAI_API_KEY": "none"}
    return subprocess.run(
        [sys.executable, "-m", "llm", "-m", "here", *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout


@pytest.mark.parametrize("stream", [(), ("--no-stream",)])
def test_a_round_trip(server: LiveServer, tmp_path: Path, stream: tuple[str, ...]) -> None:
    said = run(server, tmp_path, *stream, "--functions", LOOK, QUESTION)

    assert (tmp_path / "asked").read_text() == "Rome"
    assert said.strip().endswith(ANSWER)


def test_a_structured_answer(server: LiveServer, tmp_path: Path) -> None:
    assert json.loads(run(server, tmp_path, "--schema", "city str", SCHEMA_QUESTION)) == {
        "city": "Rome"
    }
