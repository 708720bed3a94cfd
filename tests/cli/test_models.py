"""`pippin models` as people type it: what is fetched, listed, named and deleted."""

import fcntl
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_engine import FakeEngine, make_card
from fake_hub import CLOSED, COMMIT, FakeHub, serve_hub
from huggingface_hub import constants
from live_server import serve
from tiny_models import save_tiny_model
from typer.testing import CliRunner, Result

from pippin.cli.main import app
from pippin.core.models.hub_files import repo_folder

MAIN = "model.safetensors"
CARD = b"---\nlicense: MIT\n---\n# A model\n"


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A repository with a model that loads."""
    folder = save_tiny_model("llama-tied", tmp_path_factory.mktemp("tiny") / "m")
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {**found, "README.md": CARD, "modeling_evil.py": b"raise SystemExit"}


@pytest.fixture
def hub(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serve_hub(files) as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = f"{running.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        # What has come of a piece of this size is written.
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)
        yield running


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nobody's cache, aliases, hub or server."""
    monkeypatch.setenv("PIPPIN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PIPPIN_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", CLOSED)
    monkeypatch.setattr("pippin.cli.models.command._DEFAULT_URL", CLOSED)
    return tmp_path


Models = Callable[..., Result]


@pytest.fixture
def models() -> Models:
    def run(*args: str, code: int = 0, said: str = "", stdin: str | None = None) -> Result:
        result = CliRunner().invoke(app, ["models", *args], prog_name="pippin", input=stdin)
        assert result.exit_code == code, result.output
        if code:
            errors = [x for x in result.stderr.splitlines() if not x.startswith("fetching ")]
            assert len(errors) == 1, result.stderr
        assert said in result.output
        return result

    return run


def test_help_loads_nothing_heavy() -> None:
    code = """
import sys
from pippin.cli.main import app
try:
    app(["models", "convert", "--help"])
except SystemExit as end:
    heavy = {"mlx", "httpx", "transformers", "huggingface_hub", "numpy", "prompt_toolkit"}
    sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else end.code)
"""
    subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True)


def test_pull_fetches_checks_and_says_so(hub: FakeHub, models: Models) -> None:
    models("pull", "org/name", said="fetched 5 files")
    folder = repo_folder("org/name") / "snapshots" / COMMIT
    assert (folder / MAIN).read_bytes() == hub.files[MAIN]
    assert not (folder / "modeling_evil.py").exists()
    hub.asked.clear()
    models("pull", "org/name", said="there already")
    assert not hub.asked_for(MAIN)
    report = json.loads(models("pull", "org/name", "--verify", "--json").stdout)
    assert (report["num_fetched_files"], report["num_verified_files"]) == (0, 5)
    assert report["revision"] == COMMIT


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub: FakeHub, models: Models) -> None:
    hub.send_at_most, hub.num_breaks = 1000, 1
    models("pull", "org/name", said="fetched")
    assert hub.ranges == ["bytes=1000-"]
    models("pull", "org/name", "--verify", said="checksums compared")


def test_a_later_try_goes_on_with_what_an_earlier_one_left(hub: FakeHub, models: Models) -> None:
    blobs = repo_folder("org/name") / "blobs"
    hub.send_at_most, hub.num_breaks = 1000, 1
    hub_says_no = threading.Timer(0.3, lambda: setattr(hub, "error", (500, "")))
    hub_says_no.start()
    models("pull", "org/name", code=1, said="try again to resume")
    hub_says_no.join()
    (part,) = blobs.glob("*.incomplete")
    assert part.stat().st_size == 1000
    models("ls", said="`pippin models pull org/name` goes on")
    hub.error = None
    hub.ranges.clear()
    models("pull", "org/name", said="fetched 5 files")
    assert hub.ranges == ["bytes=1000-"]
    assert not list(blobs.glob("*.incomplete"))


def test_what_is_not_what_the_hub_says_is_not_kept(hub: FakeHub, models: Models) -> None:
    hub.damaged = {MAIN}
    models("pull", "org/name", code=1, said="is not what the hub says")
    assert not list(repo_folder("org/name").glob("blobs/*"))
    hub.damaged = {"config.json"}
    models("pull", "org/name", code=1, said="config.json of org/name is not what")


