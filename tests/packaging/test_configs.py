"""Every shipped settings file starts a server, and the services start the command as it is."""

import os
import plistlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import httpx
import pytest
from tiny_models import save_tiny_model
from typer.testing import CliRunner

from pippin.cli.main import app
from pippin.cli.settings_file import load_settings, shipped_names

CONFIGS = Path(str(files("pippin.configs")))
PIPPIN = str(Path(sys.executable).with_name("pippin"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model("llama-tied", tmp_path_factory.mktemp("configs") / "tiny")


@contextmanager
def served(model: Path, *args: str) -> Iterator[str]:
    """The URL of a `pippin serve` of its own."""
    command = [PIPPIN, "serve", str(model), "--port", "0", *args]
    cache = {"PIPPIN_CACHE_DIR": str(model.parent / "cache")}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200", **cache}
    ) as process:
        assert process.stderr is not None
        try:
            said = ""
            for line in process.stderr:
                said += line
                if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                    break
            assert found is not None, said
            yield found[0]
        finally:
            process.kill()


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_file_starts_a_server(name: str, model: Path) -> None:
    alias = {"agents": "claude-x", "mac-studio": "anything"}.get(name, "tiny")
    body = {"model": alias, "prompt": "the inn", "max_tokens": 1}
    with served(model, "--config", name) as url:
        assert httpx.post(f"{url}/v1/completions", json=body, timeout=60).status_code == 200


def test_every_file_is_in_use() -> None:
    names = {f"{name}.toml" for name in shipped_names()}
    visible = {path.name for path in CONFIGS.iterdir() if not path.name.startswith("_")}
    assert visible == names | {"pippin.service", "pippin.plist"}


def drain_timeout_of(command: str, tmp_path: Path) -> float:
    """What a service's command line would run with."""
    program, *arguments = shlex.split(command)
    assert Path(program).name == "pippin"
    result = CliRunner().invoke(app, [*arguments, "--print-config"])
    assert result.exit_code == 0, result.output
    path = tmp_path / "printed.toml"
    path.write_text(result.stdout)
    return load_settings({}, path).drain_timeout


def test_launchd_starts_it_and_lets_answers_end(tmp_path: Path) -> None:
    content = plistlib.loads((CONFIGS / "pippin.plist").read_bytes())
    *shell, line = content["ProgramArguments"]
    assert shell == ["/bin/zsh", "-lc"]
    found = re.fullmatch(r"exec (pippin .*) 2>> ~/Library/Logs/pippin\.log", line)
    assert found is not None
    assert content["ExitTimeOut"] > drain_timeout_of(found[1], tmp_path)


def test_systemd_starts_it_and_lets_answers_end(tmp_path: Path) -> None:
    lines = (CONFIGS / "pippin.service").read_text().splitlines()
    unit = dict(line.split("=", 1) for line in lines if "=" in line and line[0] != "#")
    assert float(unit["TimeoutStopSec"]) > drain_timeout_of(unit["ExecStart"], tmp_path)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_finds_no_fault(tmp_path: Path) -> None:
    text = (CONFIGS / "pippin.service").read_text()
    path = tmp_path / "pippin.service"
    path.write_text(text.replace("/usr/local/bin/pippin", PIPPIN))
    command = ["systemd-analyze", "verify", "--man=no", str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
