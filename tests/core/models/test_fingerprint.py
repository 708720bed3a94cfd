from pathlib import Path

import pytest

from pippin.core.backend import mx
from pippin.core.models.fingerprint import fingerprint_model

CONFIG = {"model_type": "llama", "hidden_size": 8}


def write_weights(path: Path, *, seed: int = 0, shape: tuple[int, ...] = (600, 8)) -> Path:
    key = mx.random.key(seed)
    mx.save_safetensors(
        str(path), {"a": mx.random.normal(shape, key=key), "b": mx.ones((4,)), "c": mx.zeros((0,))}
    )
    return path


def test_it_is_the_same_for_a_copy_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    one = write_weights(tmp_path / "model.safetensors")
    two = write_weights(tmp_path / "other" / "model.safetensors")
    first = fingerprint_model(CONFIG, [one], compute_dtype="float32")
    assert first == fingerprint_model(CONFIG, [two], compute_dtype="float32")
    assert len(first) == 32


def test_weights_shapes_settings_and_dtype_all_count(tmp_path: Path) -> None:
    base = write_weights(tmp_path / "model.safetensors")
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()
    prints = {
        fingerprint_model(CONFIG, [base], compute_dtype="float32"),
        fingerprint_model(CONFIG, [base], compute_dtype="float16"),
        fingerprint_model({**CONFIG, "rope_theta": 1.0}, [base], compute_dtype="float32"),
        fingerprint_model(
            CONFIG,
            [write_weights(tmp_path / "b" / "m.safetensors", seed=1)],
            compute_dtype="float32",
        ),
        fingerprint_model(
            CONFIG,
            [write_weights(tmp_path / "c" / "m.safetensors", shape=(8, 600))],
            compute_dtype="float32",
        ),
    }
    assert len(prints) == 5


def test_the_order_of_files_does_not_count(tmp_path: Path) -> None:
    files = [
        write_weights(tmp_path / name, seed=i)
        for i, name in enumerate(("a.safetensors", "b.safetensors"))
    ]
    assert fingerprint_model(CONFIG, files, compute_dtype="f") == fingerprint_model(
        CONFIG, files[::-1], compute_dtype="f"
    )


@pytest.mark.parametrize("keep", [4, 20, -6000])
def test_a_file_cut_short_is_noticed(tmp_path: Path, keep: int) -> None:
    path = write_weights(tmp_path / "model.safetensors", shape=(6000,))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError):  # noqa: PT011 - json's own error is one, too
        fingerprint_model(CONFIG, [path], compute_dtype="float32")