def test_verify_fetches_damaged_files_again(hub: FakeHub, models: Models) -> None:
    models("pull", "org/name")
    folder = repo_folder("org/name") / "snapshots" / COMMIT
    for name in (MAIN, "config.json"):
        content = bytearray(hub.files[name])
        content[-1] ^= 1
        (folder / name).write_bytes(content)
    models("pull", "org/name", said="there already")
    models("pull", "org/name", "--verify", said="fetched 2 files")
    for name in (MAIN, "config.json"):
        assert (folder / name).read_bytes() == hub.files[name]


def test_a_file_of_a_wrong_size_is_fetched_again(hub: FakeHub, models: Models) -> None:
    models("pull", "org/name")
    (repo_folder("org/name") / "snapshots" / COMMIT / MAIN).write_bytes(b"short")
    models("pull", "org/name", said="fetched 1 file,")


@pytest.mark.parametrize(
    ("what", "error", "said"),
    [
        ("file_error", (401, "GatedRepo"), "accept its licence"),
        ("file_error", (403, "GatedRepo"), "hf auth login"),
        ("error", (401, "RepoNotFound"), "has no model org/name"),
        ("error", (500, ""), "try again"),
    ],
)
def test_refusals_say_what_to_do(
    hub: FakeHub, models: Models, what: str, error: tuple[int, str], said: str
) -> None:
    setattr(hub, what, error)
    models("pull", "org/name", code=1, said=said)


def test_a_revision_must_be_there(hub: FakeHub, models: Models) -> None:
    models("pull", "org/name", "--revision", COMMIT, said=COMMIT[:12])
    models("pull", "org/name", "--revision", "v2", code=1, said="has no revision v2")


def test_a_repository_without_weights_is_told_before_any_fetching(
    hub: FakeHub, models: Models
) -> None:
    hub.files = {"config.json": b"{}", "model-Q4_0.gguf": b"GGUF"}
    models("pull", "org/name", code=1, said="no safetensors weights; fetch one of its .gguf files")
    assert not repo_folder("org/name").exists()


