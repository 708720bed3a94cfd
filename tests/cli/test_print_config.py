"""`pippin serve --print-config`: what holds, where it comes from, and that it can be read again."""

import os
import pty
import subprocess
import sys
import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pippin.cli.main import app
from pippin.cli.print_config import print_settings
from pippin.cli.setting import Setting
from pippin.cli.settings import SERVE_SETTINGS, LogLevel, ServeSettings
from pippin.cli.settings_file import load_settings
from pippin.core.config import Speculation

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
PATH = TEXT.filter(lambda text: not text.startswith("~"))
SPECIAL: dict[str, st.SearchStrategy[Any]] = {
    "kv_bits": st.sampled_from(["off", "8", "4", "8,4"]),
    "block_size": st.sampled_from([1, 16, 64]),
    "kv_disk_dir": PATH,
    "kv_disk_size": st.just(0) | st.integers(8 << 20, 1 << 45),
    "response_store": PATH,
    "log_level": st.sampled_from(LogLevel),
    "speculation": st.sampled_from([Speculation.OFF, Speculation.NGRAM]),
    "draft_model": st.none(),
    "api_key": st.lists(st.text("abc-\"'\\#", min_size=1), max_size=3).map(tuple),
}


def values_of(setting: Setting) -> st.SearchStrategy[Any]:
    """Any that a server would start with."""
    low, high = int(setting.about.minimum or 1), int(setting.about.maximum or 1 << 50)
    by_type: dict[type, st.SearchStrategy[Any]] = {
        int: st.integers(low, high) | st.sampled_from([low, min(high, 3 << 30)]),
        float: st.floats(0, high),
        str: TEXT,
        tuple: st.lists(TEXT, max_size=3).map(tuple),
    }
    values = SPECIAL[setting.name] if setting.name in SPECIAL else by_type[setting.type]
    return st.none() | values if setting.default is None else values


def run(*args: str, **env: str) -> str:
    result = CliRunner().invoke(app, ["serve", "--print-config", *args], env=env)
    assert result.exit_code == 0, result.output
    return result.stdout


@settings(max_examples=100, deadline=None)
@given(
    st.fixed_dictionaries({name: values_of(it) for name, it in SERVE_SETTINGS.items()}),
    st.text(max_size=9),
)
def test_what_is_printed_gives_the_same_settings(values: dict[str, Any], origin: str) -> None:
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        path = Path(folder, "printed.toml")
        with path.open("w", encoding="utf-8") as file:
            patch.setattr(sys, "stdout", file)
            print_settings(ServeSettings(**values), dict.fromkeys(SERVE_SETTINGS, origin))
        assert load_settings({}, path) == ServeSettings(**values)


def test_it_holds_every_setting_and_says_where_each_comes_from(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text('[serve]\nport = 1\nhost = "::1"\nkv-disk-size = "2GiB"\n')
    lines = run(
        *("org/x", "--config", str(path), "--port", "2", "--alias", "a"),
        PIPPIN_PORT="3",
        PIPPIN_MAX_QUEUE="4",
    ).splitlines()
    assert 'model = "org/x"  # MODEL' in lines
    assert "port = 2  # --port" in lines
    assert "max-queue = 4  # PIPPIN_MAX_QUEUE" in lines
    assert f'host = "::1"  # {path}' in lines
    assert f'kv-disk-size = "2GiB"  # {path}' in lines
    assert "]  # --alias" in lines
    assert "max-num-seqs = 64  # default" in lines
    assert "# max-model-len is not set: what model and memory allow" in lines
    written = tomllib.loads("\n".join(lines))["serve"]
    unset = {line.split()[1] for line in lines if " is not set: " in line}
    assert written.keys() | unset == {it.key for it in SERVE_SETTINGS.values()}


def test_it_can_be_piped_into_itself(tmp_path: Path, binary: str) -> None:
    command = (
        f"{binary} serve demo --api-key k --port 7 --print-config | "
        f"{binary} serve --config /dev/stdin --print-config"
    )
    ended = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, check=True, timeout=60
    )
    path = tmp_path / "printed.toml"
    path.write_text(ended.stdout)
    assert load_settings({}, path) == ServeSettings(port=7, api_key=("k",))
    assert "port = 7  # /dev/stdin" in ended.stdout


def on_a_terminal(*command: str, **env: str) -> str:
    """What a command prints there."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdout=theirs, env={**os.environ, **env}) as process:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 4096):
                shown += part
        except OSError:  # Linux's way to say that the other end is closed
            pass
    os.close(ours)
    assert process.returncode == 0
    return shown.decode().replace("\r\n", "\n")


def test_a_terminal_is_shown_no_key_and_no_server_starts_without(
    tmp_path: Path, binary: str
) -> None:
    shown = on_a_terminal(binary, "serve", "--print-config", PIPPIN_API_KEY="secret words")
    assert "secret" not in shown
    assert "\x1b" not in shown
    assert "PIPPIN_API_KEY; 2 not shown on a terminal" in shown
    path = tmp_path / "copied.toml"
    path.write_text(shown)
    result = CliRunner().invoke(app, ["serve", "--config", str(path), "--port", "0"])
    assert result.exit_code == 2
    assert "api-key must be non-empty" in result.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--block-size", "33"], "block-size must be a power of two"),
        (["--kv-disk-dir", "~no-such-user/kv"], "~no-such-user/kv: there is no such home folder"),
        (["--api-key", ""], "api-key must be non-empty"),
        (["--served-model-name", "\udcff"], "a setting is no Unicode text"),
    ],
)
def test_settings_that_no_server_starts_with_are_refused(args: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["serve", "--print-config", *args])
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
