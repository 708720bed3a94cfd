"""Lets blocks and states that have left the memory come back from the disk.

They are read before a sequence is admitted: they go into free or evictable blocks of the memory
under their hashes, where the sequence then finds them as if they had never been away.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from ..cache.block_hash import BlockHash
from ..cache.disk.reader import Fetch
from ..cache.disk.record import Record, RecordKey
from ..cache.disk.stats import DiskStats
from ..cache.disk.tier import DiskTier
from ..cache.kv_cache_manager import KVCacheManager, PrefixMatch, SequenceCache
from ..runner.block_copies import BlockCopies
from .disk_outbox import STATE, DiskOutbox, block_kind, group_of, pool_of, record_bytes
from .read_costs import ReadCosts
from .sequence import Sequence

logger = logging.getLogger(__name__)

# Read at a time for one sequence.
_WINDOW_BYTES = 256 * 1024**2
_IDLE_WAIT_S = 0.005
# A disk that takes longer than that for what is read at a time has gone to sleep, or worse.
_LONGEST_READ_S = 10.0


@dataclass(slots=True)
class _Reading:
    """What one sequence waits for: first what is being read, then the rest.

    Attributes:
        wanted: All of it.
        read_at: When what is being read arrived, if it has.
    """

    wanted: frozenset[RecordKey]
    rest: deque[RecordKey]
    keys: list[RecordKey]
    fetch: Fetch
    asked_at: float
    read_at: float | None = None


class DiskCache:
    """The engine's side of the disk tier; belongs to the engine's thread.

    Args:
        costs: Tells what is sooner computed than read.
        clock: Monotonic seconds; tests pass their own.
    """

    def __init__(
        self,
        tier: DiskTier,
        manager: KVCacheManager,
        copies: BlockCopies,
        costs: ReadCosts,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tier = tier
        self._costs = costs
        self._clock = clock
        self._manager = manager
        self._copies = copies
        self._outbox = DiskOutbox(tier, manager, copies)
        self._reading: dict[tuple[str, int], _Reading] = {}
        # Those that have been asked for, with the blocks that the memory had by itself.
        self._asked: dict[tuple[str, int], int] = {}
        # Of those whose prefix another sequence reads, that one.
        self._leader: dict[tuple[str, int], tuple[str, int]] = {}
        self._is_settled = True
        self._arrived = threading.Event()

    @property
    def is_busy(self) -> bool:
        """Whether `advance` has anything to do, or soon will."""
        return bool(self._outbox or self._reading or not self._is_settled)

    def is_reading(self, sequence: Sequence, match: PrefixMatch) -> bool:
        """Whether a sequence should wait, as the disk has more of its prefix than the memory.

        The first call for a sequence asks the disk; `match` is what the memory has.
        """
        if sequence.key in self._reading or self._leader.get(sequence.key) in self._reading:
            return True
        if sequence.key in self._asked:
            return False
        length, keys = self._missing(sequence.cache, match.num_blocks)
        for key, other in self._reading.items() if keys else ():
            if keys[0] in other.wanted:
                self._leader[sequence.key] = key
                return True  # when the other has it, it will be in the memory
        self._asked[sequence.key] = match.num_blocks
        if not keys:
            return False
        num_bytes = sum(record_bytes(self._copies, key.kind) for key in keys)
        num_tokens = (length - match.num_blocks) * self._manager.block_size
        if not self._costs.is_worth_it(num_bytes, num_tokens):
            logger.debug(
                "disk_skipped request_id=%s tokens=%d bytes=%d reason='computing is quicker'",
                *(sequence.key[0], num_tokens, num_bytes),
            )
            return False
        rest = deque(keys)
        self._reading[sequence.key] = reading = _Reading(frozenset(keys), rest, [], Fetch(()), 0.0)
        self._read_on(reading)
        return True

    def num_restored(self, sequence: Sequence, num_matched: int) -> int:
        """How many of the matched blocks the disk gave, of a sequence that is being admitted."""
        return max(0, num_matched - self._asked.get(sequence.key, num_matched))

    def keep(self, sequence: Sequence) -> None:
        """Write what an ended sequence has in the prefix index, soon."""
        self._outbox.add(sequence)

    def forget(self, sequence: Sequence) -> None:
        """A sequence is gone: nobody waits for its prefix."""
        self._asked.pop(sequence.key, None)
        self._leader.pop(sequence.key, None)
        if (reading := self._reading.pop(sequence.key, None)) is not None:
            reading.fetch.cancel()

    def advance(self) -> None:
        """Take in what was read, and go on with copying out. Never waits for the disk."""
        self._arrived.clear()
        # Whoever looks at the numbers after this shall see all that was written.
        self._is_settled = not (self._outbox.is_copying or self._tier.queued_bytes)
        for key, reading in list(self._reading.items()):
            if not self._goes_on(reading):
                del self._reading[key]
        self._outbox.advance()

    def wait(self) -> None:
        """Wait a moment for the disk, when there is nothing else to do."""
        self._arrived.wait(_IDLE_WAIT_S)

    def stats(self) -> DiskStats:
        """Where the tier stands; what is not with it yet counts as queued."""
        stats = self._tier.stats()
        return replace(stats, queued_bytes=stats.queued_bytes + self._outbox.num_bytes)

    def close(self, timeout_s: float) -> None:
        """Write what waits, as far as time allows."""
        deadline = time.monotonic() + timeout_s
        for reading in self._reading.values():
            reading.fetch.cancel()
        self._reading.clear()
        while self._outbox and time.monotonic() < deadline:
            self.advance()
            if not self._outbox.has_room:
                time.sleep(_IDLE_WAIT_S)
        self._tier.close(max(0.0, deadline - time.monotonic()))

    def _goes_on(self, reading: _Reading) -> bool:
        """Take in what has arrived; whether there is more to wait for."""
        if reading.fetch.is_done:
            return self._take_in(reading)
        seconds = self._clock() - reading.asked_at
        if seconds < _LONGEST_READ_S:
            return True
        logger.warning("disk_cache_slow waited_s=%.0f (the prompt is computed)", seconds)
        reading.fetch.cancel()
        self._costs.observe(0, seconds)
        return False

    def _read_on(self, reading: _Reading) -> None:
        """Ask for the next records."""

        def note(_: Fetch) -> None:
            reading.read_at = self._clock()
            self._arrived.set()

        reading.keys = self._next_window(reading.rest)
        reading.asked_at, reading.read_at = self._clock(), None
        reading.fetch = self._tier.fetch(reading.keys, note)

    def _next_window(self, rest: deque[RecordKey]) -> list[RecordKey]:
        window, num_bytes = list[RecordKey](), 0
        while rest and num_bytes < _WINDOW_BYTES:
            num_bytes += record_bytes(self._copies, rest[0].kind)
            window.append(rest.popleft())
        return window

    def _missing(self, cache: SequenceCache, num_matched: int) -> tuple[int, list[RecordKey]]:
        """Records that make the longest match longer, and its new length in blocks."""
        hashes = cache.block_hashes[: cache.num_matchable]
        manager = self._manager
        stored: list[list[bool]] = []
        for group in range(len(manager.pools)):
            kind = block_kind(group)
            stored.append(self._tier.contains(RecordKey(h, kind) for h in hashes))
        if not any(map(any, stored)) and manager.pools:
            return num_matched, []

        def has(group: int, index: int) -> bool:
            in_memory = manager.pools[group].index.block_of(hashes[index]) is not None
            return in_memory or stored[group][index]

        def has_state(block_hash: BlockHash) -> bool:
            stored = self._tier.contains
            return manager.has_state(block_hash) or stored([RecordKey(block_hash, STATE)])[0]

        length = manager.longest_match(hashes, has, has_state)
        if length <= num_matched:
            return num_matched, []
        keys = []
        for group, pool in enumerate(manager.pools):
            first = manager.groups[group].first_needed(length * manager.block_size)
            mine = [
                RecordKey(block_hash, block_kind(group))
                for block_hash in hashes[first // manager.block_size : length]
                if pool.index.block_of(block_hash) is None
            ]
            if len(mine) >= pool.num_available:
                return num_matched, []  # it would push out what it has just brought
            keys += mine
        if not manager.has_state(hashes[length - 1]):
            keys.append(RecordKey(hashes[length - 1], STATE))
        return length, keys

    def _take_in(self, reading: _Reading) -> bool:
        """Put what was read into the memory; whether there is more to wait for."""
        records = reading.fetch.take()
        found = [record for record in records if record is not None]
        seconds = (reading.read_at or self._clock()) - reading.asked_at
        self._costs.observe(sum(record.payload_bytes for record in found), seconds)
        whole = len(found) == len(reading.keys) and self._bring_back(found)
        if not whole or not reading.rest:
            return False
        self._read_on(reading)
        return True

    def _bring_back(self, records: Iterable[Record]) -> bool:
        by_kind: dict[str, list[Record]] = {}
        for record in records:
            by_kind.setdefault(record.key.kind, []).append(record)
        for kind, mine in by_kind.items():
            pool = pool_of(self._manager, kind)
            if len(mine) > pool.num_available:
                return False
            ids = pool.allocate(len(mine))
            if kind == STATE:
                fits = all(
                    self._copies.write_state(state_id, record.payload)
                    for state_id, record in zip(ids, mine, strict=True)
                )
            else:
                fits = self._copies.write_blocks(
                    group_of(kind), ids, [record.payload for record in mine]
                )
            if fits:
                for block_id, record in zip(ids, mine, strict=True):
                    pool.publish(block_id, BlockHash(record.key.block_hash))
            # Tail first: the head of a prompt is what others share most.
            pool.release(reversed(ids))
            if not fits:
                logger.warning("records on the disk do not fit this model kind=%s", kind)
                return False
        return True
