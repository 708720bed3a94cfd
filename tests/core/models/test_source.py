from pathlib import Path

import pytest

from pippin.core.errors import ModelLoadError
from pippin.core.models.source import SourceKind, resolve_source


def test_demo_is_the_demo_even_beside_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_source("demo").kind is SourceKind.DEMO
    assert resolve_source("./demo").kind is SourceKind.FOLDER


def test_a_folder_is_named_after_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    source = resolve_source("org/name")
    assert (source.kind, source.model_id) == (SourceKind.FOLDER, "name")
    assert resolve_source(".").model_id == tmp_path.name


def test_a_gguf_file_is_named_without_its_ending(tmp_path: Path) -> None:
    path = tmp_path / "Tiny.Q8_0.GGUF"
    path.touch()
    source = resolve_source(str(path))
    assert (source.kind, source.model_id, source.path) == (SourceKind.GGUF, "Tiny.Q8_0", path)


@pytest.mark.parametrize("text", ["mlx-community/Qwen3-0.6B-4bit", "a/b", "org_1/model.v2"])
def test_two_names_are_a_hub_id(text: str) -> None:
    source = resolve_source(text)
    assert (source.kind, source.model_id) == (SourceKind.HUB, text)


@pytest.mark.parametrize(
    "text", ["nothing", "/no/such/folder", "a/b/c", "../b", "~nobody-here/x", "a//b", "", "ä/b"]
)
def test_anything_else_is_refused_by_name(text: str) -> None:
    # An empty text is the current folder to pathlib; it must not be to us.
    with pytest.raises(ModelLoadError, match="neither a folder"):
        resolve_source(text)


def test_missing_gguf_and_other_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="there is no file"):
        resolve_source(str(tmp_path / "gone.gguf"))
    weights = tmp_path / "model.safetensors"
    weights.touch()
    with pytest.raises(ModelLoadError, match="give the model's folder"):
        resolve_source(str(weights))
