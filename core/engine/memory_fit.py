"""How much of a model fits this machine, worked out before any of its weights are read.

The budget is the one that `factory` gives the KV cache, except for a step's activations: these are
measured when a model is loaded.
"""

from __future__ import annotations

import dataclasses
import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backend import device_kind, mx
from ..cache.kv_layout import KVLayout, LayerGroup, LayerSpec, StateSpec, blocks_for
from ..cache.kv_quantization import quantize_layout
from ..config import CacheConfig, KVBits, SchedulerConfig
from ..errors import ConfigError, ModelLoadError
from ..models.loader import load_lazily
from ..models.model_facts import WeightFacts
from ..runner.model_adapter import describe_layout
from .factory import CPU_MOST_BYTES, CPU_SHARE, GPU_SHARE, memory_limit

_KV_BITS = ("off", "8", "8,4", "4")
_CONTEXTS = (2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072, 262_144, 524_288, 1_048_576)
_BLOCK_SIZE = CacheConfig().block_size
_PREFILL_CHUNK = SchedulerConfig().prefill_chunk
_FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class KVCost:
    """What keys and values cost in some number of bits.

    Attributes:
        kv_bits: As ``--kv-bits`` takes it.
        bytes_per_token: In the layers that keep all of the past.
        fixed_bytes: Of windows and states, for one sequence.
        longest: Tokens of the longest sequence that fits, by memory alone.
        streams: How many sequences of so many tokens fit together.
    """

    kv_bits: str
    bytes_per_token: int
    fixed_bytes: int
    longest: int
    streams: dict[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFit:
    """A model in this machine's memory.

    Attributes:
        memory_bytes: What the device can use in all.
        weight_bytes: What the weights take once they are loaded.
        cache_bytes: What is left for keys and values; not above 0 if the weights do not fit.
        costs: By number of bits; without those that the model cannot have.
    """

    device: str
    layout: KVLayout
    memory_bytes: int
    weight_bytes: int
    cache_bytes: int
    costs: tuple[KVCost, ...]


def find_memory_fit(
    folder: Path, weights: WeightFacts, *, model_id: str, context: int | None
) -> MemoryFit:
    """Work out a model's layout and what it costs here.

    Args:
        context: Most tokens that the model was made for.

    Raises:
        ModelLoadError: mlx-lm does not know the model, or not with these weights.
    """
    layout = layout_of_folder(folder, model_id=model_id)
    device, memory = device_kind(), memory_limit()
    weight_bytes = weights.num_bytes
    if device == "cpu":
        weight_bytes = weights.num_parameters * _FLOAT32_BYTES
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") - weight_bytes
        budget = min(int(free * CPU_SHARE), CPU_MOST_BYTES)
    else:
        budget = int(memory * GPU_SHARE) - weight_bytes
    return MemoryFit(
        device=device,
        layout=layout,
        memory_bytes=memory,
        weight_bytes=weight_bytes,
        cache_bytes=budget,
        costs=find_kv_costs(layout, budget, context=context),
    )


def find_kv_costs(layout: KVLayout, budget: int, *, context: int | None) -> tuple[KVCost, ...]:
    """What fits `budget` bytes; nothing for layers that are not understood."""
    return tuple(
        _cost(bits, quantised, max(0, budget), context)
        for bits in _KV_BITS
        if layout.is_understood and (quantised := _in_bits(layout, bits)) is not None
    )


def _in_bits(layout: KVLayout, text: str) -> KVLayout | None:
    bits = KVBits.parse(text)
    try:
        return layout if bits is None else quantize_layout(layout, bits)
    except ConfigError:
        return None


def _cost(bits: str, layout: KVLayout, budget: int, context: int | None) -> KVCost:
    most = context or _CONTEXTS[-1]
    lengths = [length for length in _CONTEXTS if length < most] + [most]
    return KVCost(
        kv_bits=bits,
        bytes_per_token=sum(it.bytes_per_token for it in layout.groups if it.window is None),
        fixed_bytes=stream_bytes([it for it in layout.groups if it.window], most)
        + 2 * layout.state_bytes,
        longest=bisect_right(range(most), budget, key=lambda n: _sequence_bytes(layout, n + 1)),
        streams={length: budget // _sequence_bytes(layout, length) for length in lengths},
    )


def _sequence_bytes(layout: KVLayout, num_tokens: int) -> int:
    # The states of a pass are made of the last one's, so a running sequence has two.
    return max(1, stream_bytes(layout.groups, num_tokens) + 2 * layout.state_bytes)


def stream_bytes(groups: Sequence[LayerGroup], num_tokens: int) -> int:
    """What the blocks of one running sequence take."""
    return sum(
        group.bytes_per_token
        * _BLOCK_SIZE
        * blocks_for(
            num_tokens if group.window is None else min(num_tokens, group.window + _PREFILL_CHUNK),
            _BLOCK_SIZE,
        )
        for group in groups
    )


def layout_of_folder(folder: Path, *, model_id: str) -> KVLayout:
    """The kinds of a model's layers as they would be on this device; no weight is read.

    Raises:
        ModelLoadError: mlx-lm does not know the model, or not with these weights.
    """
    model, _ = load_lazily(folder, model_id=model_id)
    try:
        layout, _ = describe_layout(_Unevaluated(model))
    # Foreign code on foreign settings raises anything from KeyError to RuntimeError.
    except Exception as error:
        raise ModelLoadError(f"{model_id} cannot run: {' '.join(str(error).split())}") from error
    if device_kind() != "cpu":
        return layout
    return KVLayout([_widen(layer) for layer in layout.layers], layout.tree)


class _Unevaluated:
    """A model whose caches get arrays of the right shapes, and whose answers cost nothing."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, *args: Any, **kwargs: Any) -> mx.array:
        self._model(*args, **kwargs)
        return mx.zeros(1)


def _widen(layer: LayerSpec) -> LayerSpec:
    """On a CPU all floating-point numbers are float32, see `loader`."""
    states = tuple(
        StateSpec(it.shape, "float32", _FLOAT32_BYTES) if "float" in it.dtype else it
        for it in layer.states
    )
    item_bytes = _FLOAT32_BYTES if layer.is_paged else layer.item_bytes
    return dataclasses.replace(layer, item_bytes=item_bytes, states=states)
