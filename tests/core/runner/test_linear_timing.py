"""What is timed, and that it is timed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_models import make_tiny_model

from pippin.core.backend import mx
from pippin.core.runner import linear_timing
from pippin.core.runner.joined_linear import JointProduct, find_linear_groups
from pippin.core.runner.linear import Layer, install_linear_plans
from pippin.core.runner.linear_plan import LinearPlan, LinearShape, LinearTimings
from pippin.core.runner.linear_timing import time_shape, tune_linear_layers
from pippin.core.runner.measurements import Measurements

# isort: split
from mlx.nn.layers.quantized import quantize  # noqa: TID251


@pytest.fixture(autouse=True)
def keep_busy_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_timing, "_BUSY_DIMS", 16)


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


# With experts, and with an embedding of the shape of its head.
@pytest.mark.parametrize("family", ["qwen3-moe", "llama-untied"])
def test_every_kind_of_layer_can_be_timed(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_timing, "_CHAIN_SECONDS", 1.0)
    monkeypatch.setattr(linear_timing, "_MAX_CHAIN", 2)
    for shape, layers in layers_of(make_model(family)).items():
        timings = time_shape(shape, layers[:2], mx.float32)

        few = set() if shape.num_experts else {1, 2, 4, 8, 16, 32}
        many = {256, 1024, 4096, 16384} if shape.num_experts else {*DENSE_ROWS}
        assert set(timings.dense) == many
        assert set(timings.stock) == few | many
        assert min(*timings.stock.values(), *timings.dense.values()) > 0


DENSE_ROWS = (16, 32, 64, 128, 256, 1024)


class FakeLayer:
    """Answers with the seconds that it is said to take."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds = seconds
        self.plan = LinearPlan()

    def __call__(self, x: mx.array) -> mx.array:
        rows = self.plan.rows_to_run(x.shape[0])
        if self.plan.is_own(rows):
            return mx.array(0.25)
        return mx.array(0.5 if self.plan.is_dense(rows) else self.seconds[rows])


def read_seconds(product: Callable[[mx.array, int], mx.array], x: mx.array) -> float:
    return float(product(x, 0))


SHAPE = LinearShape(64, 96, 0, 4, 64, "affine", "float32")


def test_rows_are_padded_to_the_fastest_larger_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_timing, "time_chain", read_seconds)
    times = {1: 1.5, 2: 5.0, 4: 9.0, 8: 2.0, 16: 1.5, 32: 4.0, 64: 4.0}
    times |= {128: 4.5, 256: 5.0, 1024: 9.0}

    timings = time_shape(SHAPE, [FakeLayer(times)], mx.float32)

    assert timings.stock == times
    assert timings.padded == {2: (16, 1.5), 4: (16, 1.5), 8: (16, 1.5)}
    assert timings.dense == dict.fromkeys(DENSE_ROWS, 0.5)
    assert timings.own == {}


def test_our_own_kernel_is_timed_up_to_256_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_timing, "time_chain", read_seconds)
    times = dict.fromkeys((1, 2, 4, 8, 16, 32, 64, 128, 256, 1024), 2.0)

    timings = time_shape(SHAPE, [FakeLayer(times)], mx.float32, has_own=True)

    assert timings.own == dict.fromkeys((1, 2, 4, 8, 16, 32, 64, 128, 256), 0.25)
    assert timings.stock == times


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


def fake_own_kernel(monkeypatch: pytest.MonkeyPatch, problem: str | None = None) -> None:
    """Pretend that there is one, which takes every shape, and that it was tried."""
    monkeypatch.setattr(linear_timing, "device_kind", lambda: "cuda")
    monkeypatch.setattr(linear_timing, "has_own_kernel", lambda shape, _: not shape.num_experts)
    monkeypatch.setattr(linear_timing, "find_kernel_problem", lambda *_: problem)
    monkeypatch.setattr(linear_timing, "time_chain", lambda product, x: 1.0 / x.shape[0])


