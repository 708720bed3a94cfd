"""Which MTP heads may guess for which models, where they come from, and what memory they take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from engine_driver import EngineDriver, bytes_per_token, greedy, make_request
from tiny_drafters import build_with_head, drafter_config, make_drafter, save_drafter
from tiny_models import make_tiny_model, save_tiny_model

from pippin.core.config import EngineConfig, Speculation
from pippin.core.engine.model_card import load_engine
from pippin.core.errors import ConfigError, ModelLoadError
from pippin.core.models.loader import load_folder
from pippin.core.models.mtp_head import load_drafter
from pippin.core.models.progress import NullProgress


def load(target: Path, drafter: Path | None) -> Any:
    loaded = load_folder(target, model_id="target", progress=NullProgress())
    source = None if drafter is None else str(drafter)
    return load_drafter(loaded, source, progress=NullProgress())


def test_a_head_of_its_own_folder_is_served(tmp_path: Path) -> None:
    target = save_tiny_model("qwen3.5", tmp_path / "target")
    drafter = save_drafter("qwen3.5", tmp_path / "drafter")
    config = EngineConfig(speculation=Speculation.MTP, draft_model=str(drafter))

    served = load_engine(str(target), config, served_model_name=None, progress=NullProgress())

    status = served.engine.stats().speculation
    assert status is not None
    assert status.proposer == "mtp"
    assert served.card.details["speculation"] == "mtp"
    driver = EngineDriver(served.engine)
    driver.run([make_request("a", range(3, 20), greedy(5))])
    assert driver.answers["a", 0].num_output_tokens == 5


def test_a_head_among_the_models_own_tensors_is_found(tmp_path: Path) -> None:
    target = save_tiny_model("qwen3.5", tmp_path / "target")
    config = json.loads((target / "config.json").read_text())
    config["text_config"] |= drafter_config("qwen3.5")["text_config"]
    (target / "config.json").write_text(json.dumps(config))
    save_drafter("qwen3.5", target, prefix="mtp.")

    drafter = load(target, None)

    want = make_drafter("qwen3.5")
    assert (drafter.fc.weight == want.fc.weight).all()
    assert (drafter.norm.weight == want.norm.weight).all()


def test_what_holds_no_head_is_refused(tmp_path: Path) -> None:
    qwen = save_tiny_model("qwen3.5", tmp_path / "qwen")
    with pytest.raises(ModelLoadError, match="holds no MTP head: most conversions leave it out"):
        load(qwen, None)
    with pytest.raises(ModelLoadError, match="no MTP head for models of type llama"):
        load(save_tiny_model("llama-tied", tmp_path / "llama"), None)
    with pytest.raises(ModelLoadError, match="type 'llama' cannot be run, only nemotron_h_mtp"):
        load(qwen, tmp_path / "llama")


def test_a_head_of_another_family_is_refused(tmp_path: Path) -> None:
    drafter = save_drafter("nemotron-h", tmp_path / "drafter")
    with pytest.raises(ModelLoadError, match="goes with nemotron_h; target is qwen3_5"):
        load(save_tiny_model("qwen3.5", tmp_path / "target"), drafter)


def test_a_head_that_is_broken_is_refused_in_one_line(tmp_path: Path) -> None:
    drafter = save_drafter("qwen3.5", tmp_path / "drafter")
    (drafter / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelLoadError, match=r"the MTP head in .*/drafter cannot be loaded: .+"):
        load(save_tiny_model("qwen3.5", tmp_path / "target"), drafter)


def test_a_head_of_another_size_is_refused() -> None:
    drafter = make_drafter("qwen3.5")
    drafter.config.text_config.hidden_size = 32
    with pytest.raises(ConfigError, match="it has 32 dimensions, the model 64"):
        build_with_head(make_tiny_model("qwen3.5"), drafter)


def test_a_model_without_blocks_to_share_is_refused() -> None:
    with pytest.raises(ConfigError, match="keeps all of the past in no layer"):
        build_with_head(make_tiny_model("mamba2"), make_drafter("qwen3.5"))


def test_one_budget_holds_the_tokens_of_model_and_head() -> None:
    loaded = make_tiny_model("qwen3.5")
    built = build_with_head(loaded, make_drafter("qwen3.5"), num_tokens=1024)

    runner: Any = built.engine._runner
    own, other = runner._store, runner._mtp._store
    assert own.nbytes // bytes_per_token(loaded) == other.nbytes // 256  # 2 heads of 16, 4 bytes
    states = 2 * 16 * built.layout.state_bytes + runner._states.nbytes
    assert own.nbytes + other.nbytes + states <= 1024 * 2048 + 16 * (bytes_per_token(loaded) + 256)


def test_a_draft_model_goes_with_those_who_guess_by_one() -> None:
    assert EngineConfig(speculation=Speculation.MTP, draft_model="x").draft_model == "x"
    with pytest.raises(ConfigError, match="goes with speculation 'draft' or 'mtp', not 'ngram'"):
        EngineConfig(speculation=Speculation.NGRAM, draft_model="x")
