"""With keys and values in fewer bits, every step is that of mlx-lm on the past that was stored.

Whole answers are compared without them only: see `stored_past` for why. For the measure, mlx-lm on
caches of rounded numbers, SmolLM2, prompts of up to 200 tokens in one piece against pieces of 16:
of 32 answers of 16 tokens 1 parts with 8 bits, 6 with 8 and 4, 13 with 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import engine_driver
import numpy as np
import pytest
from engine_driver import EngineDriver, build, bytes_per_token, greedy, make_request
from exactness_modes import Mode, answer_in_mode, random_prompts
from recorded_runner import RecordedRunner
from stored_past import Comparison, check_stays
from tiny_models import VOCAB_SIZE, family_named, make_tiny_model

from pippin.core.backend import mx
from pippin.core.cache.block_table import BlockTable
from pippin.core.cache.kv_layout import KVLayout
from pippin.core.cache.kv_quantization import quantize_layout
from pippin.core.cache.kv_store import KVStore
from pippin.core.config import CacheConfig, EngineConfig, KVBits
from pippin.core.engine import device_plan, factory
from pippin.core.errors import DownloadError
from pippin.core.models.loader import LoadedModel, load_model
from pippin.core.models.progress import NullProgress
from pippin.core.runner.attention.table_attention import TableAttention
from pippin.core.runner.model_adapter import describe_layout
from pippin.core.runner.paged_model import PagedModel

# isort: split
from mlx_lm.models.cache import QuantizedKVCache

# With heads that can be quantised.
_FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "gemma3": {"head_dim": 64, "query_pre_attn_scalar": 64},
    "gpt-oss": {"head_dim": 32},
    "qwen3-moe": {"head_dim": 32},
    "gemma4": {},
    "deepseek-mla": {"kv_lora_rank": 64, "qk_rope_head_dim": 32},
    "lfm2": {"num_attention_heads": 2, "num_key_value_heads": 1},
    "qwen3-next": {"head_dim": 32},
    "falcon-h1": {"head_dim": 32},
}
_QUICK_FAMILIES = ("qwen3", "gemma3", "qwen3-moe", "deepseek-mla", "lfm2", "falcon-h1")
_QUICK_MODES = (Mode.PREEMPTED, Mode.WARM, Mode.SPECULATED, Mode.CHUNKS_16)
_MODES = (Mode.ALONE, Mode.TOGETHER, Mode.SPECULATED_TIGHT, *_QUICK_MODES)
_BITS = [KVBits(8, 8), KVBits(8, 4), KVBits(4, 4)]


@pytest.fixture
def bits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> KVBits:
    """Engines of this test have them, and as much room for tokens as others."""
    bits: KVBits = request.param

    def describe(model: Any) -> tuple[KVLayout, mx.Dtype]:
        layout, dtype = describe_layout(model)
        return quantize_layout(layout, bits), dtype

    monkeypatch.setattr(engine_driver, "CacheConfig", partial(CacheConfig, kv_bits=bits))
    monkeypatch.setattr(engine_driver, "describe_layout", describe)
    return bits


@pytest.fixture
def runners(monkeypatch: pytest.MonkeyPatch) -> list[RecordedRunner]:
    """Those of all engines of this test."""
    made: list[RecordedRunner] = []

    class Runner(RecordedRunner):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(factory, "PagedRunner", Runner)
    return made


def tiny(name: str) -> LoadedModel:
    family = family_named(name)
    settings = {**family.settings, **_FAMILIES[name]}
    return make_tiny_model(replace(family, settings=settings))


def tiny_prompts(count: int, longest: int) -> list[Sequence[int]]:
    rng = np.random.default_rng(7)
    return random_prompts(
        rng,
        lambda length: rng.integers(0, VOCAB_SIZE, size=length).tolist(),
        count=count,
        longest=longest,
    )


def check(name: str, runners: Sequence[RecordedRunner]) -> Comparison:
    """Compare all that these runners did with a model of that name."""
    done = check_stays(tiny(name).model, [stay for runner in runners for stay in runner.stays])
    assert done.num_groups > 0
    return done


@pytest.mark.parametrize("bits", [KVBits(8, 4)], ids=str, indirect=True)
@pytest.mark.parametrize("mode", _QUICK_MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("name", _QUICK_FAMILIES)
def test_steps_are_those_of_mlx_lm(
    name: str, mode: Mode, bits: KVBits, runners: list[RecordedRunner]
) -> None:
    prompts = tiny_prompts(10, 120)
    answers = answer_in_mode(tiny(name), mode, prompts, num_tokens=16, block_size=8)
    done = check(name, runners)
    assert done.num_draws >= sum(map(len, answers))
    assert done.num_found > 0 or mode is not Mode.WARM


@pytest.mark.parametrize("bits", [KVBits(8, 4)], ids=str, indirect=True)
def test_compiled_steps_are_those_of_mlx_lm(
    bits: KVBits, runners: list[RecordedRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, but for the kernels: tables, and the store's arrays go through a graph."""
    models = []

    def make(*args: Any, **options: Any) -> PagedModel:
        models.append(PagedModel(*args, **options | {"is_compiled": True}))
        return models[-1]

    monkeypatch.setattr(device_plan, "PagedModel", make)
    monkeypatch.setattr(device_plan, "_choose_attention", lambda _: TableAttention())
    mx.enable_compile()
    try:
        prompts = tiny_prompts(8, 80)
        answer_in_mode(tiny("qwen3"), Mode.PREEMPTED, prompts, num_tokens=16, block_size=8)
    finally:
        mx.disable_compile()
    assert models[-1].is_compiled
    assert models[-1].num_traces > 0
    check("qwen3", runners)


