"""What each layer of a model keeps: kind, heads, dims and dtype; and the bytes that follow.

Layers of the same window share block tables and a block pool: a *layer group*. A block of a group
covers ``block_size`` tokens in all of the group's layers. Layers that keep a state of fixed size
are in no group.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

# A model's own cache of a layer: one part, or several in a composite layer. Indices of parts.
PartTree: TypeAlias = int | tuple[int, ...]


class LayerKind(enum.Enum):
    """How a layer remembers the past."""

    FULL = "full"  # keys and values of every token
    SLIDING = "sliding"  # keys and values of the last `window` tokens
    RECURRENT = "recurrent"  # a state of fixed size per sequence
    OPAQUE = "opaque"  # only the model's own code understands it


@dataclass(frozen=True, slots=True)
class StateSpec:
    """One array of a recurrent layer's state.

    Attributes:
        shape: For one sequence, ``[1, ...]``.
        dtype: MLX's name of it.
        item_bytes: Bytes of one number.
    """

    shape: tuple[int, ...]
    dtype: str
    item_bytes: int

    @property
    def nbytes(self) -> int:
        """Its memory."""
        return math.prod(self.shape) * self.item_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """One layer's share of the KV cache.

    Attributes:
        window: Tokens that a sliding layer attends to, the current one included.
        key_dim: Size of a key per head; ``value_dim`` may differ.
        item_bytes: Bytes of one number.
        states: The arrays of a recurrent layer.
        key_bits: 8 or 4 if keys are quantised, 0 if they are not; ``value_bits`` with it.
        group_size: Numbers of a vector that share a scale and a bias, if quantised.
    """

    kind: LayerKind
    num_kv_heads: int = 0
    key_dim: int = 0
    value_dim: int = 0
    item_bytes: int = 0
    window: int | None = None
    states: tuple[StateSpec, ...] = ()
    key_bits: int = 0
    value_bits: int = 0
    group_size: int = 0

    @property
    def is_paged(self) -> bool:
        """Whether its past lies in blocks."""
        return self.kind in (LayerKind.FULL, LayerKind.SLIDING)

    @property
    def state_bytes(self) -> int:
        """What a recurrent layer keeps for one sequence."""
        return sum(state.nbytes for state in self.states)

    @property
    def is_quantized(self) -> bool:
        """Whether keys and values have fewer bits than the model gives them."""
        return self.key_bits > 0

    @property
    def bytes_per_token(self) -> int:
        """Key and value bytes of one token."""
        if not self.is_quantized:
            return self.num_kv_heads * (self.key_dim + self.value_dim) * self.item_bytes
        packed = (self.key_dim * self.key_bits + self.value_dim * self.value_bits) // 8
        groups = (self.key_dim + self.value_dim) // self.group_size
        return self.num_kv_heads * (packed + 2 * groups * self.item_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroup:
    """Layers that share block tables.

    Attributes:
        layers: Their indices in the model.
        window: Tokens attended to, or ``None`` for all.
    """

    layers: tuple[int, ...]
    window: int | None
    bytes_per_token: int

    def first_needed(self, position: int) -> int:
        """First position that a token at ``position`` attends to."""
        return 0 if self.window is None else max(0, position - self.window + 1)


class KVLayout:
    """The kinds of all layers, and how the paged ones are grouped.

    Args:
        layers: What keeps something, in the model's order. A composite layer is several of these.
        tree: For each cache that the model is handed, which of `layers` it stands for; one each by
            default.
    """

    def __init__(self, layers: Sequence[LayerSpec], tree: Sequence[PartTree] | None = None) -> None:
        self.layers = tuple(layers)
        self.tree = tuple(range(len(self.layers)) if tree is None else tree)
        self.groups = tuple(_group(self.layers)) if self.is_understood else ()

    @property
    def is_understood(self) -> bool:
        """Whether every layer's past fits into blocks and states."""
        return bool(self.layers) and not any(x.kind is LayerKind.OPAQUE for x in self.layers)

    @property
    def is_flat(self) -> bool:
        """Whether all layers take tokens as they come, each a batch entry of its own."""
        return len(self.tree) == len(self.layers) and all(x.is_paged for x in self.layers)

    @property
    def recurrent(self) -> tuple[int, ...]:
        """Layers that keep a state."""
        return tuple(i for i, x in enumerate(self.layers) if x.kind is LayerKind.RECURRENT)

    @property
    def state_bytes(self) -> int:
        """What one sequence's states take in all layers."""
        return sum(layer.state_bytes for layer in self.layers)

    def group_of(self, layer: int) -> int:
        """Index of a paged layer's group."""
        return next(i for i, group in enumerate(self.groups) if layer in group.layers)

    def describe(self) -> str:
        """One line for people, such as ``24 full(k8 v4), 4 sliding(512)``."""
        counts: dict[str, int] = {}
        for layer in self.layers:
            window = f"({layer.window})" if layer.window is not None else ""
            bits = f"(k{layer.key_bits} v{layer.value_bits})" if layer.is_quantized else ""
            name = f"{layer.kind.value}{window}{bits}"
            counts[name] = counts.get(name, 0) + 1
        return ", ".join(f"{count} {name}" for name, count in counts.items())


def _group(layers: Sequence[LayerSpec]) -> list[LayerGroup]:
    by_window: dict[int | None, list[int]] = {}
    for index, layer in enumerate(layers):
        if layer.is_paged:
            by_window.setdefault(layer.window, []).append(index)
    # Full attention first: its index decides how long a prefix match can be.
    ordered = sorted(by_window.items(), key=lambda item: (item[0] is not None, item[0] or 0))
    return [
        LayerGroup(
            layers=tuple(members),
            window=window,
            bytes_per_token=sum(layers[index].bytes_per_token for index in members),
        )
        for window, members in ordered
    ]


def split_blocks(
    layout: KVLayout, *, max_bytes: int, block_size: int, max_num_seqs: int, prefill_chunk: int
) -> list[int]:
    """Share a memory budget out among the layer groups.

    A sliding group never needs more than a window and a chunk for every running sequence, nor more
    than the full group has; what it does not need goes to full attention.

    Returns:
        Blocks of each group; some may be 0 when the budget is smaller than one block.
    """
    groups = layout.groups
    caps: list[int | None] = [
        None
        if group.window is None
        else max_num_seqs * blocks_for(group.window + prefill_chunk, block_size, slack=1)
        for group in groups
    ]
    if not groups:
        return []
    if all(cap is not None for cap in caps):
        caps = [None] * len(groups)
    # With fewer blocks for everybody than a cap allows, the cap does not bind; so groups with the
    # smallest caps are settled first and the rest share what is left.
    counts = [0] * len(groups)
    left_bytes = max_bytes
    unsettled = set(range(len(groups)))
    for index in sorted(unsettled, key=lambda i: (caps[i] is None, caps[i] or 0)):
        block_bytes = sum(groups[i].bytes_per_token for i in unsettled) * block_size
        even = left_bytes // block_bytes
        cap = caps[index]
        if cap is None or even <= cap:
            for i in unsettled:
                counts[i] = even
            break
        counts[index] = cap
        left_bytes -= cap * groups[index].bytes_per_token * block_size
        unsettled.remove(index)
    return counts


def blocks_for(num_tokens: int, block_size: int, *, slack: int = 0) -> int:
    """Blocks that hold ``num_tokens`` tokens, plus ``slack``."""
    return -(-num_tokens // block_size) + slack
