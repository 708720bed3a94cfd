"""Answers never depend on what lies in the folder of the disk cache, or on what became of it."""

from __future__ import annotations

import asyncio
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from engine_driver import greedy
from live_server import serve
from small_disk import fill, mounted_disk
from tiny_models import save_tiny_model

from pippin.core.cache.disk.maintenance import list_namespaces, verify
from pippin.core.config import CacheConfig, EngineConfig, KVBits
from pippin.core.engine.async_engine import AsyncEngine
from pippin.core.engine.stats import StepStats
from pippin.core.messages import TokensPrompt

PERF = Path(__file__).parents[1] / "perf"
BLOCK = 16
NUM_TOKENS = 12
PROMPTS = [
    [(7 * i + number * number) % 200 for i in range(length)]
    for number, length in enumerate((40, 160, 161, 333))
]
MODELS = ("llama-tied", "lfm2")
WIDE = "qwen3"  # heads that can be kept in 8 bits


@dataclass
class Run:
    """One start of an engine."""

    engine: AsyncEngine
    steps: list[StepStats] = field(default_factory=list)

    def ask(self, prompts: Sequence[Sequence[int]] = PROMPTS) -> list[tuple[int, ...]]:
        """Greedy answers, all at once."""

        async def one(number: int, prompt: Sequence[int]) -> tuple[int, ...]:
            generation = await self.engine.submit(
                TokensPrompt(prompt), greedy(NUM_TOKENS), request_id=f"{time.monotonic()}-{number}"
            )
            drawn = [output async for outputs in generation for output in outputs]
            return tuple(token for output in drawn for token in output.token_ids)

        async def together() -> list[tuple[int, ...]]:
            return await asyncio.gather(*(one(i, prompt) for i, prompt in enumerate(prompts)))

        return asyncio.run(together())

    def total(self, name: str) -> int:
        """Of all steps so far."""
        return sum(getattr(step, name) for step in self.steps)


@contextmanager
def start(
    model: Path,
    folder: Path | None,
    *,
    max_bytes: int = 64 << 20,
    block_size: int = BLOCK,
    kv_bits: KVBits | None = None,
) -> Iterator[Run]:
    cache = CacheConfig(
        block_size=block_size,
        max_bytes=16 << 20,
        kv_bits=kv_bits,
        disk_folder=folder,
        disk_bytes=max_bytes,
    )
    engine = AsyncEngine.start(str(model), EngineConfig(max_model_len=512, cache=cache))
    run = Run(engine)
    engine.observe(run.steps.append)
    try:
        yield run
    finally:
        engine.close()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("models")
    named = {name: save_tiny_model(name, base / name) for name in (*MODELS, WIDE)}
    return {**named, "other": save_tiny_model("llama-tied", base / "other", seed=1)}


@pytest.fixture(scope="module")
def expected(models: dict[str, Path]) -> dict[str, list[tuple[int, ...]]]:
    """What each model answers without a disk cache."""
    found = {}
    for name, model in models.items():
        with start(model, None) as run:
            found[name] = run.ask()
    return found


@pytest.fixture(scope="module")
def filled(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which llama-tied has left what it computed."""
    folder = tmp_path_factory.mktemp("filled") / "kv"
    with start(models["llama-tied"], folder) as run:
        run.ask()
    assert list_namespaces(folder)[0].records["block:0"] >= 40
    return folder


def records(folder: Path) -> list[Path]:
    return sorted(folder.glob("v*/*/?/?/*"))


@pytest.mark.parametrize("name", MODELS)
def test_a_repeat_after_a_restart_computes_a_block_at_most(
    name: str,
    models: dict[str, Path],
    expected: dict[str, list[tuple[int, ...]]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with start(models[name], tmp_path / "kv") as run:
        assert run.ask() == expected[name]
        assert run.total("num_disk_hits") == 0
        assert run.ask() == expected[name]
        again = run.total("num_prefill_tokens")
    whole = sum((len(prompt) - 1) // BLOCK * BLOCK for prompt in PROMPTS)
    caplog.set_level(logging.DEBUG, logger="pippin.core.engine.scheduler")
    with start(models[name], tmp_path / "kv") as run, serve(run.engine) as server:
        assert run.ask() == expected[name]
        computed = run.total("num_prefill_tokens")
        assert computed == sum(len(prompt) - 1 for prompt in PROMPTS) - whole
        assert run.total("num_prefix_hits") == whole
        # No two prompts begin alike, so the memory had nothing.
        assert run.total("num_disk_hits") == whole
        assert f"blocks={333 // BLOCK} from_disk={333 // BLOCK} of={333 // BLOCK}" in caplog.text
        assert run.ask() == expected[name]
        assert run.total("num_prefill_tokens") == 2 * computed
        assert run.total("num_disk_hits") == whole
        health = httpx.get(f"{server.url}/health").json()["disk_cache"]
        assert (health["folder"], health["spilled"]) == (str(tmp_path / "kv"), 0)
        assert health["restored"] >= whole // BLOCK
        metrics = httpx.get(f"{server.url}/metrics").text
        assert f"pippin_disk_restored_records_total {health['restored']}.0" in metrics
        assert ("pippin_checkpoints " in metrics) == (name == "lfm2")
    assert again >= computed


def flip(folder: Path) -> None:
    for path in records(folder):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)


def truncate(folder: Path) -> None:
    for path in records(folder):
        path.write_bytes(path.read_bytes()[:-1000])


def permute(folder: Path) -> None:
    """Each name gets the next one's content."""
    paths = records(folder)
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, [*contents[1:], contents[0]], strict=True):
        path.write_bytes(content)