@pytest.mark.parametrize("bits", [KVBits(8, 4)], ids=str)
@pytest.mark.parametrize("name", ["gemma3", "lfm2"])
def test_steps_after_a_restart_are_those_of_mlx_lm(
    name: str, bits: KVBits, runners: list[RecordedRunner], tmp_path: Path
) -> None:
    prompts = [list(range(50, 50 + length)) for length in (70, 123)]
    for number in range(2):
        loaded = tiny(name)
        cache = CacheConfig(
            block_size=8,
            max_bytes=2000 * bytes_per_token(loaded),
            kv_bits=bits,
            disk_folder=tmp_path,
            disk_bytes=64 * 1024**2,
        )
        engine = factory.build_engine(loaded, EngineConfig(max_model_len=500, cache=cache)).engine
        driver = EngineDriver(engine)
        for index, prompt in enumerate(prompts):
            driver.run([make_request(f"{number}-{index}", prompt, greedy(8))])
        assert engine._disk is not None
        engine._disk._tier.close()
    assert engine.scheduler.num_disk_hits >= 100
    assert check(name, runners).num_found > 0


def _as_given(store: KVStore, layer: int, keys: mx.array, values: mx.array) -> Any:
    del store, layer
    return keys, values


def _permuted(
    table: BlockTable, first: int, block_ids: Sequence[int], *, start_at: Any = BlockTable.start_at
) -> None:
    start_at(table, first, block_ids[::-1])


@pytest.mark.parametrize("bits", [KVBits(8, 8)], ids=str, indirect=True)
@pytest.mark.parametrize(
    ("owner", "name", "fault", "message"),
    [
        (KVStore, "as_read", _as_given, "below the best|steps"),
        (BlockTable, "start_at", _permuted, "never stored"),
    ],
    ids=["a chunk attends to exact numbers", "blocks in another order"],
)
def test_faults_are_seen(
    owner: type,
    name: str,
    fault: Any,
    message: str,
    bits: KVBits,
    runners: list[RecordedRunner],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(owner, name, fault)
    driver = EngineDriver(build(tiny("qwen3"), block_size=8).engine)
    for request in "ab":
        driver.run([make_request(request, list(range(60, 130)), greedy(4))])
    with pytest.raises(AssertionError, match=message):
        check("qwen3", runners)


@pytest.mark.exactness
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("bits", _BITS, ids=str, indirect=True)
@pytest.mark.parametrize("mode", _MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("name", _FAMILIES)
def test_more_steps_are_those_of_mlx_lm(
    name: str, mode: Mode, bits: KVBits, runners: list[RecordedRunner]
) -> None:
    prompts = tiny_prompts(32, 600)
    answer_in_mode(tiny(name), mode, prompts, num_tokens=16, block_size=8)
    check(name, runners)


@pytest.mark.exactness
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("bits", _BITS, ids=str, indirect=True)
@pytest.mark.parametrize("mode", _QUICK_MODES, ids=lambda mode: mode.name)
def test_steps_of_a_real_model_are_those_of_mlx_lm(
    mode: Mode, bits: KVBits, runners: list[RecordedRunner]
) -> None:
    try:
        loaded, fresh = (load_model("demo", progress=NullProgress()) for _ in range(2))
    except DownloadError as error:
        pytest.skip(f"the demo model cannot be fetched here: {error}")
    text = "\n".join(topics[name] for name in sorted(topics))[:100_000]
    ids: list[int] = loaded.tokenizer.encode(text, add_special_tokens=False, verbose=False)
    rng = np.random.default_rng(16)

    def draw(length: int) -> list[int]:
        start = int(rng.integers(0, len(ids) - length))
        return ids[start : start + length]

    prompts = random_prompts(rng, draw, count=16, longest=200)
    answer_in_mode(loaded, mode, prompts, num_tokens=16, block_size=8)
    done = check_stays(fresh.model, [stay for runner in runners for stay in runner.stays])
    assert done.num_draws >= 16 * 16


@pytest.mark.parametrize("bits", [KVBits(8, 8), KVBits(4, 4)], ids=str, indirect=True)
def test_odds_are_those_of_mlx_lms_quantised_cache(bits: KVBits) -> None:
    """mlx-lm multiplies with packed numbers; what they stand for is the same."""
    loaded = tiny("qwen3")
    prompt = list(range(60, 130))
    driver = EngineDriver(build(loaded, block_size=8, prefill_chunk=32).engine)
    params = greedy(16, num_logprobs=0, num_prompt_logprobs=0)
    driver.run([make_request("r", prompt, params)])
    answer = driver.answers["r", 0]
    got = [
        entry.chosen.logprob
        for entry in (*driver.prompt_logprobs["r"][1:], *answer.logprobs)
        if entry is not None
    ]

    tokens = [*prompt, *answer.token_ids]
    cache = [QuantizedKVCache(group_size=32, bits=bits.keys) for _ in loaded.model.layers]
    logits = loaded.model(mx.array([tokens[:-1]]), cache=cache)[0]
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    want = np.array(mx.take_along_axis(logprobs, mx.array(tokens[1:])[:, None], axis=-1))[:, 0]

    np.testing.assert_allclose(got, want, rtol=0, atol=2e-3)
    plain = loaded.model(mx.array([tokens[:-1]]))[0]
    assert float(mx.abs(plain - logits).max()) > 0.02
