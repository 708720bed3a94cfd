import multiprocessing
from pathlib import Path

import pytest

from pippin.core.errors import ConfigError
from pippin.core.models.aliases import add_alias, follow_aliases, read_aliases, remove_alias
from pippin.core.models.source import SourceKind, resolve_source


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIPPIN_CONFIG_DIR", str(tmp_path / "config"))
    return tmp_path / "config" / "aliases.toml"


def test_an_alias_stands_for_its_target_everywhere(tmp_path: Path) -> None:
    add_alias("qwen3:8b", "mlx-community/Qwen3-8B-4bit")
    add_alias("big", "qwen3:8b")
    (tmp_path / "here").mkdir()
    add_alias("mine", str(tmp_path / "here"))
    source = resolve_source("big")
    assert (source.kind, source.model_id) == (SourceKind.HUB, "mlx-community/Qwen3-8B-4bit")
    assert resolve_source("mine").path == tmp_path / "here"
    assert list(read_aliases()) == ["big", "mine", "qwen3:8b"]


def test_an_alias_is_taken_once(file: Path) -> None:
    add_alias("a", "org/one")
    add_alias("a", "org/one")
    before = file.read_bytes()
    with pytest.raises(ConfigError, match="alias of org/one already"):
        add_alias("a", "org/two")
    assert file.read_bytes() == before
    assert remove_alias("a") == "org/one"
    add_alias("a", "org/two")
    assert read_aliases() == {"a": "org/two"}


def test_circles_are_refused_and_a_written_one_is_named(file: Path) -> None:
    add_alias("a", "b")
    with pytest.raises(ConfigError, match="b -> a -> b"):
        add_alias("b", "a")
    with pytest.raises(ConfigError, match="c -> c"):
        add_alias("c", "c")
    assert read_aliases() == {"a": "b"}
    file.write_text('[aliases]\nx = "y"\ny = "x"\n')
    with pytest.raises(ConfigError, match="x -> y -> x"):
        resolve_source("x")


@pytest.mark.parametrize("name", ["", "a/b", ".hidden", "~x", "a b", "tiny.gguf", "ä"])
def test_names_that_mean_something_else_cannot_be_aliases(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be an alias"):
        add_alias(name, "org/name")


@pytest.mark.parametrize("content", ["[aliases", "aliases = 3", "[aliases]\na = 1", b"\xff"])
def test_a_broken_file_is_named(file: Path, content: str | bytes) -> None:
    file.parent.mkdir()
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=r"aliases\.toml"):
        read_aliases()


def test_paths_and_hub_ids_need_no_file(file: Path) -> None:
    file.parent.mkdir()
    file.write_text("broken")
    assert follow_aliases("org/name") == "org/name"
    with pytest.raises(ConfigError, match="not valid TOML"):
        follow_aliases("name")


def test_what_is_not_there_cannot_be_removed() -> None:
    with pytest.raises(ConfigError, match="no alias 'gone'"):
        remove_alias("gone")


def test_no_alias_is_lost_between_processes() -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_add_ten, args=(first,)) for first in (0, 10, 20)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert read_aliases() == {f"m{i}": f"org/m{i}" for i in range(30)}


def _add_ten(first: int) -> None:
    for number in range(first, first + 10):
        add_alias(f"m{number}", f"org/m{number}")


def test_names_of_models_are_taken(private_cache: Path) -> None:
    (private_cache / "models" / "mine").mkdir(parents=True)
    for name in ("demo", "mine"):
        with pytest.raises(ConfigError, match="name of a model already"):
            add_alias(name, "org/name")


def test_a_model_in_the_cache_folder_goes_by_its_name(private_cache: Path) -> None:
    folder = private_cache / "models" / "Qwen3-8B-4bit"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    source = resolve_source("Qwen3-8B-4bit")
    assert (source.path, source.model_id) == (folder, "Qwen3-8B-4bit")
