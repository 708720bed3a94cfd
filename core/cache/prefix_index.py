"""Which block holds the content of which hash."""

from __future__ import annotations

from .block_hash import BlockHash


class PrefixIndex:
    """Maps block hashes to block ids and back, one to one."""

    def __init__(self) -> None:
        self._block_by_hash: dict[BlockHash, int] = {}
        self._hash_by_block: dict[int, BlockHash] = {}

    def __len__(self) -> int:
        return len(self._block_by_hash)

    def insert(self, block_hash: BlockHash, block_id: int) -> bool:
        """Remember a block, unless its content or the block itself is known; whether it was new."""
        if block_hash in self._block_by_hash or block_id in self._hash_by_block:
            return False
        self._block_by_hash[block_hash] = block_id
        self._hash_by_block[block_id] = block_hash
        return True

    def remove_block(self, block_id: int) -> None:
        """Forget what a block holds."""
        del self._block_by_hash[self._hash_by_block.pop(block_id)]

    def block_of(self, block_hash: BlockHash) -> int | None:
        """The block that holds this content."""
        return self._block_by_hash.get(block_hash)

    def hash_of(self, block_id: int) -> BlockHash | None:
        """What a block holds, if it can be found by it."""
        return self._hash_by_block.get(block_id)

    def check_integrity(self) -> None:
        """Raise `AssertionError` unless both directions agree."""
        backward = {block_hash: block_id for block_id, block_hash in self._hash_by_block.items()}
        assert backward == self._block_by_hash, "prefix index: the two directions disagree"
