"""What leaves the memory for the disk: copied out a few at a step, beside which others decode."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..cache.block_hash import BlockHash
from ..cache.block_pool import BlockPool
from ..cache.disk.record import Record, RecordKey
from ..cache.disk.tier import DiskTier
from ..cache.kv_cache_manager import KVCacheManager, SequenceCache
from ..runner.block_copies import BlockCopies, CopyUnderWay
from .sequence import Sequence

logger = logging.getLogger(__name__)

STATE = "state"
# Copied out in a step.
_STEP_BYTES = 32 * 1024**2
# Waiting to be written: large blocks are bounded by their bytes, small ones by the writer's pace,
# which is so many files a second.
_QUEUE_BYTES = 128 * 1024**2
_QUEUE_RECORDS = 512
# Blocks that wait to be copied out; what comes then is left out.
_LONGEST_OUTBOX = 1 << 14


def block_kind(group: int) -> str:
    """A layer group's kind of record."""
    return f"block:{group}"


def group_of(kind: str) -> int:
    """The layer group of a kind of record that is not a state's."""
    return int(kind.partition(":")[2])


@dataclass(frozen=True, slots=True)
class _Leaving:
    """A block or state to be copied out, if it is still what it was."""

    key: RecordKey
    group: int | None  # None for a state
    block_id: int
    parent: bytes | None
    num_tokens: int
    metadata: dict[str, Any]


class DiskOutbox:
    """Blocks and states of ended sequences on their way to the disk tier.

    Belongs to the engine's thread. What has left the memory by the time it would be copied is let
    go: it was only a copy.
    """

    def __init__(self, tier: DiskTier, manager: KVCacheManager, copies: BlockCopies) -> None:
        self._tier = tier
        self._manager = manager
        self._copies = copies
        self._waiting: deque[_Leaving] = deque()
        self._copying: list[tuple[list[_Leaving], CopyUnderWay]] = []
        self._num_bytes = 0

    @property
    def num_bytes(self) -> int:
        """Of what waits and of what is being copied."""
        return self._num_bytes

    @property
    def is_copying(self) -> bool:
        """Whether the device still makes copies."""
        return bool(self._copying)

    def __bool__(self) -> bool:
        return bool(self._waiting or self._copying)

    def add(self, sequence: Sequence) -> None:
        """Put in what an ended sequence has in the prefix index and the disk has not."""
        leaving = self._leaving_blocks(sequence) + self._leaving_states(sequence.cache)
        stored = self._tier.contains(item.key for item in leaving)
        self._tier.touch(item.key for item, known in zip(leaving, stored, strict=True) if known)
        new = [item for item, known in zip(leaving, stored, strict=True) if not known]
        new = new[: max(0, _LONGEST_OUTBOX - len(self._waiting))]
        self._waiting.extend(new)
        self._num_bytes += self._bytes_of(new)

    def advance(self) -> None:
        """Hand over what was copied, and copy on if the tier has room. Never waits for the disk."""
        copying, self._copying = self._copying, []
        for leaving, copy in copying:
            payloads = copy.read()
            self._num_bytes -= self._bytes_of(leaving)
            if payloads is None:
                logger.warning("blocks are not written to the disk: they hold no numbers")
                continue
            for item, payload in zip(leaving, payloads, strict=True):
                self._tier.put(
                    Record(
                        key=item.key,
                        parent=item.parent,
                        num_tokens=item.num_tokens,
                        payload=payload,
                        metadata=item.metadata,
                    )
                )
        if self._waiting and self.has_room:
            self._copy_out()

    @property
    def has_room(self) -> bool:
        """Whether the tier's queue is short enough to copy on."""
        tier = self._tier
        return tier.queued_bytes < _QUEUE_BYTES and tier.queued_records < _QUEUE_RECORDS

    def _leaving_blocks(self, sequence: Sequence) -> list[_Leaving]:
        cache, size = sequence.cache, self._manager.block_size
        leaving = []
        for group, pool in enumerate(self._manager.pools):
            for index, block_hash in enumerate(cache.block_hashes[: cache.num_published]):
                block_id = pool.index.block_of(block_hash)
                if block_id is None:
                    continue
                leaving.append(
                    _Leaving(
                        RecordKey(block_hash, block_kind(group)),
                        group,
                        block_id,
                        cache.block_hashes[index - 1] if index else None,
                        (index + 1) * size,
                        {"tokens": sequence.token_ids[index * size : (index + 1) * size]},
                    )
                )
        return leaving

    def _leaving_states(self, cache: SequenceCache) -> list[_Leaving]:
        saved = self._manager.checkpoints
        if saved is None:
            return []
        leaving = []
        for num_blocks in sorted(set(cache.checkpoints.saved)):
            block_hash = cache.block_hashes[num_blocks - 1]
            state_id = saved.id_of(block_hash)
            if state_id is not None:
                key = RecordKey(block_hash, STATE)
                num_tokens = num_blocks * self._manager.block_size
                leaving.append(_Leaving(key, None, state_id, None, num_tokens, {}))
        return leaving

    def _copy_out(self) -> None:
        """Start to copy the next blocks and states that are still what they were."""
        room = _STEP_BYTES
        while self._waiting and room > 0:
            group = self._waiting[0].group
            chosen = self._take_alike(group, room)
            room -= self._bytes_of(chosen)
            if not chosen:
                continue
            if group is None:
                copy = self._copies.read_state(chosen[0].block_id)
            else:
                copy = self._copies.read_blocks(group, [item.block_id for item in chosen])
            if copy is not None:
                self._copying.append((chosen, copy))
            else:
                self._num_bytes -= self._bytes_of(chosen)

    def _take_alike(self, group: int | None, room: int) -> list[_Leaving]:
        """The next of the outbox that can be copied together; those that are gone are let go."""
        most = 1 if group is None else max(1, room // self._copies.block_bytes(group))
        chosen, gone = list[_Leaving](), list[_Leaving]()
        while self._waiting and self._waiting[0].group == group and len(chosen) < most:
            item = self._waiting.popleft()
            pool = pool_of(self._manager, item.key.kind)
            is_there = pool.index.block_of(BlockHash(item.key.block_hash)) == item.block_id
            (chosen if is_there else gone).append(item)
        self._num_bytes -= self._bytes_of(gone)
        return chosen

    def _bytes_of(self, items: Iterable[_Leaving]) -> int:
        return sum(record_bytes(self._copies, item.key.kind) for item in items)


def record_bytes(copies: BlockCopies, kind: str) -> int:
    """Payload of a record of a kind."""
    return copies.state_bytes if kind == STATE else copies.block_bytes(group_of(kind))


def pool_of(manager: KVCacheManager, kind: str) -> BlockPool:
    """Where records of a kind lie in the memory."""
    if kind != STATE:
        return manager.pools[group_of(kind)]
    assert manager.checkpoints is not None
    return manager.checkpoints.pool
