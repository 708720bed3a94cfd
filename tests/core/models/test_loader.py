import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from pippin.core.backend import device_kind, mx
from pippin.core.errors import DownloadError, ModelLoadError
from pippin.core.models import loader
from pippin.core.models.loader import LoadedModel, load_folder, load_model
from pippin.core.models.progress import NullProgress

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 96,
    "max_position_embeddings": 77,
    "eos_token_id": 5,
    "tie_word_embeddings": True,
}


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A random quantised model with a vocabulary of single characters."""
    from mlx_lm.models.llama import Model, ModelArgs

    from pippin.core.backend import nn

    folder = tmp_path / "tiny"
    folder.mkdir()
    mx.random.seed(3)
    args: Any = ModelArgs
    layers: Any = nn
    model: Any = Model(args.from_dict(CONFIG))
    model.set_dtype(mx.bfloat16)
    layers.quantize(model, group_size=32, bits=4)
    model.save_weights(str(folder / "model.safetensors"))
    config = CONFIG | {"quantization": {"group_size": 32, "bits": 4}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text('{"temperature": 0.6, "eos_token_id": [5, 6]}')
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models

    vocab = {chr(33 + index): index for index in range(94)}
    Tokenizer(models.WordLevel(vocab, unk_token="!")).save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "("}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def load(folder: Path) -> LoadedModel:
    return load_folder(folder, model_id="tiny", progress=NullProgress())


def test_the_folders_facts_are_gathered(tiny: Path, progress: Any) -> None:
    loaded = load_folder(tiny, model_id="tiny", progress=progress)
    assert loaded.default_sampling == {"temperature": 0.6}
    assert loaded.eos_token_ids == (5, 6, 7)  # both configs' and the tokenizer's
    assert (loaded.max_model_len, loaded.vocab_size) == (77, 96)
    assert (loaded.model_type, loaded.path) == ("llama", tiny)
    assert type(loaded.tokenizer).__module__.startswith("transformers")
    assert progress.stages == ["load"]
    assert progress.done_bytes == sorted(progress.done_bytes)
    assert progress.done_bytes[-1] >= loaded.weight_bytes


@pytest.mark.skipif(device_kind() != "cpu", reason="weights are widened on the CPU only")
def test_on_the_cpu_everything_is_float32_and_exact(tiny: Path, progress: Any) -> None:
    loaded = load_folder(tiny, model_id="tiny", progress=progress)
    stored = mx.load(str(tiny / "model.safetensors"))
    assert isinstance(stored, dict)
    stem = "model.layers.0.mlp.up_proj"
    exact = mx.dequantize(
        stored[f"{stem}.weight"],
        stored[f"{stem}.scales"].astype(mx.float32),
        stored[f"{stem}.biases"].astype(mx.float32),
        group_size=32,
        bits=4,
    )
    weight = loaded.model.model.layers[0].mlp.up_proj.weight
    assert weight.dtype == mx.float32
    assert mx.array_equal(weight, exact).item()
    assert {array.dtype for array in loader._arrays(loaded.model)} == {mx.float32}
    assert (loaded.dtype, loaded.quantization) == ("float32", None)
    assert len([note for note in progress.notes if "float32" in note]) == 1


@pytest.mark.skipif(device_kind() != "cpu", reason="weights are widened on the CPU only")
def test_a_model_that_would_not_fit_is_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_memory_bytes", lambda: 1000)
    with pytest.raises(ModelLoadError, match="GiB as float32"):
        load(tiny)


def test_fingerprint_is_stable_and_tells_weights_apart(tiny: Path) -> None:
    first = load(tiny).fingerprint
    assert load(tiny).fingerprint == first
    weights = mx.load(str(tiny / "model.safetensors"))
    assert isinstance(weights, dict)
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1
    mx.save_safetensors(str(tiny / "model.safetensors"), weights)
    assert load(tiny).fingerprint != first


def test_it_can_be_loaded_and_run_on_a_thread_of_its_own(tiny: Path) -> None:
    logits: list[float] = []

    def run() -> None:
        loaded = load_model(str(tiny), progress=NullProgress())
        logits.extend(loaded.model(mx.array([[1, 2]]))[0, -1].tolist())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    here = load(tiny).model(mx.array([[1, 2]]))[0, -1].tolist()
    assert logits == here


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_what_is_missing_is_said(tiny: Path, name: str) -> None:
    (tiny / name).unlink()
    with pytest.raises(ModelLoadError, match="holds no"):
        load(tiny)


def rewrite_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "no_such_type"}, "model type 'no_such_type'"),
        ({"model_type": "no_such_vlm", "vision_config": {}}, "vision model type"),
        ({"model_file": "model.py"}, "brings its own model code"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": 2}, "cannot be loaded"),
        ({"hidden_size": 128}, "cannot be loaded"),
    ],
)
def test_a_wrong_config_is_one_line(tiny: Path, changes: dict[str, Any], said: str) -> None:
    rewrite_config(tiny, **changes)
    with pytest.raises(ModelLoadError, match=said) as caught:
        load(tiny)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_model_code_in_the_folder_never_runs(tiny: Path) -> None:
    (tiny / "model.py").write_text("raise SystemExit('it ran')")
    (tiny / "tokenizer.py").write_text("raise SystemExit('it ran')")
    rewrite_config(tiny, auto_map={"AutoConfig": "model.C", "AutoTokenizer": "tokenizer.T"})
    assert load(tiny).model_id == "tiny"


@pytest.mark.parametrize("damage", ["cut", "empty", "noise"])
def test_damaged_weights_are_one_line(tiny: Path, damage: str) -> None:
    path = tiny / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes({"cut": content[:-500], "empty": b"", "noise": b"x" * 4000}[damage])
    with pytest.raises(ModelLoadError) as caught:
        load(tiny)
    assert "\n" not in str(caught.value)


def test_a_damaged_tokenizer_is_one_line(tiny: Path) -> None:
    (tiny / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(ModelLoadError) as caught:
        load(tiny)
    assert "\n" not in str(caught.value)


def test_each_kind_of_source_is_fetched_its_own_way(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "fetch_demo", lambda progress: tiny)
    monkeypatch.setattr(loader, "download_model", lambda repo, progress: tiny)
    monkeypatch.setattr(loader, "convert_gguf", lambda path, progress: tiny)
    (tmp_path / "a.gguf").touch()
    shutil.copytree(tiny, tmp_path / "folder")
    sources = {
        "demo": "demo",
        "org/model": "org/model",
        str(tmp_path / "a.gguf"): "a",
        str(tmp_path / "folder"): "folder",
    }
    for source, model_id in sources.items():
        assert load_model(source, progress=NullProgress()).model_id == model_id


def test_a_download_error_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Path:
        raise DownloadError("no")

    monkeypatch.setattr(loader, "download_model", fail)
    with pytest.raises(DownloadError):
        load_model("org/model", progress=NullProgress())
