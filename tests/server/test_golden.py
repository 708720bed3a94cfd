"""The wire, byte for byte but for ids, times and versions.

`golden/openai.jsonl` holds our own transcripts.

A line is ``{"path", "request", "status", "answer"}``; a stream's answer is the list of its data
lines. To take in a wanted change, edit the line: it is the contract that is reviewed.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine

from .conftest import MakeClient

GOLDEN = Path(__file__).parent / "golden" / "openai.jsonl"
LINES = [json.loads(line) for line in GOLDEN.read_text().splitlines()]


def normalise(text: str) -> str:
    text = re.sub(r'"(chatcmpl|cmpl)-[0-9a-f]{32}"', r'"\1-ID"', text)
    text = re.sub(r'"system_fingerprint":"[^"]+"', '"system_fingerprint":"FP"', text)
    return re.sub(r'"created":\d+', '"created":0', text)


def answer_to(client: Any, path: str, request: dict[str, Any]) -> dict[str, Any]:
    reply = client.post(path, json=request)
    text = normalise(reply.text)
    if request.get("stream") and reply.status_code == 200:
        answer: object = [line for line in text.split("\n") if line]
    else:
        answer = json.loads(text)
    return {"path": path, "request": request, "status": reply.status_code, "answer": answer}


@pytest.mark.parametrize("line", LINES, ids=[str(index) for index in range(len(LINES))])
def test_the_wire_is_as_recorded(make_client: MakeClient, line: dict[str, Any]) -> None:
    engine = FakeEngine(("Hel", 'lo \n"ü"\u2028'))
    engine.num_cached_tokens = 1

    got = answer_to(make_client(engine), line["path"], line["request"])

    # As text, because the order of fields is part of what people read in logs and examples.
    assert json.dumps(got) == json.dumps(line)
