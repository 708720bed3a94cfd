"""EleutherAI's evaluation harness: answers of chat and completions, and odds of given ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import LiveServer
from weather import SCHEMA_QUESTION

RIGHT, WRONG = '{"city": "Rome"}', '{"city": "Oslo"}'
GENERATION: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_target": RIGHT,
    "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 48, "do_sample": False},
    "metric_list": [{"metric": "exact_match"}],
}
CHOICE: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_choice": [WRONG, RIGHT],
    "doc_to_target": 1,
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}],
}


@pytest.mark.parametrize(
    ("path", "task", "metric"),
    [
        ("chat/completions", GENERATION, "exact_match,none"),
        ("completions", GENERATION, "exact_match,none"),
        ("completions", CHOICE, "acc,none"),
    ],
)
def test_a_task(
    server: LiveServer, model_folder: Path, tmp_path: Path, path: str, task: Any, metric: str
) -> None:
    if find_spec("lm_eval") is None:
        pytest.skip("lm_eval is not installed")
    is_chat = path.startswith("chat")
    text = SCHEMA_QUESTION
    if not is_chat:
        asked = {"messages": [{"role": "user", "content": text}]}
        text = httpx.post(f"{server.url}/apply-template", json=asked).json()["prompt"]
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"any": 1}\n{"any": 2}\n')
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(questions)}}}
    # JSON is YAML.
    (tmp_path / "task.yaml").write_text(
        json.dumps({"task": "weather", "test_split": "test", "doc_to_text": text, **data, **task})
    )
    arguments = {
        "model": "scripted",
        "base_url": f"{server.url}/v1/{path}",
        "max_retries": 1,
        **({} if is_chat else {"tokenizer_backend": "huggingface", "tokenizer": model_folder}),
    }
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "lm_eval", "run", "--include_path", tmp_path),
            *("--model", "local-chat-completions" if is_chat else "local-completions"),
            *("--model_args", ",".join(f"{name}={value}" for name, value in arguments.items())),
            *("--tasks", "weather", "--output_path", tmp_path / "out"),
            *(["--apply_chat_template"] if is_chat else []),
        ],
        env={
            **os.environ,
            "OPENAI_API_KEY": "none",
            "HF_HOME": str(tmp_path),
            "HF_HUB_OFFLINE": "1",
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    [results] = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(results.read_text())["results"]["weather"][metric] == 1.0
