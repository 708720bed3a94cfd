import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import save_tiny_model

from pippin.core.errors import ModelLoadError
from pippin.core.models.demo import demo_folder
from pippin.core.models.loader import LoadedModel
from pippin.core.models.model_facts import (
    quantization_name,
    read_facts,
    read_licence,
    read_weight_facts,
)
from pippin.core.models.safetensors_header import read_tensor_headers


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return save_tiny_model("llama-tied", tmp_path / "tiny")


def test_quantised_weights_are_counted_as_what_they_stand_for(
    demo_path: Path, demo_model: LoadedModel
) -> None:
    weights = read_weight_facts(demo_path)
    assert weights.num_parameters == demo_model.num_parameters
    assert sum(weights.bytes_by_dtype.values()) == weights.num_bytes
    assert 4 < weights.bits_per_weight < 16


def test_the_demo_models_licence_is_known() -> None:
    assert read_licence(demo_folder()) == "apache-2.0"


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({}, None),
        ({"quantization": {"bits": 4, "group_size": 64}}, "4-bit"),
        ({"quantization": {"bits": 4, "mode": "mxfp4"}}, "4-bit mxfp4"),
        ({"quantization": {"bits": 3, "a.b": {"bits": 6}, "c": False}}, "3/6-bit"),
        ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, "fp8"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "4-bit awq"),
    ],
)
def test_quantisation_has_a_short_name(config: dict[str, Any], name: str | None) -> None:
    assert quantization_name(config) == name


@pytest.mark.parametrize(
    ("changes", "files", "modality"),
    [
        ({}, [], "text"),
        ({"vision_config": {"depth": 2}}, [], "text+image"),
        ({"vision_config": {"depth": 2}, "audio_config": {"a": 1}}, [], "text+image+audio"),
        ({}, ["modules.json"], "embedding"),
    ],
)
def test_what_a_model_takes(
    tiny: Path, changes: dict[str, Any], files: list[str], modality: str
) -> None:
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps({**config, **changes}))
    for name in files:
        (tiny / name).touch()
    assert read_facts(tiny).modality == modality


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlanguage: en\nlicense: Apache-2.0\n---\n", "apache-2.0"),
        ("---\nlicense: 'mit'\ntags:\n- x\n---\n", "mit"),
        ("# A model\nlicense: not in the head\n", None),
        ("---\ntags: []\n---\nlicense: below\n", None),
        ("---\nlicense:\n- a\n---\n", None),
    ],
)
def test_the_licence_stands_in_the_cards_head(tmp_path: Path, card: str, licence: str) -> None:
    (tmp_path / "README.md").write_text(card)
    assert read_licence(tmp_path) == licence


def test_dtypes_of_plain_weights_come_from_the_file(tiny: Path) -> None:
    assert read_facts(tiny).quantization == "float32"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08\0\0\0\0\0\0\0{}",
        b"\xff" * 20,
        b"\x02\0\0\0\0\0\0\0[]",
        b'\x0a\0\0\0\0\0\0\0{"a": {} }',
    ],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"not a safetensors file|cut short"):
        read_tensor_headers(path)
