"""The blocks of one sequence in one layer group, by position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

BlockIds: TypeAlias = np.ndarray[Any, np.dtype[np.uint32]]


class BlockTable:
    """Maps token positions to slots of the KV store.

    Positions ``[0, first_block * block_size)`` are gone (outside a sliding window); the blocks of
    ``[first_block * block_size, num_blocks * block_size)`` are held.
    """

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self._first_block = 0
        self._block_ids: list[int] = []
        # The same, as far as `span` has been asked for it.
        self._array: BlockIds = np.empty(0, np.uint32)
        self._num_in_array = 0
        self._version = 0

    @property
    def version(self) -> int:
        """Stays the same while blocks are added only."""
        return self._version

    @property
    def first_block(self) -> int:
        """Index of the first block that is still held."""
        return self._first_block

    @property
    def num_blocks(self) -> int:
        """Blocks that the table has had so far, dropped ones included."""
        return self._first_block + len(self._block_ids)

    @property
    def num_held(self) -> int:
        """Blocks that the table holds now."""
        return len(self._block_ids)

    @property
    def block_ids(self) -> Sequence[int]:
        """Held blocks; the first one covers position ``first_block * block_size``."""
        return self._block_ids

    def block_at(self, index: int) -> int:
        """Id of the ``index``-th block of the sequence.

        Raises:
            IndexError: That block was dropped or never held.
        """
        if index < self._first_block:
            raise IndexError(f"block {index} lies before the first held block {self._first_block}")
        return self._block_ids[index - self._first_block]

    def slot(self, position: int) -> int:
        """Slot of a token position.

        Raises:
            IndexError: The position's block is not held.
        """
        size = self.block_size
        return self.block_at(position // size) * size + position % size

    def span(self, first: int, stop: int) -> BlockIds:
        """Ids of the ``first``-th to, without it, the ``stop``-th block; a view.

        They are held, and the array is read before the table changes.
        """
        num_held = len(self._block_ids)
        if self._num_in_array < num_held:  # blocks come at the end, one in many steps
            if num_held > len(self._array):
                known = self._array[: self._num_in_array]
                self._array = np.empty(2 * num_held, np.uint32)
                self._array[: len(known)] = known
            self._array[self._num_in_array : num_held] = self._block_ids[self._num_in_array :]
            self._num_in_array = num_held
        return self._array[first - self._first_block : stop - self._first_block]

    def append(self, block_ids: Sequence[int]) -> None:
        """Hold more blocks at the end."""
        self._block_ids.extend(block_ids)

    def start_at(self, first_block: int, block_ids: Sequence[int]) -> None:
        """Begin an empty table with a run of reused blocks."""
        assert self.num_blocks == 0, "only an empty table can start"
        self._first_block = first_block
        self._block_ids.extend(block_ids)

    def drop_before(self, first_block: int) -> list[int]:
        """Let go of the blocks before ``first_block``; returns their ids."""
        count = min(max(first_block - self._first_block, 0), len(self._block_ids))
        if not count:
            return []
        self._version += 1
        self._num_in_array = 0
        dropped = self._block_ids[:count]
        del self._block_ids[:count]
        self._first_block += count
        return dropped

    def clear(self) -> list[int]:
        """Let go of everything; returns the ids, in the order of their positions."""
        released, self._block_ids, self._first_block = self._block_ids, [], 0
        self._version += 1
        self._num_in_array = 0
        return released
