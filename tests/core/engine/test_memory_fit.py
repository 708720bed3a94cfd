from pathlib import Path

import pytest
from tiny_models import QUICK, save_tiny_model

from pippin.core.backend import device_kind
from pippin.core.cache.kv_layout import KVLayout, LayerKind, LayerSpec, StateSpec
from pippin.core.engine.memory_fit import find_kv_costs, find_memory_fit, layout_of_folder
from pippin.core.models.loader import load_folder, load_lazily
from pippin.core.models.model_facts import read_weight_facts
from pippin.core.models.progress import NullProgress
from pippin.core.runner.model_adapter import describe_layout

FULL = LayerSpec(kind=LayerKind.FULL, num_kv_heads=2, key_dim=64, value_dim=64, item_bytes=2)
SLIDING = LayerSpec(
    kind=LayerKind.SLIDING, num_kv_heads=2, key_dim=64, value_dim=64, item_bytes=2, window=512
)
STATE = LayerSpec(kind=LayerKind.RECURRENT, states=(StateSpec((1, 4, 100), "float32", 4),))


@pytest.mark.parametrize("family", QUICK, ids=lambda family: str(family.name))
def test_layers_are_those_of_the_loaded_model(family: object, tmp_path: Path) -> None:
    folder = save_tiny_model(family, tmp_path / "m")  # type: ignore[arg-type]
    model, _ = load_lazily(folder, model_id="m")
    want, _ = describe_layout(model)
    have = layout_of_folder(folder, model_id="m")
    assert (have.layers, have.tree) == (want.layers, want.tree)


def test_weights_and_what_is_left_are_told(tmp_path: Path) -> None:
    folder = save_tiny_model("llama-tied", tmp_path / "m")
    loaded = load_folder(folder, model_id="m", progress=NullProgress())
    fit = find_memory_fit(folder, read_weight_facts(folder), model_id="m", context=4096)
    assert fit.device == device_kind()
    assert fit.weight_bytes == loaded.weight_bytes
    assert 0 < fit.cache_bytes < fit.memory_bytes


def test_costs_follow_from_bytes() -> None:
    off, eight, mixed, four = find_kv_costs(KVLayout([FULL, FULL]), 1 << 20, context=8192)
    per_token = 2 * 2 * 128 * 2
    assert (off.kv_bits, off.bytes_per_token) == ("off", per_token)
    assert off.longest == (1 << 20) // per_token
    assert off.streams == {2048: 0, 4096: 0, 8192: 0}
    assert off.bytes_per_token > eight.bytes_per_token > mixed.bytes_per_token
    assert four.longest > mixed.longest > off.longest
    # The longest sequence is the longest that fits whole blocks.
    assert off.longest % 32 == 0


def test_windows_and_states_cost_the_same_whatever_the_length() -> None:
    layout = KVLayout([FULL, SLIDING, STATE])
    off = find_kv_costs(layout, 1 << 30, context=1 << 20)[0]
    assert off.bytes_per_token == 512
    assert off.fixed_bytes == (512 + 2048) * 512 + 2 * 1600
    assert off.streams[1 << 20] == (1 << 30) // ((1 << 20) * 512 + off.fixed_bytes)


def test_bits_that_a_model_cannot_have_are_left_out() -> None:
    narrow = LayerSpec(kind=LayerKind.FULL, num_kv_heads=2, key_dim=40, value_dim=40, item_bytes=2)
    assert [it.kv_bits for it in find_kv_costs(KVLayout([narrow]), 1 << 20, context=64)] == ["off"]
    opaque = KVLayout([LayerSpec(kind=LayerKind.OPAQUE)])
    assert find_kv_costs(opaque, 1 << 20, context=64) == ()


def test_no_room_is_no_error() -> None:
    cost = find_kv_costs(KVLayout([FULL]), -5, context=None)[0]
    assert cost.longest == 0
    assert set(cost.streams.values()) == {0}
