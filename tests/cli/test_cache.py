"""`pippin cache` as people type it: tables, JSON, and one line where something is wrong."""

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import typer
from disk_records import NAMESPACE, OTHER, key_of, make_record
from typer.testing import CliRunner

from pippin.cli.cache import parse_age
from pippin.cli.cache_run import format_age
from pippin.cli.main import app
from pippin.core.cache.disk.folder import TierFolder
from pippin.core.cache.disk.maintenance import list_namespaces
from pippin.core.cache.disk.store import RecordStore

Pippin = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A text of four blocks with a checkpoint, and another model's block."""
    with closing(RecordStore(tmp_path)) as store:
        for number in range(4):
            store.write(NAMESPACE, make_record(number, parent=number - 1 if number else None))
        store.write(NAMESPACE, make_record(3, kind="state"))
        store.write(OTHER, make_record(7))
        store.touch(NAMESPACE.digest, [(key_of(0), 2)])
    return tmp_path


@pytest.fixture
def pippin(folder: Path) -> Pippin:
    """Runs a command on the folder; its stdout."""

    def run(*args: str, code: int = 0) -> str:
        result = CliRunner().invoke(
            app, ["cache", *args], env={"PIPPIN_KV_DISK_DIR": str(folder)}, prog_name="pippin"
        )
        assert result.exit_code == code, result.output
        return result.stdout

    return run


def test_ls_shows_every_namespace(pippin: Pippin) -> None:
    header, ours, other = sorted(pippin("ls").splitlines(), key=lambda line: line[:2] != "na")
    assert header.split()[:4] == ["namespace", "model", "layout", "dtype"]
    assert ours.split() == [
        *(NAMESPACE.digest[:8], "tiny", "2", "full", "float32", "32", "4", "1", "128"),
        *("60.0", "KiB", "2", "just", "now"),
    ]
    assert other.split()[1] == "other"


def test_ls_as_json_has_everything(pippin: Pippin) -> None:
    ours, other = json.loads(pippin("ls", "--json"))
    assert (ours["model"], other["model"]) == ("tiny", "other")
    assert ours["records"] == {"block:0": 4, "state": 1}
    assert ours["num_tokens"] == 128


def test_an_empty_folder_is_no_error(tmp_path: Path) -> None:
    for args in (["ls"], ["ls", "--json"], ["verify"], ["clear"]):
        result = CliRunner().invoke(
            app, ["cache", *args, "--kv-disk-dir", str(tmp_path / "none")], prog_name="pippin"
        )
        assert result.exit_code == 0
    assert not (tmp_path / "none").exists()


def test_inspect_shows_facts_ages_and_prefixes(pippin: Pippin) -> None:
    shown = pippin("inspect", "tiny")
    assert "4 blocks, 1 checkpoints" in shown
    assert "within 1 hour   5" in shown
    assert "0-32 tokens  60.0 KiB  2 hits  0 1\n" in shown
    by_digest = json.loads(pippin("inspect", NAMESPACE.digest[:6], "--json"))
    [prefix] = by_digest["prefixes"]
    assert (prefix["text"], prefix["num_records"], prefix["branches"]) == ("0 1", 5, [])


def test_inspect_decodes_with_the_models_tokenizer(folder: Path, pippin: Pippin) -> None:
    vocabulary = {"hello": 7, "world": 8}
    (folder / "tokenizer.json").write_text(
        json.dumps({"model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "hello"}})
    )
    namespace = type(NAMESPACE)(
        model="words",
        fingerprint="w",
        layout="",
        block_size=32,
        dtype="",
        model_path=str(folder),
    )
    with closing(RecordStore(folder)) as store:
        store.write(namespace, make_record(7))
    assert json.loads(pippin("inspect", "words", "--json"))["prefixes"][0]["text"] == "hello world"


@pytest.mark.parametrize("args", [[], ["nobody"]])
def test_inspect_of_nothing_or_of_several_is_told(pippin: Pippin, args: list[str]) -> None:
    assert pippin("inspect", *args, code=1) == ""


def test_prune_deletes_what_it_says(folder: Path, pippin: Pippin) -> None:
    would = json.loads(pippin("prune", "--model", "tiny", "--dry-run", "--json"))
    assert would == {"num_records": 5, "num_bytes": 61_440, "dry_run": True}
    assert len(list_namespaces(folder)) == 2
    assert pippin("prune", "--older-than", "1d") == "deleted 0 records, 0 B\n"
    assert pippin("prune", "--max-size", "48KiB") == "deleted 2 records, 24.0 KiB\n"
    assert pippin("prune", "--model", "tiny", "--orphaned") == "deleted 0 records, 0 B\n"
    assert pippin("prune", "--model", "tiny") == "deleted 3 records, 36.0 KiB\n"
    assert [s.namespace for s in list_namespaces(folder)] == [OTHER]
    assert pippin("clear") == "deleted 1 records, 12.0 KiB\n"
    assert list_namespaces(folder) == []


@pytest.mark.parametrize(
    "args", [[], ["--older-than", "soon"], ["--max-size", "many"], ["--older-than", "3"]]
)
def test_prune_without_a_condition_or_with_a_wrong_one_is_misuse(
    pippin: Pippin, folder: Path, args: list[str]
) -> None:
    assert pippin("prune", *args, code=2) == ""
    assert len(list_namespaces(folder)) == 2


def test_verify_tells_what_it_found(pippin: Pippin, folder: Path) -> None:
    path = TierFolder(folder).record_path(NAMESPACE.digest, key_of(2))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    TierFolder(folder).record_path(OTHER.digest, key_of(7)).unlink()
    assert pippin("verify").splitlines() == [
        "read 5 records, 60.0 KiB",
        "1 damaged, deleted",
        "1 in the index without a file, removed",
    ]
    assert json.loads(pippin("verify", "--json")) == {
        **{"records": 4, "bytes": 49_152, "damaged": 0, "unreadable": 0},
        **{"adopted": 0, "removed_files": 0, "removed_rows": 0},
    }


@pytest.mark.parametrize(
    ("text", "seconds"), [("30d", 2_592_000), ("1.5h", 5400), ("2w", 1_209_600), ("45s", 45)]
)
def test_ages_read_as_they_are_written(text: str, seconds: float) -> None:
    assert parse_age(text) == seconds


@pytest.mark.parametrize("text", ["", "d", "30", "-1d", "1 d", "1y"])
def test_what_is_no_age_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_age(text)


def test_ages_are_shown_in_the_largest_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1e9)
    times: dict[float | None, str] = {None: "never", 1e9 + 5: "just now", 1e9 - 61: "1 min ago"}
    times |= {1e9 - 7300: "2 h ago", 1e9 - 90_000: "1 d ago"}
    assert {at: format_age(at) for at in times} == times


def test_help_loads_nothing_heavy() -> None:
    code = """
import sys
from pippin.cli.main import app
try:
    app(["cache", "prune", "--help"])
except SystemExit:
    print(sorted(set(sys.modules) & {"mlx", "numpy", "httpx", "sqlite3", "xxhash"}))
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
