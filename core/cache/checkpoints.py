"""Which states of recurrent layers are saved, by the text that they follow.

A block can be found by its hash and so can a state: the one after ``n`` blocks of a text goes by
the hash of the ``n``-th. But a state is there only if it was saved when exactly so many tokens had
run, so a prompt is cut into chunks at places that a later prompt may share. Plain Python: knows ids
and hashes; the arrays behind the ids are the runner's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .block_hash import BlockHash
from .block_pool import BlockPool

# Between saved states in blocks, apart from the ends of messages.
_GRID = 16
# Chunks between the ends of short messages would be too short to be worth it.
_LEAST_APART = 8
# But the last ones, which the next turn or another try shares, are saved wherever they are.
_LAST_ENDS = 2


@dataclass(slots=True)
class SequenceCheckpoints:
    """One sequence's part.

    Attributes:
        planned: After how many blocks the state is going to be saved, ascending.
        announced: Their hashes, for others to wait for.
        held: Ids that are not published yet, by number of blocks.
        rolling: Number of blocks of the newest one of the answer, which the next one replaces.
        rolling_hash: What that one was published by.
        saved: After how many blocks states were published.
    """

    planned: list[int] = field(default_factory=list)
    announced: list[BlockHash] = field(default_factory=list)
    held: dict[int, int] = field(default_factory=dict)
    rolling: int | None = None
    rolling_hash: BlockHash | None = None
    saved: list[int] = field(default_factory=list)


class Checkpoints:
    """The saved states of all sequences.

    Args:
        num_states: How many there may be.
    """

    def __init__(self, num_states: int) -> None:
        self.pool = BlockPool(num_states)
        self._announced: Counter[BlockHash] = Counter()

    def id_of(self, block_hash: BlockHash) -> int | None:
        """Id of the state after the block of this hash."""
        return self.pool.index.block_of(block_hash)

    def use(self, block_hash: BlockHash) -> int:
        """Id of a state that is read in the next step; it counts as used now."""
        state_id = self.id_of(block_hash)
        assert state_id is not None, "a matched state vanished before it was used"
        self.pool.retain([state_id])
        self.pool.release([state_id])
        return state_id

    def plan(
        self,
        mine: SequenceCheckpoints,
        hashes: Sequence[BlockHash],
        start: int,
        ends: Iterable[int],
    ) -> None:
        """Choose where a prompt's states are saved, and let others know.

        Args:
            hashes: Of all blocks of the prompt that lie before its last token.
            start: Blocks that are not computed again.
            ends: After how many blocks each message ends.
        """
        if not self.pool.num_blocks:
            return  # nobody should wait for what cannot be saved
        stop = len(hashes)
        inner = sorted({end for end in ends if start < end < stop})
        chosen = set(inner[:1] if start == 0 else ()) | set(inner[-_LAST_ENDS:])
        last = start
        for end in inner:
            if end in chosen or end - last >= _LEAST_APART:
                chosen.add(end)
                last = end
        if stop > start:
            chosen.add(stop)
        for end in range(start - start % _GRID + _GRID, stop, _GRID):
            if all(abs(end - other) >= _LEAST_APART for other in chosen):
                chosen.add(end)
        mine.planned = sorted(chosen)
        mine.announced = [hashes[end - 1] for end in mine.planned]
        self._announced.update(mine.announced)

    def is_announced(self, hashes: Iterable[BlockHash]) -> bool:
        """Whether a running sequence is going to save the state after one of these blocks."""
        return any(self._announced[block_hash] > 0 for block_hash in hashes)

    def reserve(self, mine: SequenceCheckpoints, num_blocks: int, *, rolls: bool) -> int | None:
        """An id to save the state after so many blocks by; ``None`` if there is none to be had.

        Args:
            rolls: It replaces the one before that rolled.
        """
        if rolls:
            self._drop_rolling(mine)
        if num_blocks in mine.held or not self.pool.num_available:
            return None
        (state_id,) = self.pool.allocate(1)
        mine.held[num_blocks] = state_id
        if rolls and num_blocks % _GRID:
            mine.rolling = num_blocks
        return state_id

    def publish(self, mine: SequenceCheckpoints, hashes: Sequence[BlockHash], count: int) -> None:
        """Make the states after up to ``count`` blocks, which have been computed, findable."""
        for num_blocks in [held for held in mine.held if held <= count]:
            state_id = mine.held.pop(num_blocks)
            self.pool.publish(state_id, hashes[num_blocks - 1])
            self.pool.release([state_id])
            mine.saved.append(num_blocks)
            # Unless somebody else had it first: then it is not ours to drop.
            if num_blocks == mine.rolling and self.id_of(hashes[num_blocks - 1]) == state_id:
                mine.rolling_hash = hashes[num_blocks - 1]
        while mine.planned and mine.planned[0] <= count:
            del mine.planned[0]
            self._retract(mine.announced.pop(0))

    def withdraw(self, mine: SequenceCheckpoints, num_blocks: int) -> None:
        """Free the ids of states behind so many blocks."""
        for held in [held for held in mine.held if held > num_blocks]:
            self.pool.release([mine.held.pop(held)])
            if held == mine.rolling:
                mine.rolling = None

    def release(self, mine: SequenceCheckpoints) -> None:
        """The sequence is gone. What was published stays findable."""
        self.pool.release(mine.held.values())
        for block_hash in mine.announced:
            self._retract(block_hash)
        mine.planned, mine.announced, mine.held = [], [], {}
        mine.rolling, mine.rolling_hash = None, None

    def check_integrity(self, all_mine: Iterable[SequenceCheckpoints]) -> None:
        """Raise `AssertionError` unless the pool and the sequences agree exactly."""
        counts, announced = Counter[int](), Counter[BlockHash]()
        for mine in all_mine:
            counts.update(mine.held.values())
            announced.update(mine.announced)
        self.pool.check_integrity()
        for state_id in range(self.pool.num_blocks):
            count = self.pool.reference_count(state_id)
            assert count == counts[state_id], f"state {state_id}: {count} holders counted"
        assert announced == self._announced, "states are announced that nobody will save"

    def _drop_rolling(self, mine: SequenceCheckpoints) -> None:
        if mine.rolling is not None and (state_id := mine.held.pop(mine.rolling, None)) is not None:
            self.pool.release([state_id])
        if mine.rolling_hash is not None:
            published = self.id_of(mine.rolling_hash)  # unless it was evicted
            if published is not None:
                self.pool.forget(published)
        mine.rolling, mine.rolling_hash = None, None

    def _retract(self, block_hash: BlockHash) -> None:
        self._announced[block_hash] -= 1
        if self._announced[block_hash] <= 0:
            del self._announced[block_hash]
