import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pippin.core.folders import cache_folder
from pippin.core.models.cache_folder import publish_folder


def write_model(folder: Path) -> None:
    (folder / "model").write_text("weights")


def test_the_variable_goes_before_the_platform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPPIN_CACHE_DIR", str(tmp_path))
    assert cache_folder() == tmp_path


def test_linux_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIPPIN_CACHE_DIR")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "pippin"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path.home() / ".cache" / "pippin"


def test_macos_has_its_own_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIPPIN_CACHE_DIR")
    monkeypatch.setattr("sys.platform", "darwin")
    assert cache_folder() == Path.home() / "Library" / "Caches" / "pippin"


def test_a_folder_is_built_once(tmp_path: Path) -> None:
    target = tmp_path / "models" / "a"
    assert publish_folder(target, write_model) == target
    assert (target / "model").read_text() == "weights"
    publish_folder(target, lambda folder: pytest.fail("built twice"))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_build_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fail(folder: Path) -> None:
        write_model(folder)
        raise error

    target = tmp_path / "a"
    with pytest.raises(error):
        publish_folder(target, fail)
    assert [path.name for path in tmp_path.iterdir()] == [".a.lock"]
    publish_folder(target, write_model)
    assert target.is_dir()


def start_builder(target: Path, log: Path, hold_s: float) -> subprocess.Popen[str]:
    code = f"""
import time
from pathlib import Path
from pippin.core.models.cache_folder import publish_folder
log = Path({str(log)!r})
def say(word):
    with log.open("a") as file:
        file.write(word + "\\n")
def build(folder):
    (folder / "model").write_text("weights")
    say("built")
    time.sleep({hold_s})
publish_folder(Path({str(target)!r}), build, on_wait=lambda: say("waited"))
say("done")
"""
    return subprocess.Popen([sys.executable, "-P", "-c", code], text=True)


def wait_for(log: Path, word: str) -> None:
    deadline = time.monotonic() + 20
    while not (log.exists() and word in log.read_text()):
        assert time.monotonic() < deadline, f"never {word}"
        time.sleep(0.01)


def test_two_processes_build_once(tmp_path: Path) -> None:
    target, log = tmp_path / "a", tmp_path / "log"
    first = start_builder(target, log, hold_s=0.5)
    wait_for(log, "built")
    second = start_builder(target, log, hold_s=0.5)
    assert (first.wait(20), second.wait(20)) == (0, 0)
    assert log.read_text().split().count("built") == 1
    assert "waited" in log.read_text()


def test_what_a_killed_process_left_is_swept_up(tmp_path: Path) -> None:
    target, log = tmp_path / "a", tmp_path / "log"
    victim = start_builder(target, log, hold_s=60)
    wait_for(log, "built")
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait(20)
    assert not target.exists()
    assert len(list(tmp_path.glob(".a.part-*"))) == 1
    publish_folder(target, write_model)
    assert not list(tmp_path.glob(".a.part-*"))
    assert (target / "model").exists()
