import json
from pathlib import Path
from typing import Any

import pytest

from pippin.core.errors import ModelLoadError
from pippin.core.models.model_folder import (
    check_tokenizer_files,
    context_length,
    find_weight_files,
    read_config,
)


def write_config(folder: Path, content: Any) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "config.json").write_text(text)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{broken", "not valid JSON"),
        ([1], "names no model_type"),
        ({}, "names no model_type"),
        ({"model_type": 3}, "names no model_type"),
        ({"model_type": "x", "model_file": "evil.py"}, "brings its own model code"),
    ],
)
def test_bad_configs_are_told_apart(tmp_path: Path, content: Any, said: str) -> None:
    write_config(tmp_path, content)
    with pytest.raises(ModelLoadError, match=said):
        read_config(tmp_path)


def test_a_folder_of_ggufs_points_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    with pytest.raises(ModelLoadError, match=r"no config\.json.*\.gguf file"):
        read_config(tmp_path)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"no model\*\.safetensors"):
        find_weight_files(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ModelLoadError, match=r"mlx_lm\.convert"):
        find_weight_files(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    (tmp_path / names[0]).touch()
    index = {"weight_map": {"a": names[0], "b": names[1], "c": names[2]}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelLoadError, match=r"00002-of-00003.*and 1 more"):
        find_weight_files(tmp_path)
    (tmp_path / names[1]).touch()
    (tmp_path / names[2]).touch()
    assert [path.name for path in find_weight_files(tmp_path)] == names


def test_a_missing_tokenizer_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="holds no tokenizer"):
        check_tokenizer_files(tmp_path)
    (tmp_path / "tokenizer.json").touch()
    check_tokenizer_files(tmp_path)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_position_embeddings": 4096}, 4096),
        ({"text_config": {"max_position_embeddings": 128}}, 128),
        ({"max_seq_len": 7, "max_position_embeddings": None}, 7),
        ({"max_position_embeddings": 0}, None),
        ({}, None),
    ],
)
def test_context_length_is_found_where_it_stands(
    config: dict[str, Any], expected: int | None
) -> None:
    assert context_length(config) == expected
