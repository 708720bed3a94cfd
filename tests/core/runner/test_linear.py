"""Every way of multiplying gives the numbers that mlx-lm's own layers give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from tiny_models import make_tiny_model

from pippin.core.backend import mx
from pippin.core.runner import linear
from pippin.core.runner.linear import Layer, LinearReport, PlannedLinear, install_linear_plans
from pippin.core.runner.linear_plan import LinearShape, LinearTimings

# isort: split
from mlx.nn.layers.base import Module  # noqa: TID251
from mlx.nn.layers.embedding import Embedding  # noqa: TID251
from mlx.nn.layers.linear import Linear  # noqa: TID251
from mlx.nn.layers.quantized import QuantizedLinear, quantize  # noqa: TID251
from mlx_lm.models.switch_layers import QuantizedSwitchLinear

STOCK = LinearTimings(dict.fromkeys((1, 2, 4, 8, 16, 32), 1.0))
PADDED = LinearTimings(
    {**STOCK.stock, **dict.fromkeys((1, 2, 4, 8), 9.0)},
    padded={1: (4, 1.0), 2: (8, 1.0), 4: (8, 1.0), 8: (32, 1.0)},
)
DENSE = LinearTimings({1: 9.0, 2: 9.0}, dense={1: 1.0, 2: 1.0})
WAYS = {"stock": STOCK, "padded": PADDED, "dense": DENSE}
FORMATS = [
    *((bits, group_size, "affine") for bits in (2, 3, 4, 6, 8) for group_size in (32, 64)),
    (4, 32, "mxfp4"),
    (4, 16, "nvfp4"),
    (8, 32, "mxfp8"),
]


class TinyBlock(Module):
    """An embedding that is the head, too, and a layer with and one without a bias."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.embed_tokens: Any = Embedding(96, 128)
        self.up_proj: Any = Linear(128, 64, bias=False)
        self.down_proj: Any = Linear(64, 128, bias=True)

    def __call__(self, x: mx.array) -> list[mx.array]:
        up = self.up_proj(x)
        return [up, self.down_proj(up), self.embed_tokens.as_linear(x)]


def make_block(bits: int = 4, group_size: int = 64, mode: str = "affine") -> TinyBlock:
    mx.random.seed(7)
    block = TinyBlock()
    block.down_proj.bias = mx.random.normal((128,))
    quantize(block, group_size, bits, mode=mode)
    return block


def install(
    model: Any, timings: LinearTimings, *, experts: LinearTimings | None = None
) -> LinearReport:
    def time_layers(shape: LinearShape, layers: Sequence[Layer]) -> LinearTimings:
        return experts if experts is not None and shape.num_experts else timings

    return install_linear_plans(model, mx.float32, time_layers)


def largest_difference(have: mx.array, want: mx.array) -> float:
    assert have.shape == want.shape
    assert have.dtype == want.dtype
    return float(mx.abs(have - want).max()) / max(1.0, float(mx.abs(want).max()))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("bits", "group_size", "mode"), FORMATS)
def test_all_ways_agree_with_stock_layers(way: str, bits: int, group_size: int, mode: str) -> None:
    block = make_block(bits, group_size, mode)
    inputs = [
        mx.random.normal(shape)
        for shape in [(128,), (5, 128), (1, 1, 128), (7, 1, 128), (1, 7, 128), (3, 3, 128)]
    ]
    want = [block(x) for x in inputs]
    mx.eval(want)

    install(block, WAYS[way])

    for x, expected in zip(inputs, want, strict=True):
        for have, stock in zip(block(x), expected, strict=True):
            assert largest_difference(have, stock) < 1e-5


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 31, 32, 33])
@pytest.mark.parametrize("way", ["stock", "padded"])
def test_the_quantised_kernel_gives_the_same_bits(rows: int, way: str) -> None:
    block = make_block()
    x = mx.random.normal((rows, 1, 128))
    want = block(x)

    install(block, WAYS[way])

    assert all(mx.array_equal(have, stock) for have, stock in zip(block(x), want, strict=True))


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize("way", WAYS)
def test_16_bit_activations_stay_16_bit(way: str, dtype: mx.Dtype) -> None:
    block = make_block()
    block.set_dtype(dtype)
    x = mx.random.normal((5, 1, 128)).astype(dtype)
    want = block(x)

    install(block, WAYS[way])

    for have, stock in zip(block(x), want, strict=True):
        assert largest_difference(have, stock) < 2e-2


