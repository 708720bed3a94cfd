"""GuideLLM, another load generator: `pippin bench-serve` comes to the same figures on one server.

It lives in an environment of its own, found by ``$PIPPIN_GUIDELLM`` or in the path. It is asked to
use Responses, as its streams of the other APIs need an extension that this server refuses.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import string
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_server import LiveServer, serve
from scripted_model import write_scripted_model

from pippin.core.config import CacheConfig, EngineConfig
from pippin.core.engine.async_engine import AsyncEngine
from pippin.core.engine.schedule import Schedule
from pippin.core.runner.paged_runner import PagedRunner
from pippin.server.config import ServerConfig

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
STEP_S, PREFILL_TOKEN_S = 0.03, 0.0005
NUM_TOKENS = 48  # with the one that ends the answer
TOLERANCE = 0.03
TRIES = 3


@pytest.fixture
def paced_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveServer]:
    """A real engine whose steps take as long as they are told to, however busy the machine is."""
    execute = PagedRunner.execute
    free_at = 0.0

    def execute_in_time(runner: PagedRunner, schedule: Schedule, *rest: Any) -> Any:
        nonlocal free_at
        step_s = STEP_S + PREFILL_TOKEN_S * schedule.num_prefill_tokens
        free_at = max(free_at, time.monotonic()) + step_s
        step = execute(runner, schedule, *rest)
        time.sleep(max(0.0, free_at - time.monotonic()))
        return step

    monkeypatch.setattr(PagedRunner, "execute", execute_in_time)
    script = string.ascii_lowercase * 2
    model = tmp_path / "model"
    write_scripted_model(model, {"": script[: NUM_TOKENS - 1]}, chat_template=TEMPLATE)
    config = EngineConfig(cache=CacheConfig(max_bytes=64 << 20), max_model_len=1024)
    engine = AsyncEngine.start(str(model), config, served_model_name="paced")
    try:
        with serve(engine, ServerConfig(port=0)) as live:
            yield live
    finally:
        engine.close()


def find_guidellm() -> str:
    """Where it is."""
    found = os.environ.get("PIPPIN_GUIDELLM") or shutil.which("guidellm")
    if found is None:
        pytest.skip("guidellm is not installed")
    return found


def write_prompts(path: Path) -> Path:
    """Prompts of one length that no cache has seen."""
    draw = random.Random(str(path))
    lines = ("".join(draw.choices(string.ascii_lowercase, k=200)) for _ in range(64))
    path.write_text("\n".join(lines))
    return path


def run_theirs(
    guidellm: str, url: str, prompts: Path, profile: str, count: int
) -> dict[str, float]:
    backend = {
        "kind": "openai_http",
        "target": url,
        "model": "paced",
        "request_format": "/v1/responses",
        "max_tokens": NUM_TOKENS,
    }
    report = prompts.with_suffix(".json")
    command = [guidellm, "run", "--backend", json.dumps(backend), "--disable-console"]
    command += ["--profile", profile]
    command += ["--constraint", f"kind=max_requests,count={count}"]
    command += ["--data", f"kind=text_file,path={prompts}"]
    command += ["--output", f"kind=json,path={report}"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=200)
    benchmark = json.loads(report.read_text())["benchmarks"][0]
    metrics = benchmark["metrics"]
    assert metrics["request_totals"]["successful"] == count

    def mean(name: str) -> float:
        value: float = metrics[name]["successful"]["mean"]
        return value

    return {
        "ttft_ms": mean("time_to_first_token_ms"),
        "tpot_ms": mean("inter_token_latency_ms"),
        "e2e_ms": mean("request_latency") * 1000,
        "requests_s": count / benchmark["duration"],
        "output_tokens_s": mean("output_tokens_per_second"),
        "input_tokens": metrics["prompt_token_count"]["successful"]["total_sum"],
    }


def run_ours(url: str, prompts: Path, load: str, count: int) -> dict[str, float]:
    command = [str(Path(sys.executable).with_name("pippin")), "bench-serve", "--url", url]
    command += ["--workload", "prompts", "--file", str(prompts), "--no-unique-prefix"]
    command += ["--output-tokens", str(NUM_TOKENS), "--warmup", "0", "--output", "json"]
    command += [*load.split(), "--num-requests", str(count)]
    said = subprocess.run(command, check=True, capture_output=True, timeout=200).stdout
    figures: dict[str, Any] = json.loads(said)["levels"][0]["figures"][0]
    return {
        **{name: figures[name]["mean"] for name in ("ttft_ms", "tpot_ms", "e2e_ms")},
        **{name: figures[name] for name in ("requests_s", "output_tokens_s", "input_tokens")},
    }


# Several at once begin in step or not, by chance, and wait for each other accordingly. At a
# constant rate they meet the steps of the engine at all moments, whoever sends them.
@pytest.mark.parametrize(
    ("profile", "load", "count"),
    [
        ("kind=concurrent,streams=1", "--concurrency 1", 8),
        ("kind=constant,rate=1.7", "--request-rate 1.7 --arrival constant", 40),
    ],
)
def test_both_come_to_the_same(
    paced_server: LiveServer, tmp_path: Path, profile: str, load: str, count: int
) -> None:
    guidellm = find_guidellm()
    url = paced_server.url
    tries = []
    for number in range(TRIES):  # something else may run on this machine
        prompts = [write_prompts(tmp_path / f"{whose}{number}.txt") for whose in ("ours", "theirs")]
        theirs = run_theirs(guidellm, url, prompts[0], profile, count)
        ours = run_ours(url, prompts[1], load, count)
        tries.append({name: (value, ours[name]) for name, value in theirs.items()})
        if all(abs(mine / other - 1) < TOLERANCE for other, mine in tries[-1].values()):
            print(tries[-1])
            return
    pytest.fail(f"theirs and ours: {tries}")
