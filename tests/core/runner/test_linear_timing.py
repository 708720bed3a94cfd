"""What is timed, and that it is timed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_models import make_tiny_model

from pippin.core.backend import mx
from pippin.core.runner import linear_timing
from pippin.core.runner.linear import Layer, install_linear_plans
from pippin.core.runner.linear_plan import LinearPlan, LinearShape, LinearTimings
from pippin.core.runner.linear_timing import time_shape, tune_linear_layers
from pippin.core.runner.measurements import Measurements

# isort: split
from mlx.nn.layers.quantized import quantize  # noqa: TID251


def make_model(family: str = "qwen3-moe") -> Any:
    model = make_tiny_model(family).model
    quantize(model, 32, 8)
    return model


def layers_of(model: Any) -> dict[LinearShape, list[Layer]]:
    found: dict[LinearShape, list[Layer]] = {}

    def collect(shape: LinearShape, layers: Sequence[Layer]) -> LinearTimings:
        found[shape] = list(layers)
        return LinearTimings({1: 1.0})

    install_linear_plans(model, mx.float32, collect)
    return found


def test_every_kind_of_layer_can_be_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_timing, "_CHAIN_SECONDS", 0.0)
    for shape, layers in layers_of(make_model()).items():
        timings = time_shape(shape, layers[:2], mx.float32)

        few = set() if shape.num_experts else {1, 2, 4, 8, 16, 32}
        many = {256, 1024, 4096, 16384} if shape.num_experts else {16, 64, 256, 1024}
        assert set(timings.dense) == many
        assert set(timings.stock) == few | many
        assert min(*timings.stock.values(), *timings.dense.values()) > 0


class FakeLayer:
    """Answers with the seconds that it is said to take."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds = seconds
        self.plan = LinearPlan()

    def __call__(self, x: mx.array) -> mx.array:
        rows = self.plan.rows_to_run(x.shape[0])
        return mx.array(0.5 if self.plan.is_dense(rows) else self.seconds[rows])


def read_seconds(product: Callable[[mx.array, int], mx.array], x: mx.array) -> float:
    return float(product(x, 0))


SHAPE = LinearShape(64, 96, 0, 4, 64, "affine", "float32")


def test_rows_are_padded_to_the_fastest_larger_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_timing, "time_chain", read_seconds)
    times = {1: 1.5, 2: 5.0, 4: 9.0, 8: 2.0, 16: 1.5, 32: 4.0, 64: 4.0, 256: 5.0, 1024: 9.0}

    timings = time_shape(SHAPE, [FakeLayer(times)], mx.float32)

    assert timings.stock == times
    assert timings.padded == {2: (16, 1.5), 4: (16, 1.5), 8: (16, 1.5)}
    assert timings.dense == dict.fromkeys((16, 64, 256, 1024), 0.5)


def test_weights_too_large_to_unpack_are_timed_for_few_rows_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linear_timing, "time_chain", read_seconds)
    monkeypatch.setattr(linear_timing, "_MAX_DENSE_BYTES", 4 * 64 * 96 - 1)
    few = dict.fromkeys((1, 2, 4, 8, 16, 32), 1.0)

    assert time_shape(SHAPE, [FakeLayer(few)], mx.float32) == LinearTimings(few)


def test_a_second_load_times_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_timing, "device_kind", lambda: "cuda")
    monkeypatch.setattr(linear_timing, "_CHAIN_SECONDS", 0.0)
    measurements = Measurements(tmp_path, device="card", mlx_version="1.0")
    first = tune_linear_layers(make_model(), mx.float32, measurements)

    def fail(*_: object) -> float:
        raise AssertionError("timed again")

    monkeypatch.setattr(linear_timing, "time_chain", fail)
    model = make_model()
    tokens = mx.arange(40)[:, None]
    want = model(tokens)

    second = tune_linear_layers(model, mx.float32, measurements)

    assert second == first
    assert float(mx.abs(model(tokens) - want).max()) < 1e-4


def test_what_cannot_be_timed_runs_the_stock_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_when_dense(product: Callable[[mx.array, int], mx.array], x: mx.array) -> float:
        mx.eval(product(x, 0))
        if x.shape[0] >= 256:
            raise RuntimeError("no such kernel")
        return 1.0 / x.shape[0]

    monkeypatch.setattr(linear_timing, "device_kind", lambda: "cuda")
    monkeypatch.setattr(linear_timing, "time_chain", fail_when_dense)
    model = make_model()

    report = tune_linear_layers(
        model, mx.float32, Measurements(tmp_path, device="card", mlx_version="1.0")
    )

    assert {shape.plan for shape in report.shapes} == {LinearPlan()}
    assert model.layers[0].mlp.switch_mlp.up_proj.plan == LinearPlan()
    assert list(tmp_path.iterdir()) == []


def test_without_a_gpu_nothing_is_timed(tmp_path: Path) -> None:
    measurements = Measurements(tmp_path, device="card", mlx_version="1.0")

    report = tune_linear_layers(make_model(), mx.float32, measurements)

    assert {shape.plan for shape in report.shapes} == {LinearPlan()}
    assert report.rows_to_run(2) == 2
    assert list(tmp_path.iterdir()) == []
