"""Which models may guess for which, and what memory that takes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from byte_tokenizer import make_sentencepiece_tokenizer
from engine_driver import EngineDriver, build, bytes_per_token, greedy, make_request
from tiny_models import make_tiny_model, save_tiny_model

from pippin.core.config import EngineConfig, Speculation
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


def test_the_draft_model_may_not_have_states() -> None:
    text = refusal(make_tiny_model("qwen3"), make_tiny_model("lfm2"))
    assert "the draft model has recurrent layers" in text


def test_a_draft_model_needs_blocks_to_share() -> None:
    text = refusal(make_tiny_model("mamba2"), make_tiny_model("qwen3"))
    assert "the model keeps all of the past in no layer" in text


def test_a_draft_model_may_guess_for_one_with_states() -> None:
    target = make_tiny_model("lfm2")
    prompt = tuple(range(3, 40))
    plain = EngineDriver(build(target).engine)
    plain.run([make_request("a", prompt, greedy(20))])

    driver = EngineDriver(build(target, draft=make_tiny_model("qwen3")).engine)
    driver.run([make_request("a", prompt, greedy(20))])

    assert driver.answers["a", 0].token_ids == plain.answers["a", 0].token_ids
    assert driver.engine._speculator.counts.num_drafted > 0  # type: ignore[union-attr]


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
