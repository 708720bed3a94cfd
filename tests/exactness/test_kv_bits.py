"""With keys and values in fewer bits, answers are those of mlx-lm on caches of such numbers.

A number that lies between two steps is rounded one way or the other by differences of no account,
such as the order of a sum; from there on the past is another one, and later layers round other
numbers. So answers may part. How far apart two tokens may be then is known for tiny models only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pydoc_data.topics import topics
from typing import Any

import engine_driver
import numpy as np
import pytest
from engine_driver import EngineDriver, build, greedy, make_request
from exactness_modes import Mode, answer_in_mode, random_prompts
from reference import reference_rows, reference_tokens
from tiny_models import VOCAB_SIZE, family_named, make_tiny_model

from pippin.core.backend import mx
from pippin.core.cache.kv_layout import KVLayout
from pippin.core.cache.kv_quantization import quantize_layout
from pippin.core.config import CacheConfig, KVBits
from pippin.core.engine import device_plan
from pippin.core.errors import DownloadError
from pippin.core.models.loader import LoadedModel, load_model
from pippin.core.models.progress import NullProgress
from pippin.core.runner.attention.table_attention import TableAttention
from pippin.core.runner.model_adapter import describe_layout, new_prompt_cache
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
}
_QUICK_FAMILIES = ("qwen3", "gemma3", "qwen3-moe", "deepseek-mla", "lfm2")
_QUICK_MODES = (Mode.PREEMPTED, Mode.WARM, Mode.CHUNKS_16)
_MODES = (Mode.ALONE, Mode.TOGETHER, Mode.SPECULATED, *_QUICK_MODES)
_BITS = [KVBits(8, 8), KVBits(8, 4), KVBits(4, 4)]
# In logits of width 1 to 2: what one step of one number came to at most, and something on top.
_CLOSE = 0.25


class RoundedModel:
    """A model whose own caches are handed rounded keys and values."""

    def __init__(self, model: Any, bits: KVBits) -> None:
        self._model = model
        self._bits = bits
        self._layers = quantize_layout(describe_layout(model)[0], bits).layers

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._model(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def make_cache(self) -> list[Any]:
        """One for each layer, as mlx-lm asks for them."""
        caches = new_prompt_cache(self._model)
        for cache, layer in zip(caches, self._layers, strict=True):
            if layer.is_quantized:
                update = cache.update_and_fetch
                cache.update_and_fetch = partial(self._update, update, layer.group_size)
        return caches

    def _update(self, update: Callable[..., Any], size: int, keys: Any, values: Any) -> Any:
        rounded = []
        for array, bits in ((keys, self._bits.keys), (values, self._bits.values)):
            packed = mx.quantize(array, group_size=size, bits=bits)
            rounded.append(mx.dequantize(*packed, group_size=size, bits=bits))
        return update(*rounded)


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


def tiny(name: str) -> LoadedModel:
    family = family_named(name)
    settings = {**family.settings, **_FAMILIES[name]}
    return make_tiny_model(replace(family, settings=settings))


def part(
    model: Any, prompt: Sequence[int], want: Sequence[int], have: Sequence[int]
) -> float | None:
    """How close a call it was where two answers part; `None` if they do not."""
    if list(want) == list(have):
        return None
    assert len(want) == len(have)
    at = next(i for i, (a, b) in enumerate(zip(want, have, strict=True)) if a != b)
    row = reference_rows(model, prompt, want[: at + 1])[at]
    return abs(float(row[want[at]]) - float(row[have[at]]))


def check(loaded: LoadedModel, mode: Mode, bits: KVBits, prompts: Sequence[Sequence[int]]) -> None:
    """Nearly all answers are the same, and where one parts it was a close call."""
    model = RoundedModel(loaded.model, bits)
    wanted = [reference_tokens(model, prompt, num_tokens=16) for prompt in prompts]

    got = answer_in_mode(loaded, mode, prompts, num_tokens=16, block_size=8)

    gaps = [part(model, *it) for it in zip(prompts, wanted, got, strict=True)]
    apart = [gap for gap in gaps if gap is not None]
    assert len(apart) <= len(prompts) // 8, apart
    assert all(gap < _CLOSE for gap in apart), apart


def check_family(name: str, mode: Mode, bits: KVBits, *, count: int, longest: int) -> None:
    if name == "lfm2" and mode is Mode.SPECULATED:
        pytest.skip("speculation is refused")
    rng = np.random.default_rng(7)
    prompts = random_prompts(
        rng,
        lambda length: rng.integers(0, VOCAB_SIZE, size=length).tolist(),
        count=count,
        longest=longest,
    )
    check(tiny(name), mode, bits, prompts)


@pytest.mark.parametrize("bits", [KVBits(8, 4)], ids=str, indirect=True)
@pytest.mark.parametrize("mode", _QUICK_MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("name", _QUICK_FAMILIES)
def test_answers_are_those_of_rounded_caches(name: str, mode: Mode, bits: KVBits) -> None:
    check_family(name, mode, bits, count=10, longest=120)


@pytest.mark.parametrize("bits", [KVBits(8, 4)], ids=str, indirect=True)
def test_compiled_steps_draw_the_same(bits: KVBits, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, but for the kernels: tables, and the store's arrays go through a graph."""
    models = []

    def make(*args: Any, **options: Any) -> PagedModel:
        models.append(PagedModel(*args, **options | {"is_compiled": True}))
        return models[-1]

    monkeypatch.setattr(device_plan, "PagedModel", make)
    monkeypatch.setattr(device_plan, "_choose_attention", lambda _: TableAttention())
    mx.enable_compile()
    try:
        check_family("qwen3", Mode.PREEMPTED, bits, count=8, longest=80)
    finally:
        mx.disable_compile()
    assert models[-1].is_compiled
    assert models[-1].num_traces > 0


@pytest.mark.exactness
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("bits", _BITS, ids=str, indirect=True)
@pytest.mark.parametrize("mode", _MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("name", _FAMILIES)
def test_more_answers_are_those_of_rounded_caches(name: str, mode: Mode, bits: KVBits) -> None:
    check_family(name, mode, bits, count=32, longest=600)


@pytest.mark.exactness
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("bits", _BITS, ids=str, indirect=True)
@pytest.mark.parametrize("mode", _QUICK_MODES, ids=lambda mode: mode.name)
def test_answers_of_a_real_model_are_those_of_rounded_caches(mode: Mode, bits: KVBits) -> None:
    try:
        loaded = load_model("demo", progress=NullProgress())
    except DownloadError as error:
        pytest.skip(f"the demo model cannot be fetched here: {error}")
    text = "\n".join(topics[name] for name in sorted(topics))[:100_000]
    ids: list[int] = loaded.tokenizer.encode(text, add_special_tokens=False, verbose=False)
    rng = np.random.default_rng(16)

    def draw(length: int) -> list[int]:
        start = int(rng.integers(0, len(ids) - length))
        return ids[start : start + length]

    check(loaded, mode, bits, random_prompts(rng, draw, count=16, longest=200))


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