def test_our_own_kernel_is_off_for_all_shapes_if_one_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    measurements = Measurements(tmp_path, device="card", mlx_version="1.0")
    fake_own_kernel(monkeypatch)
    right = tune_linear_layers(make_model(), mx.float32, measurements)
    assert {bool(found.timings.own) for found in right.shapes if not found.shape.num_experts} == {
        True
    }
    assert not caplog.records

    fake_own_kernel(monkeypatch, problem="off by far")
    off = tune_linear_layers(make_model(), mx.float32, measurements)

    assert {bool(found.timings.own) for found in off.shapes} == {False}
    assert [record.getMessage() for record in caplog.records] == [
        "mlx's quantised kernel is used in place of our own: off by far"
    ]


def time_joined_as(monkeypatch: pytest.MonkeyPatch, seconds: Sequence[float]) -> None:
    """Pretend that joined products of 1, 8, 16, 64 and 256 rows take so long, others a second."""
    compute, computed = JointProduct.compute, list[bool]()

    def count(product: JointProduct, x: mx.array) -> list[mx.array]:
        computed.append(True)
        return compute(product, x)

    def read(product: Callable[[mx.array, int], mx.array], x: mx.array) -> float:
        computed.clear()
        mx.eval(product(x, 0))
        return seconds[(1, 8, 16, 64, 256).index(x.shape[0])] if computed else 1.0

    monkeypatch.setattr(JointProduct, "compute", count)
    monkeypatch.setattr(linear_timing, "device_kind", lambda: "cuda")
    monkeypatch.setattr(linear_timing, "time_chain", read)


@pytest.mark.parametrize(
    ("seconds", "max_rows"),
    [
        ((0.8, 1.0, 0.9, 0.9, 0.9), 256),
        ((0.8, 0.9, 1.1, 1.0, 1.0), 8),
        ((0.9, 1.02, 0.9, 1.2, 1.1), 16),  # a little noise does not hide what is won behind it
        ((0.8, 1.3, 0.95, 1.2, 1.2), 1),  # but not if that does not make up for it
        ((1.1, 1.0, 1.1, 1.0, 1.0), 0),
    ],
)
@pytest.mark.parametrize("bits", [8, None])
def test_layers_are_joined_up_to_the_rows_where_that_pays(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds: Sequence[float],
    max_rows: int,
    bits: int | None,
) -> None:
    model = make_model("llama-tied") if bits else make_tiny_model("llama-tied").model
    tokens = mx.arange(5)[:, None]
    want = model(tokens)
    groups = find_linear_groups(model)
    assert len(groups) == 6
    time_joined_as(monkeypatch, seconds)

    report = tune_linear_layers(
        model, mx.float32, Measurements(tmp_path, device="card", mlx_version="1.0"), groups
    )

    assert {group.product.max_rows for group in groups if max_rows} <= {max_rows}
    joined = {type(layer).__name__.startswith("Joined") for it in groups for layer in it.layers}
    assert joined == {max_rows > 0}
    assert float(mx.abs(model(tokens) - want).max()) < 1e-4
    if bits:
        counts = {it.shape.output_dims: it.num_layers for it in report.shapes}
        assert counts[32 + 32 + 64] == counts[2 * 96] == (3 if max_rows else 0)
        assert counts[96] == (0 if max_rows else 6)
        assert report.num_layers == {"QuantizedLinear": 21, "QuantizedEmbedding": 1}


def test_groups_that_cannot_be_timed_are_not_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_tiny_model("llama-tied").model
    groups = find_linear_groups(model)

    def fail(*_: object) -> float:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(linear_timing, "device_kind", lambda: "cuda")
    monkeypatch.setattr(linear_timing, "time_chain", fail)
    tune_linear_layers(
        model, mx.float32, Measurements(tmp_path, device="card", mlx_version="1.0"), groups
    )

    assert {type(layer).__name__ for group in groups for layer in group.layers} == {"Linear"}


def test_on_a_cpu_layers_are_joined_for_few_rows(tmp_path: Path) -> None:
    groups = find_linear_groups(model := make_tiny_model("llama-tied").model)

    tune_linear_layers(
        model, mx.float32, Measurements(tmp_path, device="cpu", mlx_version="1.0"), groups
    )

    assert {group.product.max_rows for group in groups} == {32}
    assert {type(it).__name__ for group in groups for it in group.layers} == {"JoinedLinear"}
