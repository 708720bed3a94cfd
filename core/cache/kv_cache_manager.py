"""The façade that the scheduler talks to: who holds which blocks, and what can be reused.

Plain Python: knows token ids, hashes and block ids. The arrays behind the ids are `kv_store`'s.
A model whose layers do not fit into blocks has no layer groups; then everything here is trivially
possible and free, and the runner keeps the model's own caches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from .block_hash import BlockHash, hash_block, root_hash
from .block_pool import BlockPool
from .block_table import BlockTable
from .checkpoints import Checkpoints, SequenceCheckpoints
from .kv_layout import LayerGroup, blocks_for

# Of a layer group and of a block's place in the text.
HasBlock: TypeAlias = Callable[[int, int], bool]


@dataclass(slots=True)
class SequenceCache:
    """What one sequence holds of the KV cache.

    Attributes:
        tables: One block table per layer group.
        block_hashes: Hashes of the sequence's full blocks, as far as they are worked out.
        num_published: Blocks from the start that were offered to the prefix index.
        num_announced: Blocks from the start up to which this sequence said it would compute.
        checkpoints: Of a model with recurrent layers: the states that it saves.
        num_matchable: Blocks before the last token of the text that was matched.
    """

    root: BlockHash
    tables: tuple[BlockTable, ...]
    block_hashes: list[BlockHash] = field(default_factory=list)
    num_published: int = 0
    num_announced: int = 0
    checkpoints: SequenceCheckpoints = field(default_factory=SequenceCheckpoints)
    num_matchable: int = 0


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """The longest reusable prefix of a prompt, in whole blocks.

    Attributes:
        num_blocks: Its length.
        is_pending: Whether a running sequence is about to compute the block that comes next.
    """

    num_blocks: int
    is_pending: bool


class KVCacheManager:
    """Block pools, block tables and prefix indices of all layer groups, kept in step.

    Args:
        namespace: What shaped all keys and values besides tokens: model fingerprint, adapter,
            KV dtype.
        num_states: How many states of recurrent layers may be saved; ``None`` for a model without
            such layers.

    Attributes:
        checkpoints: These.
    """

    def __init__(
        self,
        groups: Sequence[LayerGroup],
        num_blocks: Sequence[int],
        *,
        block_size: int,
        namespace: Sequence[str] = (),
        num_states: int | None = None,
    ) -> None:
        assert len(groups) == len(num_blocks)
        self.block_size = block_size
        self.groups = tuple(groups)
        self.pools = tuple(BlockPool(count) for count in num_blocks)
        self.checkpoints = None if num_states is None else Checkpoints(num_states)
        self._sliding = [i for i, group in enumerate(groups) if group.window is not None]
        self._namespace = tuple(namespace)
        self._announced: Counter[BlockHash] = Counter()

    @property
    def num_blocks(self) -> int:
        """Blocks over all groups."""
        return sum(pool.num_blocks for pool in self.pools)

    @property
    def num_free(self) -> int:
        """Free blocks over all groups."""
        return sum(pool.num_free for pool in self.pools)

    @property
    def num_evictable(self) -> int:
        """Evictable blocks over all groups."""
        return sum(pool.num_evictable for pool in self.pools)

    @property
    def max_sequence_tokens(self) -> int | None:
        """Most tokens that one sequence alone could hold; ``None`` if nothing limits it."""
        counts = [
            pool.num_blocks
            for group, pool in zip(self.groups, self.pools, strict=True)
            if group.window is None
        ]
        return min(counts) * self.block_size if counts else None

    def open(self, *, salt: str = "") -> SequenceCache:
        """Bookkeeping for a new sequence; holds nothing yet."""
        return SequenceCache(
            root=root_hash(*self._namespace, salt),
            tables=tuple(BlockTable(self.block_size) for _ in self.groups),
        )

    def match(self, cache: SequenceCache, token_ids: Sequence[int]) -> PrefixMatch:
        """Longest prefix of ``token_ids`` that every layer group can serve.

        The last token is never part of it: without its logits there is nothing to sample.
        """
        if not self._has_content or not token_ids:
            return PrefixMatch(0, False)
        limit = (len(token_ids) - 1) // self.block_size
        self._extend_hashes(cache, token_ids, limit)
        hashes = cache.block_hashes[:limit]
        cache.num_matchable = limit

        def has(group: int, index: int) -> bool:
            return self.pools[group].index.block_of(hashes[index]) is not None

        length = self.longest_match(hashes, has, self.has_state)
        if self.checkpoints is not None:
            return PrefixMatch(length, self.checkpoints.is_announced(hashes[length:]))
        pending = length < limit and self._announced[hashes[length]] > 0
        return PrefixMatch(length, pending)

    def longest_match(
        self, hashes: Sequence[BlockHash], has: HasBlock, has_state: Callable[[BlockHash], bool]
    ) -> int:
        """The most blocks, of these, that every layer could do without computing them.

        Args:
            has: Whether a layer group has the block of an index.
            has_state: Whether the state after a block is saved; asked only of models with such.
        """
        length, sliding = len(hashes), list[int]()
        for index, group in enumerate(self.groups):
            if group.window is None:
                length = next((i for i in range(length) if not has(index, i)), length)
            else:
                sliding.append(index)
        if not sliding and self.checkpoints is None:
            return length
        # A sliding group needs only the run of blocks that its window reaches back over, recurrent
        # layers a state that was saved right there.
        for candidate in range(length, 0, -1):
            is_covered = all(self._covers(group, candidate, has) for group in sliding)
            if is_covered and has_state(hashes[candidate - 1]):
                return candidate
        return 0

    def has_state(self, block_hash: BlockHash) -> bool:
        """Whether the state after a block is there, or there is none to be had."""
        return self.checkpoints is None or self.checkpoints.id_of(block_hash) is not None

    def explain(self, cache: SequenceCache, match: PrefixMatch) -> str:
        """Why a match ends where it does, for people."""
        index, hashes = match.num_blocks, cache.block_hashes[: cache.num_matchable]
        if index == len(hashes):
            return "all full blocks before the last token"
        missing = [
            number
            for number, (group, pool) in enumerate(zip(self.groups, self.pools, strict=True))
            if group.window is None and pool.index.block_of(hashes[index]) is None
        ]
        if missing:
            return f"block {index} was never computed, or was evicted"
        if not self.has_state(hashes[index]):
            return f"no state of recurrent layers was saved after block {index} or later"
        return f"a window's blocks before block {index + 1} are gone"

    def adopt(self, cache: SequenceCache, match: PrefixMatch) -> int:
        """Start an empty sequence with the matched blocks; returns the tokens that they hold."""
        length = match.num_blocks
        for group, pool, table in zip(self.groups, self.pools, cache.tables, strict=True):
            first = group.first_needed(length * self.block_size) // self.block_size
            blocks = [pool.index.block_of(h) for h in cache.block_hashes[first:length]]
            held = [block_id for block_id in blocks if block_id is not None]
            assert len(held) == len(blocks), "a matched block vanished before it was adopted"
            pool.retain(held)
            table.start_at(first, held)
        cache.num_published = length
        return length * self.block_size

    def use_state(self, cache: SequenceCache, num_tokens: int) -> int | None:
        """Id of the saved state that a sequence goes on from after so many reused tokens."""
        if self.checkpoints is None or num_tokens == 0:
            return None
        return self.checkpoints.use(cache.block_hashes[num_tokens // self.block_size - 1])

    def reserve_state(self, cache: SequenceCache, num_tokens: int, *, rolls: bool) -> int | None:
        """An id to save the state after so many tokens by, if it is to be saved there.

        Args:
            rolls: The last of these tokens belongs to the answer or ends the prompt.
        """
        num_blocks, rest = divmod(num_tokens, self.block_size)
        if self.checkpoints is None or rest or not num_blocks:
            return None
        if not rolls and num_blocks not in cache.checkpoints.planned:
            return None
        return self.checkpoints.reserve(cache.checkpoints, num_blocks, rolls=rolls)

    def withdraw_states(self, cache: SequenceCache, num_tokens: int) -> None:
        """Do not publish states that were saved behind so many tokens: they are not the text's."""
        if self.checkpoints is not None:
            self.checkpoints.withdraw(cache.checkpoints, num_tokens // self.block_size)

    def next_stop(self, cache: SequenceCache, num_tokens: int) -> int | None:
        """The position, behind so many tokens, at which a chunk has to end for a state's sake."""
        blocks = (end * self.block_size for end in cache.checkpoints.planned)
        return next((end for end in blocks if end > num_tokens), None)

    def announce(self, cache: SequenceCache, message_ends: Iterable[int] = ()) -> None:
        """Say that this sequence will compute all its hashed blocks, so that others may wait.

        Args:
            message_ends: Positions behind which a later prompt may differ.
        """
        if self.checkpoints is not None:
            ends = (position // self.block_size for position in message_ends)
            self.checkpoints.plan(cache.checkpoints, cache.block_hashes, cache.num_published, ends)
            return
        assert cache.num_announced == 0
        cache.num_announced = len(cache.block_hashes)
        self._announced.update(cache.block_hashes[cache.num_published :])

    def can_hold(
        self, cache: SequenceCache, match: PrefixMatch, *, num_tokens: int, max_chunk: int
    ) -> bool:
        """Whether a prompt of ``num_tokens``, run in chunks, fits beside what is in use now."""
        for group, pool in zip(self.groups, self.pools, strict=True):
            first = group.first_needed(match.num_blocks * self.block_size) // self.block_size
            # Reused blocks that nobody holds stop being available once they are adopted.
            reused = (pool.index.block_of(h) for h in cache.block_hashes[first : match.num_blocks])
            idle = sum(block is not None and pool.is_evictable(block) for block in reused)
            needed = blocks_for(num_tokens, self.block_size) - match.num_blocks + idle
            if group.window is not None:
                # Never more at once, reused ones included: those behind the window are let go.
                most = blocks_for(group.window + max_chunk, self.block_size, slack=1)
                needed = min(needed, most)
            if needed > pool.num_available:
                return False
        return True

    def try_grow(self, cache: SequenceCache, *, start: int, stop: int) -> bool:
        """Hold slots for positions ``[start, stop)``, which are computed next.

        Positions that no token from ``start`` on attends to are let go first. Either every group
        gets its blocks or none does.
        """
        for index in self._sliding:
            first = self.groups[index].first_needed(start) // self.block_size
            # Tail of a window: oldest first, it is the least likely to be matched again.
            self.pools[index].release(cache.tables[index].drop_before(first))
        num_blocks = blocks_for(stop, self.block_size)
        wanted = [max(0, num_blocks - table.num_blocks) for table in cache.tables]
        if not any(wanted):
            return True
        if any(n > pool.num_available for n, pool in zip(wanted, self.pools, strict=True)):
            return False
        for count, pool, table in zip(wanted, self.pools, cache.tables, strict=True):
            table.append(pool.allocate(count))
        return True

    def publish(self, cache: SequenceCache, token_ids: Sequence[int], *, num_computed: int) -> None:
        """Make the blocks that are full by now findable for others."""
        if not self._has_content:
            return
        full = num_computed // self.block_size
        self._extend_hashes(cache, token_ids, full)
        for index in range(cache.num_published, full):
            block_hash = cache.block_hashes[index]
            for pool, table in zip(self.pools, cache.tables, strict=True):
                if index >= table.first_block:
                    pool.publish(table.block_at(index), block_hash)
            if index < cache.num_announced:
                self._retract(block_hash)
        if self.checkpoints is not None:
            self.checkpoints.publish(cache.checkpoints, cache.block_hashes, full)
        cache.num_published = max(cache.num_published, full)

    def release(self, cache: SequenceCache) -> None:
        """Let go of everything the sequence holds. Its full blocks stay findable."""
        for index in range(cache.num_published, cache.num_announced):
            self._retract(cache.block_hashes[index])
        for pool, table in zip(self.pools, cache.tables, strict=True):
            # Tail first: the head of a prompt is what others share most.
            pool.release(reversed(table.clear()))
        if self.checkpoints is not None:
            self.checkpoints.release(cache.checkpoints)
        cache.num_announced = 0
        cache.num_published = 0

    def clear_index(self) -> None:
        """Forget all cached content; what running sequences hold stays theirs."""
        for pool in self.pools:
            pool.forget_content()
        if self.checkpoints is not None:
            self.checkpoints.pool.forget_content()

    def check_integrity(self, caches: Iterable[SequenceCache]) -> None:
        """Raise `AssertionError` unless pools and the given sequences' tables agree exactly."""
        caches = list(caches)
        if self.checkpoints is not None:
            self.checkpoints.check_integrity(cache.checkpoints for cache in caches)
        held: list[Counter[int]] = [Counter() for _ in self.pools]
        announced: Counter[BlockHash] = Counter()
        for cache in caches:
            for counter, table in zip(held, cache.tables, strict=True):
                counter.update(table.block_ids)
            announced.update(cache.block_hashes[cache.num_published : cache.num_announced])
        for pool, counter in zip(self.pools, held, strict=True):
            pool.check_integrity()
            for block_id in range(pool.num_blocks):
                count = pool.reference_count(block_id)
                assert count == counter[block_id], f"block {block_id}: {count} holders counted"
        assert announced == +self._announced, "blocks are announced that nobody will compute"

    @property
    def _has_content(self) -> bool:
        return bool(self.groups) or self.checkpoints is not None

    def _covers(self, group: int, length: int, has: HasBlock) -> bool:
        first = self.groups[group].first_needed(length * self.block_size) // self.block_size
        return all(has(group, index) for index in range(length - 1, first - 1, -1))

    def _extend_hashes(self, cache: SequenceCache, token_ids: Sequence[int], count: int) -> None:
        size = self.block_size
        for index in range(len(cache.block_hashes), count):
            parent = cache.block_hashes[-1] if cache.block_hashes else cache.root
            block = token_ids[index * size : (index + 1) * size]
            cache.block_hashes.append(hash_block(parent, block))

    def _retract(self, block_hash: BlockHash) -> None:
        self._announced[block_hash] -= 1
        if self._announced[block_hash] <= 0:
            del self._announced[block_hash]
