"""The Vercel AI SDK, with each of its providers that pippin speaks to."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from live_server import LiveServer
from weather import ANSWER, QUESTION, SCHEMA_QUESTION

QUESTIONS = (QUESTION, SCHEMA_QUESTION)
SCRIPT = Path(__file__).with_name("ai_sdk.mjs")


@pytest.mark.parametrize("provider", ["chat", "compatible", "messages", "responses"])
def test_a_round_trip(server: LiveServer, npm: Any, provider: str) -> None:
    npm.require("ai")
    ended = subprocess.run(
        [npm.program("node"), "--input-type=module", "-", provider, server.url, *QUESTIONS],
        cwd=npm.folder,  # where it looks for packages
        input=SCRIPT.read_text(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr

    assert json.loads(ended.stdout) == {
        "asked": ["Rome", "Rome"],
        "whole": ANSWER,
        "streamed": ANSWER,
        "output": {"city": "Rome"},
        "failures": [],
    }
