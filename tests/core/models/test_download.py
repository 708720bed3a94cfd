"""The hub's client against a small hub of our own on 127.0.0.1.

In processes of their own, because the client reads its address and folders once, at import.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fake_hub import CLOSED, FakeHub, serve_hub

from pippin.core.models.download import hub_is_reachable

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"w" * 300_000,
    "README.md": b"---\nlicense: mit\n---\n",
    "modeling_evil.py": b"raise SystemExit",
    "onnx/config.json": b"{}",
    "pytorch_model.bin": b"x" * 10,
}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with serve_hub(FILES) as running:
        yield running


SCRIPT = """
import json
from pippin.core.errors import DownloadError
from pippin.core.models.download import download_model
from pippin.core.models.progress import NullProgress

class Recorded(NullProgress):
    done = []
    def update(self, done_bytes, *, total_bytes=None):
        self.done.append(done_bytes)

recorded = Recorded()
try:
    folder = download_model("org/name", recorded)
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    print(json.dumps({"files": files, "done": recorded.done}))
except DownloadError as error:
    print(json.dumps({"error": str(error)}))
"""


@pytest.fixture
def fetch(tmp_path: Path) -> "Fetcher":
    return Fetcher(tmp_path)


@dataclass
class Fetcher:
    """Runs `download_model` against an address, with a hub cache of the test's own."""

    home: Path

    def __call__(self, url: str, **env: str) -> dict[str, object]:
        finished = subprocess.run(
            [sys.executable, "-P", "-c", SCRIPT],
            env={
                **{key: value for key, value in os.environ.items() if "proxy" not in key.lower()},
                "HF_ENDPOINT": url,
                "HF_HOME": str(self.home),
                "HF_HUB_DISABLE_XET": "1",
                **env,
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
        content = json.loads(finished.stdout)
        assert isinstance(content, dict)
        return content


def test_only_model_files_are_fetched_and_counted(hub: FakeHub, fetch: Fetcher) -> None:
    result = fetch(hub.url)
    assert result["files"] == ["README.md", "config.json", "model.safetensors"]
    done = result["done"]
    assert isinstance(done, list)
    assert done == sorted(done)
    assert done[-1] == len(FILES["config.json"]) + len(FILES["model.safetensors"])


def test_what_is_in_the_cache_needs_no_network(hub: FakeHub, fetch: Fetcher) -> None:
    first = fetch(hub.url)["files"]
    hub.asked.clear()
    assert fetch(CLOSED)["files"] == first
    assert fetch(hub.url, HF_HUB_OFFLINE="1")["files"] == first
    assert hub.asked == []


def test_an_unreachable_hub_is_said_within_seconds(fetch: Fetcher) -> None:
    started_at = time.monotonic()
    result = fetch(CLOSED)
    assert "cannot be reached" in str(result["error"])
    assert time.monotonic() - started_at < 15


def test_offline_mode_is_named_as_the_reason(fetch: Fetcher) -> None:
    assert "unset HF_HUB_OFFLINE" in str(fetch(CLOSED, HF_HUB_OFFLINE="1")["error"])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ((403, "GatedRepo"), "accept its licence"),
        ((404, "RepoNotFound"), "has no model org/name"),
        ((401, "RepoNotFound"), "has no model org/name"),
    ],
)
def test_the_hubs_refusals_say_what_to_do(
    hub: FakeHub, fetch: Fetcher, error: tuple[int, str], said: str
) -> None:
    hub.error = error
    message = str(fetch(hub.url)["error"])
    assert said in message
    assert "\n" not in message


def test_a_hub_that_accepts_and_says_nothing_is_not_reachable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("pippin.core.models.download._PROBE_TIMEOUT_S", 0.2)
        started_at = time.monotonic()
        assert not hub_is_reachable()
        assert time.monotonic() - started_at < 5