def test_what_is_there_is_used_whatever_the_hubs_trouble_is(
    hub: FakeHub, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    models("pull", "org/name")
    for error in ((500, ""), (401, "GatedRepo")):
        hub.error = error
        models("pull", "org/name", said="the hub does not tell")
    monkeypatch.setattr(constants, "ENDPOINT", CLOSED)
    models("pull", "org/name", said="the hub does not tell")
    models("pull", "org/name", "--verify", code=1, said="cannot be reached")
    models("pull", "org/other", code=1, said="cannot be reached; check the network")


def test_only_what_the_hub_has_can_be_pulled(models: Models, tmp_path: Path) -> None:
    models("pull", str(tmp_path), code=2, said="on this machine already")
    models("pull", "demo", "--verify", code=2, said="demo model has no")
    models("pull", "nothing", code=1, said="no model 'nothing'")


def test_ls_shows_all_places(hub: FakeHub, models: Models, folders: Path) -> None:
    models("ls", said="no models yet")
    models("pull", "org/name")
    models("alias", "tiny", "org/name")
    save_tiny_model("llama-tied", folders / "cache" / "models" / "mine")
    (folders / "cache" / "models" / ".half.part-x").mkdir()
    (folders / "cache" / "models" / "broken").mkdir()
    card = make_card(details={"model_type": "llama", "quantization": "4-bit", "weight_bytes": 2048})
    with serve(FakeEngine([], card=card)) as server:
        shown = models("ls", "--url", server.url).stdout
        entries = json.loads(models("ls", "--url", f"{server.url}/v1", "--json").stdout)
    by_name = {entry["name"]: entry for entry in entries}
    assert list(by_name) == ["broken", "mine", "org/name", "tiny/model"]
    for name in by_name:
        assert name in shown
    assert "org/name (tiny)" in shown
    assert by_name["broken"]["problem"] == "it holds no config.json"
    ours, remote = by_name["org/name"], by_name["tiny/model"]
    expected = {"place": "hub", "context": 4096, "licence": "mit", "modality": "text"}
    assert ours.items() >= expected.items()
    assert ours["revisions"] == [COMMIT]
    assert ours["bytes"] >= len(hub.files[MAIN])
    expected = {"place": "server", "quantization": "4-bit", "bytes": 2048, "context": 4096}
    assert remote.items() >= expected.items()


def test_a_server_that_is_named_must_answer(models: Models) -> None:
    models("ls", "--url", CLOSED, code=1, said=f"no server lists its models at {CLOSED}")
    models("ls", "--url", "nonsense", code=1, said="no server lists its models")


def test_the_default_server_is_listed_if_there_is_one(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(FakeEngine([])) as server:
        monkeypatch.setattr("pippin.cli.models.command._DEFAULT_URL", server.url)
        models("ls", said="tiny/model")


def test_aliases_are_made_shown_and_removed(models: Models, folders: Path) -> None:
    save_tiny_model("llama-tied", folders / "here")
    models("alias", said="no aliases yet")
    models("alias", "one", "org/name", said="org/name")
    models("alias", "two", "one")
    models("alias", "dir", str(folders / "here"))
    assert json.loads(models("alias", "two", "--json").stdout) == {"two": "org/name"}
    listed = json.loads(models("alias", "--json").stdout)
    assert listed == {"dir": str(folders / "here"), "one": "org/name", "two": "one"}
    models("show", "dir", said="llama")
    models("alias", "two", "org/other", code=2, said="alias of one already")
    models("alias", "one", "two", code=2, said="alias of org/name already")
    models("alias", "a/b", "org/name", code=2, said="cannot be an alias")
    models("alias", "x", "nothing", code=1, said="no model 'nothing'")
    models("alias", "gone", code=1, said="no alias 'gone'")
    models("alias", "two", "--remove")
    models("alias", "--remove", code=2, said="takes a NAME")
    assert "two" not in models("alias").stdout


def test_a_relative_target_is_kept_as_an_absolute_one(
    models: Models, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny_model("llama-tied", folders / "here")
    monkeypatch.chdir(folders)
    models("alias", "near", "here", said=str(folders / "here"))


def test_rm_asks_and_deletes(hub: FakeHub, models: Models, folders: Path) -> None:
    models("pull", "org/name")
    models("rm", "org/name", code=2, said="give --yes")
    models("alias", "tiny", "org/name")
    assert json.loads(models("rm", "tiny", "--yes", "--json").stdout)["freed_bytes"] > 0
    assert not repo_folder("org/name").exists()
    mine = save_tiny_model("llama-tied", folders / "cache" / "models" / "mine")
    models("rm", "mine", "-y", said="deleted mine")
    assert not mine.exists()
    models("rm", "mine", "-y", code=1, said="there is no model 'mine'")


def test_rm_of_one_revision_leaves_the_others(hub: FakeHub, models: Models) -> None:
    models("pull", "org/name")
    snapshots = repo_folder("org/name") / "snapshots"
    other = snapshots / ("f" * 40)
    other.mkdir()
    (other / "config.json").symlink_to((snapshots / COMMIT / "config.json").resolve())
    models("rm", "org/name", "--revision", "a", "-y", code=1, said="no single revision 'a'")
    models("rm", "org/name", "--revision", "01234", "-y", said=f"org/name at {COMMIT[:12]}")
    assert [path.name for path in snapshots.iterdir()] == ["f" * 40]
    assert (other / "config.json").exists()


def test_rm_leaves_a_download_alone(hub: FakeHub, models: Models) -> None:
    models("pull", "org/name")
    lock = next((Path(constants.HF_HUB_CACHE) / ".locks" / "models--org--name").glob("*.lock"))
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        models("rm", "org/name", "-y", code=1, said="is being fetched")
    models("rm", "org/name", "-y", said="deleted")


def test_rm_takes_what_an_interrupted_download_left(models: Models) -> None:
    blobs = repo_folder("org/half") / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "abc.pippin.incomplete").write_bytes(b"x" * 100)
    models("ls", said="not completely fetched")
    assert json.loads(models("rm", "org/half", "-y", "--json").stdout)["freed_bytes"] == 100
    assert not repo_folder("org/half").exists()


def test_an_interrupted_pull_through_the_binary_goes_on(
    hub: FakeHub, folders: Path, binary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(folders / "hub"))
    # The connection stays open and nothing comes any more, until somebody has had enough.
    hub.send_at_most, hub.num_breaks, hub.stalls = 1000, 1, True
    process = subprocess.Popen([binary, "models", "pull", "org/name"], stderr=subprocess.PIPE)
    while not hub.asked_for(MAIN):
        time.sleep(0.02)
    time.sleep(0.3)
    process.kill()
    process.communicate()
    hub.stalls = False
    finished = subprocess.run(
        [binary, "models", "pull", "org/name"], capture_output=True, text=True, check=True
    )
    assert "fetched 5 files" in finished.stdout
    assert "\x1b" not in finished.stdout + finished.stderr