def test_the_way_follows_the_rows_of_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    block = make_block()
    timings = LinearTimings(
        {1: 1.0, 2: 9.0, 8: 1.0, 64: 9.0}, padded={2: (8, 2.0)}, dense={64: 1.0}
    )
    install(block, timings)
    given: list[int] = []
    unpacked: list[bool] = []
    stock, dequantize = mx.quantized_matmul, mx.dequantize

    def count_rows(x: mx.array, *args: Any, **options: Any) -> mx.array:
        given.append(x.shape[0])
        return stock(x, *args, **options)

    def count_unpacked(*args: Any, **options: Any) -> mx.array:
        unpacked.append(True)
        return dequantize(*args, **options)

    monkeypatch.setattr(mx, "quantized_matmul", count_rows)
    monkeypatch.setattr(mx, "dequantize", count_unpacked)
    for shape in [(1, 1), (2, 1), (1, 7), (8, 1), (63, 1), (1, 64), (64, 1), (70, 1)]:
        block.up_proj(mx.zeros((*shape, 128)))

    assert given == [1, 8, 8, 8, 63]
    assert len(unpacked) == 3


OWN = LinearTimings({1: 9.0, 4: 9.0, 8: 1.0}, dense={1: 8.0, 4: 9.0}, own={1: 1.0, 4: 1.0, 8: 1.0})


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float32])
def test_our_own_kernel_gets_rows_of_the_dtype_of_the_scales(
    dtype: mx.Dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = make_block(8, 32)
    block.set_dtype(mx.bfloat16)
    inputs = [mx.random.normal((rows, 1, 128)).astype(dtype) for rows in (1, 3, 4, 5, 9)]
    want = [block(x) for x in inputs]
    given: list[int] = []

    def own_kernel(
        x: mx.array, *weight: mx.array, group_size: int, bits: int, stock: Any = mx.quantized_matmul
    ) -> mx.array:
        given.append(x.shape[0])
        out: mx.array = stock(x, *weight, transpose=True, group_size=group_size, bits=bits)
        return out

    monkeypatch.setattr(linear, "quantized_matmul", own_kernel)
    install(block, OWN)

    for x, expected in zip(inputs, want, strict=True):
        for have, stock in zip(block(x), expected, strict=True):
            assert largest_difference(have, stock) < 2e-2
    assert given == ([1] * 3 + [3] * 3 + [4] * 3 if dtype == mx.bfloat16 else [])


@pytest.mark.parametrize("way", WAYS)
def test_plans_hold_inside_a_compiled_function(way: str) -> None:
    block = make_block()
    x = mx.random.normal((5, 1, 128))
    want = block.up_proj(x)
    install(block, WAYS[way])
    mx.enable_compile()
    try:
        compiled = mx.compile(lambda x: block.up_proj(x))
        have = [compiled(x), compiled(x), compiled(x[:2])]
        mx.eval(have)
    finally:
        mx.disable_compile()

    assert largest_difference(have[1], want) < 1e-5
    assert largest_difference(have[2], want[:2]) < 1e-5


DENSE_EXPERTS = LinearTimings({32: 9.0, 64: 9.0}, dense={32: 1.0, 64: 1.0})


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["qwen3-moe", "gpt-oss"])
@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 40), (40, 1)])
def test_models_with_experts_give_the_same_logits(
    family: str, way: str, shape: tuple[int, int]
) -> None:
    """40 tokens of two experts each are sorted, 5 are not."""
    model = make_tiny_model(family).model
    quantize(model, 32, 8)
    tokens = mx.arange(40)[: shape[0] * shape[1]].reshape(shape)
    want = model(tokens)
    mx.eval(want)

    report = install(model, WAYS[way], experts=DENSE_EXPERTS if way == "dense" else STOCK)

    assert report.num_layers["QuantizedSwitchLinear"] >= 6
    assert largest_difference(model(tokens), want) < 1e-5


def test_dense_experts_are_unpacked_for_sorted_pairs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_tiny_model("qwen3-moe").model
    quantize(model, 32, 8)
    install(model, STOCK, experts=DENSE_EXPERTS)
    calls: list[tuple[int, ...]] = []
    gather = mx.gather_mm

    def count(x: mx.array, *args: Any, **options: Any) -> mx.array:
        calls.append(tuple(x.shape))
        return gather(x, *args, **options)

    monkeypatch.setattr(mx, "gather_mm", count)
    experts = model.layers[0].mlp.switch_mlp

    experts(mx.zeros((31, 1, 64)), mx.zeros((31, 1, 2), mx.uint32))
    assert calls == []
    experts(mx.zeros((32, 1, 64)), mx.zeros((32, 1, 2), mx.uint32))
    assert calls == [(64, 1, 64), (64, 1, 64), (64, 1, 32)]


