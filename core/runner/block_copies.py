"""Moves blocks and states between the device and the host's memory, for the disk tier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ..backend import mx
from ..cache.kv_store import KVStore
from .host_array import HostArray
from .state_store import StateStore

# One block's or one state's bytes, array by array.
Payload: TypeAlias = Sequence[bytes | bytearray | memoryview]


@dataclass(frozen=True, slots=True)
class CopyUnderWay:
    """Copies of blocks or states that the device is making.

    Attributes:
        arrays: ``[n, ...]`` each.
        is_sound: Whether all are numbers.
    """

    arrays: list[mx.array]
    is_sound: mx.array

    def read(self) -> list[Payload] | None:
        """Each one's bytes; ``None`` if they are not all numbers. Waits for the device."""
        if not self.is_sound.item():
            return None
        hosts = [_to_host(array) for array in self.arrays]
        return [[memoryview(host[i]).cast("B") for host in hosts] for i in range(len(hosts[0]))]


class BlockCopies:
    """Copies between one model's stores and bytes. The layout of the bytes follows the store's."""

    def __init__(self, store: KVStore, states: StateStore | None) -> None:
        self._store = store
        self._states = states

    def block_bytes(self, group: int) -> int:
        """Bytes of one block of a layer group."""
        return sum(array.nbytes for array in self._arrays(group, [0]))

    @property
    def state_bytes(self) -> int:
        """Bytes of one state."""
        return 0 if self._states is None else sum(array.nbytes for array in self._states.like())

    def read_blocks(self, group: int, block_ids: Sequence[int]) -> CopyUnderWay:
        """Start to copy blocks, as they are after all steps so far."""
        return _start(self._arrays(group, block_ids))

    def write_blocks(
        self, group: int, block_ids: Sequence[int], payloads: Sequence[Payload]
    ) -> bool:
        """Put bytes into blocks; ``False``, and nothing is written, if they do not fit."""
        index = mx.array(np.asarray(block_ids, np.uint32))
        layers = self._store.layout.groups[group].layers
        like = [array for layer in layers for array in self._store.block_arrays(layer, index[:1])]
        arrays = _from_host(payloads, like)
        if arrays is None:
            return False
        rest = iter(arrays)
        for layer in layers:
            # Layers of a group may differ in how many arrays they have, if some are quantised.
            mine = [next(rest) for _ in self._store.layer_arrays(layer)]
            self._store.put_block_arrays(layer, index, mine)
        mx.async_eval(*self._store.arrays())  # type: ignore[no-untyped-call]
        return True

    def read_state(self, state_id: int) -> CopyUnderWay | None:
        """Start to copy a saved state."""
        state = None if self._states is None else self._states.saved(state_id)
        return None if state is None else _start(state)

    def write_state(self, state_id: int, payload: Payload) -> bool:
        """Keep a state under an id; ``False`` if the bytes do not fit."""
        assert self._states is not None
        state = _from_host([payload], self._states.like())
        if state is None:
            return False
        self._states.put_saved(state_id, state)
        return True

    def _arrays(self, group: int, block_ids: Sequence[int]) -> list[mx.array]:
        index = mx.array(np.asarray(block_ids, np.uint32))
        layers = self._store.layout.groups[group].layers
        return [array for layer in layers for array in self._store.block_arrays(layer, index)]


def _start(arrays: Sequence[mx.array]) -> CopyUnderWay:
    floats = [array for array in arrays if mx.issubdtype(array.dtype, mx.floating)]
    sound = mx.array(True)
    for array in floats:
        sound = sound & mx.isfinite(array).all()
    copies = [mx.contiguous(array) for array in arrays]
    mx.async_eval(copies, sound)  # type: ignore[no-untyped-call]
    return CopyUnderWay(copies, sound)


def _to_host(array: mx.array) -> HostArray:
    # NumPy has no bfloat16; bytes are bytes.
    return np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)


def _from_host(payloads: Sequence[Payload], like: Sequence[mx.array]) -> list[mx.array] | None:
    """Arrays ``[n, ...]`` of `n` payloads, each ``like[i][0]`` in shape and dtype."""
    for payload in payloads:
        sizes = [memoryview(buffer).nbytes for buffer in payload]
        if sizes != [array.nbytes // len(array) for array in like]:
            return None
    arrays = []
    for place, array in enumerate(like):
        raw = np.stack([np.frombuffer(payload[place], np.uint8) for payload in payloads])
        size = int(array.dtype.size)
        words = raw.view(f"u{size}").reshape(len(payloads), *array.shape[1:])
        arrays.append(mx.array(words).view(array.dtype))
    return arrays
