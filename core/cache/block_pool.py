"""Owner of block ids: reference counts, and which unused block goes next.

A block is in exactly one of three states:

* in use: at least one sequence holds it (reference count > 0);
* evictable: nobody holds it, but it has a hash, so a later prompt may still want it;
* free: nobody holds it and it has no hash.

Free blocks are handed out first, then evictable ones, least recently used first. Knows ids and
hashes only; what they mean is `kv_cache_manager`'s business.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from ..errors import CacheFullError
from .block_hash import BlockHash
from .prefix_index import PrefixIndex


class BlockPool:
    """Hands out the ids ``0 .. num_blocks - 1``."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.index = PrefixIndex()
        self._reference_counts = [0] * num_blocks
        # A stack: the block that was freed last is the likeliest to be in the device's caches.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._evictable: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        """Blocks that hold nothing of use."""
        return len(self._free)

    @property
    def num_evictable(self) -> int:
        """Blocks that nobody holds but that a later prompt could reuse."""
        return len(self._evictable)

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` could hand out."""
        return len(self._free) + len(self._evictable)

    def reference_count(self, block_id: int) -> int:
        """How many holders the block has."""
        return self._reference_counts[block_id]

    def is_evictable(self, block_id: int) -> bool:
        """Whether nobody holds the block but a later prompt could reuse it."""
        return block_id in self._evictable

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` blocks, each with one holder; evicts cached content if it must.

        Raises:
            CacheFullError: Fewer are available; nothing is taken then.
        """
        if count > self.num_available:
            raise CacheFullError(needed=count, available=self.num_available)
        taken = []
        for _ in range(count):
            if self._free:
                block_id = self._free.pop()
            else:
                block_id, _ = self._evictable.popitem(last=False)
                self.index.remove_block(block_id)
            self._reference_counts[block_id] = 1
            taken.append(block_id)
        return taken

    def retain(self, block_ids: Iterable[int]) -> None:
        """Add one holder to each block; an evictable one is in use again."""
        for block_id in block_ids:
            if self._reference_counts[block_id] == 0:
                del self._evictable[block_id]
            self._reference_counts[block_id] += 1

    def release(self, block_ids: Iterable[int]) -> None:
        """Drop one holder of each block.

        Blocks that become evictable queue up in the order given, so the caller passes the blocks
        it would miss least first.
        """
        for block_id in block_ids:
            count = self._reference_counts[block_id] - 1
            assert count >= 0, f"block {block_id} released more often than held"
            self._reference_counts[block_id] = count
            if count == 0:
                if self.index.hash_of(block_id) is None:
                    self._free.append(block_id)
                else:
                    self._evictable[block_id] = None

    def publish(self, block_id: int, block_hash: BlockHash) -> None:
        """Make a full block findable. The first block with a hash keeps it.

        A second block of the same content stays private: swapping it for the first one would
        mean rewriting tables that a running step may read.
        """
        assert self._reference_counts[block_id] > 0, f"block {block_id} published while unused"
        self.index.insert(block_hash, block_id)

    def forget(self, block_id: int) -> None:
        """Drop an evictable block's hash: it becomes free."""
        del self._evictable[block_id]
        self.index.remove_block(block_id)
        self._free.append(block_id)

    def forget_content(self) -> None:
        """Drop all hashes: evictable blocks become free, blocks in use become private."""
        self.index = PrefixIndex()
        self._free.extend(self._evictable)
        self._evictable.clear()

    def check_integrity(self) -> None:
        """Raise `AssertionError` unless every block is in exactly one state."""
        free = set(self._free)
        evictable = set(self._evictable)
        in_use = {i for i, count in enumerate(self._reference_counts) if count > 0}
        assert len(free) == len(self._free), "a block is twice in the free list"
        assert not free & evictable, "a block is free and evictable"
        assert not (free | evictable) & in_use, "a block in use is up for grabs"
        assert len(free) + len(evictable) + len(in_use) == self.num_blocks, "a block was lost"
        for block_id in free:
            assert self.index.hash_of(block_id) is None, f"free block {block_id} has a hash"
        for block_id in evictable:
            assert self.index.hash_of(block_id) is not None, f"block {block_id} lost its hash"
        self.index.check_integrity()