def test_the_report_tells_what_is_there() -> None:
    class OwnLinear(QuantizedLinear):
        pass

    block = make_block()
    block.own = OwnLinear(64, 64)
    block.plain = Linear(64, 64)
    block.also_up = QuantizedLinear(128, 64, False)

    report = install(block, PADDED)

    assert report.num_layers == {
        "QuantizedEmbedding": 1,
        "QuantizedLinear": 3,
        "OwnLinear": 1,
        "Linear": 1,
    }
    assert report.num_left_alone == {"OwnLinear": 1}
    assert type(block.own) is OwnLinear
    assert isinstance(block.up_proj, QuantizedLinear)
    assert sorted((str(s.shape), s.num_layers) for s in report.shapes) == [
        ("128->64 affine 4-bit group 64 float32", 2),
        ("128->96 affine 4-bit group 64 float32", 1),
        ("64->128 affine 4-bit group 64 float32", 1),
    ]
    assert "1 OwnLinear left alone" in report.describe()
    assert "2 of 128->64 affine 4-bit group 64 float32: 1 as 4, 2 as 8" in report.describe()


def test_installing_again_replaces_the_plans() -> None:
    block = make_block()
    install(block, PADDED)

    report = install(block, STOCK)

    assert type(block.up_proj) is PlannedLinear
    assert [shape.num_layers for shape in report.shapes] == [1, 1, 1]
    assert block.up_proj.plan.rows_to_run(2) == 2


def test_weights_are_kept_as_they_are() -> None:
    block = make_block()
    weight, names = block.up_proj.weight, set(block.up_proj)

    install(block, DENSE)
    mx.eval(block(mx.zeros((4, 128))))

    assert block.up_proj.weight is weight
    assert set(block.up_proj) == names


SLOW_AT_FEW = LinearTimings({1: 2.0, 2: 6.0, 4: 9.0, 8: 2.0, 16: 2.5, 32: 4.0})
STEADY = LinearTimings({1: 1.0, 2: 1.0, 4: 1.0, 8: 2.0, 16: 4.0, 32: 5.0})


@pytest.mark.parametrize(
    ("slow_layers", "rows_to_run"),
    [
        ({"128->64", "64->128", "128->96"}, [1, 8, 8, 8, 8, 8, 9, 40]),
        (set(), [1, 2, 3, 4, 7, 8, 9, 40]),
        # 8 rows in place of 4 save 7 in one layer and cost 4 in the four others; in place of 2, 4.
        ({"128->64"}, [1, 2, 3, 8, 8, 8, 9, 40]),
    ],
)
def test_a_step_is_padded_where_that_saves_time_over_all_layers(
    slow_layers: set[str], rows_to_run: list[int]
) -> None:
    block = make_block()
    block.more = [QuantizedLinear(64, 128) for _ in range(2)]

    report = install_linear_plans(
        block,
        mx.float32,
        lambda shape, _: SLOW_AT_FEW if str(shape).split()[0] in slow_layers else STEADY,
    )

    assert [report.rows_to_run(rows) for rows in (1, 2, 3, 4, 7, 8, 9, 40)] == rows_to_run


def test_layers_that_no_step_runs_do_not_count() -> None:
    block = make_block()
    report = install_linear_plans(
        block,
        mx.float32,
        lambda shape, _: SLOW_AT_FEW if shape.output_dims == 64 else STEADY,
        also=[QuantizedLinear(128, 256), QuantizedLinear(128, 256)],
    )
    shapes = {found.shape.output_dims: found.shape for found in report.shapes}

    less = report.without([shapes[128], shapes[96]])

    assert sum(report.num_layers.values()) == 3
    assert [found.num_layers for found in report.shapes] == [1, 1, 1, 2]
    assert {found.shape.output_dims: found.num_layers for found in less.shapes} == {
        64: 1,
        128: 0,
        96: 0,
        256: 2,
    }
    # 8 rows in place of 2 save 4 in the slow layer and cost 1 in each of the others.
    assert (report.rows_to_run(2), less.rows_to_run(2)) == (2, 8)


def test_more_rows_would_choose_more_experts() -> None:
    model = make_tiny_model("qwen3-moe").model
    quantize(model, 32, 8)

    assert install(model, SLOW_AT_FEW, experts=DENSE_EXPERTS).rows_to_run(2) == 2


def test_experts_with_a_global_scale_are_left_alone() -> None:
    block = make_block()
    block.experts = QuantizedSwitchLinear(
        64, 32, 4, bias=False, group_size=16, bits=4, mode="nvfp4", global_scale=True
    )

    report = install(block, STOCK)

    assert type(block.experts) is QuantizedSwitchLinear
    assert report.num_left_alone == {"QuantizedSwitchLinear": 1}