def lose_index(folder: Path) -> None:
    for path in folder.glob("v*/index.sqlite*"):
        path.unlink()


def spoil_index(folder: Path) -> None:
    for path in folder.glob("v*/index.sqlite*"):
        path.write_bytes(b"nonsense" * 1000)


def lose_records(folder: Path) -> None:
    for path in records(folder):
        path.unlink()


@pytest.mark.parametrize(
    "case",  # what is done, whether anything survives it, and how many warnings it is worth
    [
        (flip, False, 1),
        (truncate, False, 0),  # the index knows the lengths: they are gone before they are read
        (permute, False, 1),
        (lose_index, True, 0),
        (spoil_index, True, 1),
        (lose_records, False, 0),
    ],
)
@pytest.mark.parametrize("when", ["before", "while"])
def test_harm_costs_time_only(
    case: tuple[Callable[[Path], None], bool, int],
    when: str,
    filled: Path,
    models: dict[str, Path],
    expected: dict[str, list[tuple[int, ...]]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    harm, survives, num_warnings = case
    folder = tmp_path / "kv"
    shutil.copytree(filled, folder)
    if when == "before":
        harm(folder)
    with start(models["llama-tied"], folder) as run:
        if when == "while":
            harm(folder)
        assert run.ask() == expected["llama-tied"]
        assert (run.total("num_disk_hits") > 0) == survives
    said = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) <= max(num_warnings, when == "while"), caplog.text
    assert verify(folder).unreadable == []
    found = verify(folder)
    assert (found.damaged, found.repairs.removed_rows) == ([], 0)
    with start(models["llama-tied"], folder) as run:
        assert run.ask() == expected["llama-tied"]
        assert run.total("num_disk_hits") > 0


def test_models_block_sizes_and_bits_share_a_folder_and_nothing_else(
    models: dict[str, Path], expected: dict[str, list[tuple[int, ...]]], tmp_path: Path
) -> None:
    """The two llamas have the same layers, and every prompt is the same for all."""
    kinds: list[tuple[str, int, KVBits | None]] = [
        *(("llama-tied", 16, None), ("other", 16, None), ("lfm2", 16, None), (WIDE, 16, None)),
        *(("llama-tied", 32, None), (WIDE, 16, KVBits(8, 8)), (WIDE, 16, KVBits(8, 4))),
    ]
    for turn in range(2):
        for name, block_size, bits in kinds:
            with start(models[name], None, kv_bits=bits) as run:
                wanted = expected[name] if bits is None else run.ask()
            with start(models[name], tmp_path / "kv", block_size=block_size, kv_bits=bits) as run:
                assert run.ask() == wanted
                assert (run.total("num_disk_hits") > 0) == (turn > 0), (name, block_size, bits)
    assert len(list_namespaces(tmp_path / "kv")) == len(kinds)


def test_a_clock_that_jumps_changes_nothing(
    models: dict[str, Path],
    expected: dict[str, list[tuple[int, ...]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for turn, now in enumerate((4e9, 0.0, -1.0, time.time())):
        clock = SimpleNamespace(time=lambda now=now: now)
        monkeypatch.setattr("pippin.core.cache.disk.store.time", clock)
        with start(models["llama-tied"], tmp_path / "kv", max_bytes=8 << 20) as run:
            assert run.ask() == expected["llama-tied"]
            assert (run.total("num_disk_hits") > 0) == (turn > 0)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted_disk(tmp_path / "disk") as disk:
        yield disk


def test_a_full_disk_is_no_harm(
    small_disk: Path,
    models: dict[str, Path],
    expected: dict[str, list[tuple[int, ...]]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    fill(small_disk)
    for _ in range(2):
        caplog.clear()
        with start(models["llama-tied"], small_disk / "kv", max_bytes=8 << 20) as run:
            assert run.ask() == expected["llama-tied"]
            assert run.total("num_disk_hits") == 0
        said = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(said) == 1, caplog.text


def test_a_disk_that_may_only_be_read_is_read(
    small_disk: Path,
    models: dict[str, Path],
    expected: dict[str, list[tuple[int, ...]]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with start(models["llama-tied"], small_disk / "kv", max_bytes=8 << 20) as run:
        run.ask()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with start(models["llama-tied"], small_disk / "kv", max_bytes=8 << 20) as run:
        assert run.ask() == expected["llama-tied"]
        assert run.total("num_disk_hits") > 0
    said = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 1, caplog.text


@pytest.mark.parametrize("what", ["a file", "below a file", "a name too long"])
def test_a_folder_that_cannot_be_made_is_no_harm(
    what: str,
    models: dict[str, Path],
    expected: dict[str, list[tuple[int, ...]]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = tmp_path / "file"
    file.touch()
    folder = {"a file": file, "below a file": file / "kv"}.get(what, tmp_path / ("x" * 300))
    with start(models["llama-tied"], folder) as run:
        assert run.ask() == expected["llama-tied"]
    said = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 1, caplog.text


@pytest.mark.parametrize(
    "command",
    [
        ["disk_kills.py", "--rounds", "3"],
        ["soak.py", "--requests", "300"],
        ["soak.py", "--requests", "100", "--family", "lfm2"],
    ],
    ids=lambda command: "-".join(command).replace("--", ""),
)
def test_under_fire_in_short(command: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(PERF / command[0]), *command[1:]],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
