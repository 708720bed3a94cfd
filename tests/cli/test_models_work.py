"""`pippin models show`, `convert` and `check`, on tiny models that are loaded for real."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import FALLBACK, save_tiny_model
from typer.testing import CliRunner, Result

from pippin.cli.main import app
from pippin.core.models.loader import load_model
from pippin.core.models.model_facts import read_facts
from pippin.core.models.progress import NullProgress

Models = Callable[..., Result]
PARTS = [
    *("loads", "tokenizer", "chat template", "tool calls", "reasoning"),
    *("KV cache", "attention", "one token"),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIPPIN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PIPPIN_CONFIG_DIR", str(tmp_path / "config"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return save_tiny_model("llama-tied", tmp_path / "tiny")


@pytest.fixture
def models() -> Models:
    def run(*args: str, code: int = 0, said: str = "") -> Result:
        result = CliRunner().invoke(app, ["models", *args], prog_name="pippin")
        assert result.exit_code == code, result.output
        assert said in result.output
        return result

    return run


def test_show_tells_layers_and_what_fits(models: Models, tiny: Path) -> None:
    shown = models("show", str(tiny)).stdout
    for name in ("type", "parameters", "context", "layers", "bytes a token", "longest sequence"):
        assert name in shown
    report = json.loads(models("show", str(tiny), "--json").stdout)
    assert report["model_type"] == "llama"
    assert report["config"]["model_type"] == "llama"
    loaded = load_model(str(tiny), progress=NullProgress())
    assert report["weights"]["num_parameters"] == loaded.num_parameters
    assert report["memory"]["weight_bytes"] == loaded.weight_bytes
    costs = {cost["kv_bits"]: cost for cost in report["memory"]["kv_costs"]}
    per_token = costs["off"]["bytes_per_token"]
    assert costs["off"]["streams"]["4096"] == report["memory"]["cache_bytes"] // (4096 * per_token)


def test_show_of_what_cannot_run_tells_what_it_can(models: Models, tiny: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps({**config, "model_type": "unheard_of"}))
    result = models("show", str(tiny), said="layers unknown")
    assert "unheard_of" in result.stdout
    report = json.loads(models("show", str(tiny), "--json").stdout)
    assert "unheard_of" in report["problem"]
    assert report["memory"] is None


def test_show_needs_a_model_that_is_there(models: Models, tiny: Path) -> None:
    models("show", "org/not-here", code=1, said="`pippin models pull org/not-here` fetches it")
    weights = tiny / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    models("show", str(tiny), code=1, said="is cut short")


def test_a_converted_model_goes_by_its_name(models: Models, tiny: Path, cache: Path) -> None:
    (tiny / "README.md").write_text("---\nlicense: mit\n---\n")
    (tiny / "evil.py").write_text("raise SystemExit")
    report = json.loads(
        models("convert", str(tiny), "--bits", "8", "--group-size", "32", "--json").stdout
    )
    folder = cache / "tiny-8bit"
    assert report["folder"] == str(folder)
    assert read_facts(folder).quantization == "8-bit"
    assert read_facts(folder).licence == "mit"
    assert not (folder / "evil.py").exists()
    models("check", "tiny-8bit", said="✓")
    models("convert", str(tiny), "--bits", "8", code=1, said="exists already")
    models("convert", "tiny-8bit", "--bits", "4", code=1, said="8-bit weights already")
    models("convert", "tiny-8bit", "--dequantize", "--output", "wide")
    assert read_facts(cache / "wide").quantization == "float32"
    models("convert", "wide", "--dequantize", code=1, said="no quantised weights")


@pytest.mark.parametrize(
    ("flags", "name", "weights"),
    [
        (["--mode", "mxfp4"], "tiny-mxfp4", "4-bit mxfp4"),
        (["--recipe", "mixed_3_6", "--group-size", "32"], "tiny-mixed-3-6", "3/6-bit"),
        (["--dtype", "bfloat16"], "tiny-bfloat16", "bfloat16"),
    ],
)
def test_all_kinds_of_conversions_load_again(
    models: Models, tiny: Path, cache: Path, flags: list[str], name: str, weights: str
) -> None:
    models("convert", str(tiny), *flags, said=name)
    assert read_facts(cache / name).quantization == weights
    assert load_model(name, progress=NullProgress()).num_parameters


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--bits", "7"], "affine weights have 2, 3, 4, 5, 6 or 8 bits"),
        (["--mode", "mxfp4", "--bits", "8"], "mxfp4 weights have 4 bits"),
        (["--mode", "nvfp4", "--group-size", "32"], "nvfp4 weights come in groups of 16"),
        (["--recipe", "mixed_3_6", "--bits", "4"], "--recipe chooses bits"),
        (["--dequantize", "--bits", "4"], "convert twice"),
        (["--output", "demo"], "cannot be called 'demo'"),
        (["--output", ".x"], "cannot be called '.x'"),
    ],
)
def test_options_that_do_not_go_together_are_misuse(
    models: Models, tiny: Path, cache: Path, flags: list[str], said: str
) -> None:
    models("convert", str(tiny), *flags, code=2, said=said)
    assert not cache.exists()


def test_a_conversion_that_fails_leaves_nothing(
    models: Models, tiny: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 990, 10))
    target = tmp_path / "out" / "model"
    models("convert", str(tiny), "--output", str(target), code=1, said="GiB left")
    assert [path.name for path in target.parent.iterdir()] == [".model.lock"]
    monkeypatch.undo()
    models("convert", str(tiny), "--output", str(target), said=str(target))
    assert (target / "config.json").exists()


def test_check_says_what_works(models: Models, tiny: Path) -> None:
    report = json.loads(models("check", str(tiny), "--json").stdout)
    verdicts = {part["part"]: part["verdict"] for part in report["parts"]}
    assert report["ok"]
    assert list(verdicts) == PARTS
    assert set(verdicts.values()) <= {"ok", "note"}
    details = {part["part"]: part["detail"] for part in report["parts"]}
    assert details["KV cache"].startswith("paged: ")
    shown = models("check", str(tiny)).stdout
    assert shown.count("✓") + shown.count("!") == len(PARTS)


def test_check_tells_of_an_unpaged_model_why(models: Models, tmp_path: Path) -> None:
    unusual = save_tiny_model(FALLBACK[0], tmp_path / "unusual")
    report = json.loads(models("check", str(unusual), "--json").stdout)
    (cache,) = (part for part in report["parts"] if part["part"] == "KV cache")
    assert cache["verdict"] == "note"
    assert "one request at a time" in cache["detail"]


def test_check_fails_with_the_parts_that_do(models: Models, tiny: Path) -> None:
    template = tiny / "chat_template.jinja"
    template.write_text("{{ raise_exception('no') }}")
    result = models("check", str(tiny), code=1)
    assert "✗  chat template" in result.stdout
    assert "✓  one token" in result.stdout
    (tiny / "tokenizer.json").unlink()
    report = json.loads(models("check", str(tiny), "--json", code=1).stdout)
    verdicts = [part["verdict"] for part in report["parts"]]
    assert verdicts == ["failed"] + ["skipped"] * 7


def test_check_finds_weights_that_are_no_numbers(models: Models, tiny: Path) -> None:
    from pippin.core.backend import mx

    path = str(tiny / "model.safetensors")
    weights = mx.load(path)
    assert isinstance(weights, dict)
    broken = {name: array * mx.array(float("nan")) for name, array in weights.items()}
    mx.eval(broken)
    mx.save_safetensors(path, broken)
    models("check", str(tiny), code=1, said="not numbers")
