"""Which models may guess for which, and what memory that takes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from byte_tokenizer import make_sentencepiece_tokenizer
from engine_driver import build, bytes_per_token
from tiny_models import make_tiny_model, save_tiny_model

from pippin.core.config import EngineConfig, Speculation
from pippin.core.engine.factory import build_engine
from pippin.core.engine.model_card import load_engine
from pippin.core.errors import ConfigError
from pippin.core.models.loader import LoadedModel
from pippin.core.models.progress import NullProgress


def refusal(target: LoadedModel, draft: LoadedModel) -> str:
    with pytest.raises(ConfigError) as caught:
        build(target, draft=draft)
    return str(caught.value)


def test_a_draft_model_with_other_tokens_is_refused() -> None:
    target = make_tiny_model("qwen3")
    draft = dataclasses.replace(
        make_tiny_model("llama-tied"), tokenizer=make_sentencepiece_tokenizer()
    )

    text = refusal(target, draft)

    assert target.model_id in text
    assert draft.model_id in text
    assert "tokens differ" in text


def test_neither_model_may_have_states() -> None:
    paged, other = make_tiny_model("qwen3"), make_tiny_model("lfm2")
    assert "the draft model has recurrent layers" in refusal(paged, other)
    assert "recurrent layers cannot be taken back" in refusal(other, paged)


def test_a_model_that_speculates_may_not_have_states() -> None:
    config = EngineConfig(speculation=Speculation.NGRAM)
    with pytest.raises(ConfigError, match="recurrent layers cannot be taken back"):
        build_engine(make_tiny_model("lfm2"), config)


@pytest.mark.parametrize("target", ["qwen3", "gemma3"])
@pytest.mark.parametrize("draft", ["qwen2", "gpt-oss"])
def test_one_budget_holds_the_tokens_of_both_models(target: str, draft: str) -> None:
    models = make_tiny_model(target), make_tiny_model(draft)
    block_size, num_tokens = 16, 512

    built = build(
        models[0],
        draft=models[1],
        block_size=block_size,
        num_tokens=num_tokens,
        prefill_chunk=64,
    )

    speculator = built.engine._speculator
    assert speculator is not None
    own, other = built.engine._runner._store, speculator._source._store  # type: ignore[attr-defined]
    assert built.kv_capacity_tokens == num_tokens
    # Each has a trash block more.
    budget = (num_tokens + block_size) * sum(map(bytes_per_token, models))
    assert own.nbytes + other.nbytes == budget


def test_the_draft_model_is_loaded_from_its_own_source(tmp_path: Path) -> None:
    target = save_tiny_model("qwen3", tmp_path / "target")
    draft = save_tiny_model("gemma3", tmp_path / "draft")
    config = EngineConfig(speculation=Speculation.DRAFT, draft_model=str(draft))

    served = load_engine(str(target), config, served_model_name=None, progress=NullProgress())

    status = served.engine.stats().speculation
    assert status is not None
    assert status.proposer == "draft"
    assert served.engine._speculator is not None
    store = served.engine._speculator._source._store  # type: ignore[attr-defined]
    assert len(store.layout.layers) == 4  # the target has 3
