"""Who holds which block, and which one goes next."""

from collections import Counter
from collections.abc import Callable
from typing import TypeAlias

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pippin.core.cache.block_hash import BlockHash
from pippin.core.cache.block_pool import BlockPool
from pippin.core.errors import CacheFullError

Corruption: TypeAlias = Callable[[BlockPool], None]


def name(number: int) -> BlockHash:
    return BlockHash(b"%d" % number)


def make_pool_with_content(num_blocks: int) -> tuple[BlockPool, list[int]]:
    """A pool whose blocks are all held and published, in the order of their hashes."""
    pool = BlockPool(num_blocks)
    block_ids = pool.allocate(num_blocks)
    for number, block_id in enumerate(block_ids):
        pool.publish(block_id, name(number))
    return pool, block_ids


def test_every_block_is_handed_out_once() -> None:
    pool = BlockPool(4)
    assert sorted(pool.allocate(3) + pool.allocate(1)) == [0, 1, 2, 3]
    assert (pool.num_free, pool.num_evictable, pool.num_available) == (0, 0, 0)
    pool.check_integrity()


def test_a_refused_allocation_takes_nothing() -> None:
    pool, block_ids = make_pool_with_content(4)
    pool.release(block_ids[:2])
    with pytest.raises(CacheFullError) as refusal:
        pool.allocate(3)
    assert (refusal.value.needed, refusal.value.available) == (3, 2)
    assert pool.num_available == 2
    assert pool.index.block_of(name(0)) == block_ids[0]
    pool.check_integrity()


def test_a_block_is_free_when_its_last_holder_lets_go() -> None:
    pool = BlockPool(2)
    (block_id,) = pool.allocate(1)
    pool.retain([block_id])
    pool.release([block_id])
    assert (pool.reference_count(block_id), pool.num_free) == (1, 1)
    pool.release([block_id])
    assert (pool.reference_count(block_id), pool.num_free) == (0, 2)
    pool.check_integrity()


def test_a_block_cannot_be_released_more_often_than_it_is_held() -> None:
    pool = BlockPool(2)
    block_ids = pool.allocate(1)
    pool.release(block_ids)
    with pytest.raises(AssertionError, match="released more often"):
        pool.release(block_ids)


def test_released_content_stays_findable_until_its_block_is_needed() -> None:
    pool, block_ids = make_pool_with_content(2)
    pool.release(block_ids)
    assert (pool.num_free, pool.num_evictable) == (0, 2)
    assert pool.index.block_of(name(0)) == block_ids[0]
    assert pool.is_evictable(block_ids[0])
    assert pool.allocate(1) == block_ids[:1]
    assert pool.index.block_of(name(0)) is None
    assert pool.index.block_of(name(1)) == block_ids[1]
    pool.check_integrity()


def test_free_blocks_go_before_evictable_ones() -> None:
    pool = BlockPool(3)
    first, second = pool.allocate(2)
    pool.publish(first, name(0))
    pool.release([first, second])
    assert first not in pool.allocate(2)
    assert pool.allocate(1) == [first]


def test_blocks_are_evicted_in_the_order_of_their_release() -> None:
    pool, block_ids = make_pool_with_content(4)
    order = [block_ids[i] for i in (2, 0, 3, 1)]
    pool.release(order[:2])
    pool.release(order[2:])
    assert [pool.allocate(1)[0] for _ in range(4)] == order


def test_a_block_that_was_used_again_goes_last() -> None:
    pool, block_ids = make_pool_with_content(3)
    pool.release(block_ids)
    pool.retain(block_ids[:1])
    assert not pool.is_evictable(block_ids[0])
    pool.release(block_ids[:1])
    assert pool.allocate(3) == [*block_ids[1:], block_ids[0]]


def test_a_held_block_is_never_evicted() -> None:
    pool, block_ids = make_pool_with_content(3)
    pool.retain(block_ids[:1])
    pool.release(block_ids)
    assert block_ids[0] not in pool.allocate(2)
    with pytest.raises(CacheFullError):
        pool.allocate(1)


def test_a_second_block_of_the_same_content_stays_private() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    pool.publish(first, name(0))
    pool.publish(second, name(0))
    pool.release([first, second])
    assert (pool.num_free, pool.num_evictable) == (1, 1)
    assert pool.index.block_of(name(0)) == first
    pool.check_integrity()


def test_an_unused_block_cannot_be_published() -> None:
    with pytest.raises(AssertionError, match="published while unused"):
        BlockPool(1).publish(0, name(0))


def test_forgetting_frees_unused_blocks_and_leaves_the_held_ones() -> None:
    pool, block_ids = make_pool_with_content(3)
    pool.release(block_ids[1:])
    pool.forget_content()
    assert (pool.num_free, pool.num_evictable, len(pool.index)) == (2, 0, 0)
    pool.check_integrity()
    pool.release(block_ids[:1])
    assert pool.num_free == 3
    pool.check_integrity()


def _lose(pool: BlockPool) -> None:
    pool._free.pop()


def _free_twice(pool: BlockPool) -> None:
    pool._free.append(pool._free[0])


def _free_a_held_block(pool: BlockPool) -> None:
    pool._free.append(0)


def _evict_a_held_block(pool: BlockPool) -> None:
    pool._evictable[0] = None


def _evict_a_free_block(pool: BlockPool) -> None:
    pool._evictable[pool._free[0]] = None


def _name_a_free_block(pool: BlockPool) -> None:
    pool.index.insert(name(9), pool._free[0])


def _unname_an_evictable_block(pool: BlockPool) -> None:
    pool.index.remove_block(next(iter(pool._evictable)))


def _name_a_block_one_way(pool: BlockPool) -> None:
    pool.index._block_by_hash[name(9)] = 0


def _count_below_zero(pool: BlockPool) -> None:
    pool._reference_counts[0] = -1


@pytest.mark.parametrize(
    "corrupt",
    [
        _lose,
        _free_twice,
        _free_a_held_block,
        _evict_a_held_block,
        _evict_a_free_block,
        _name_a_free_block,
        _unname_an_evictable_block,
        _name_a_block_one_way,
        _count_below_zero,
    ],
)
def test_the_integrity_check_sees(corrupt: Corruption) -> None:
    pool = BlockPool(4)
    held, cached = pool.allocate(2)
    assert held == 0
    pool.publish(cached, name(0))
    pool.release([cached])
    pool.check_integrity()
    corrupt(pool)
    with pytest.raises(AssertionError):
        pool.check_integrity()


class PoolMachine(RuleBasedStateMachine):
    """A pool against the plainest model: who holds what, and a list of what was let go when."""

    num_blocks = 5

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(self.num_blocks)
        self.held: Counter[int] = Counter()
        self.names: dict[int, BlockHash] = {}
        self.idle: list[int] = []  # least recently used first

    @rule(count=st.integers(0, 3))
    def allocate(self, count: int) -> None:
        unnamed = self.num_blocks - len(self.held) - len(self.idle)
        if count > unnamed + len(self.idle):
            with pytest.raises(CacheFullError):
                self.pool.allocate(count)
            return
        taken = self.pool.allocate(count)
        evicted = self.idle[: max(0, count - unnamed)]
        assert len(set(taken)) == count
        assert not set(taken) & set(self.held)
        assert set(taken) & set(self.idle) == set(evicted)
        self.idle = self.idle[len(evicted) :]
        for block_id in evicted:
            del self.names[block_id]
        self.held.update(taken)

    @precondition(lambda self: self.held or self.idle)
    @rule(choice=st.data())
    def retain(self, choice: st.DataObject) -> None:
        block_id = choice.draw(st.sampled_from(sorted({*self.held, *self.idle})))
        self.pool.retain([block_id])
        if block_id in self.idle:
            self.idle.remove(block_id)
        self.held[block_id] += 1

    @precondition(lambda self: self.held)
    @rule(choice=st.data())
    def release(self, choice: st.DataObject) -> None:
        block_ids = choice.draw(
            st.lists(st.sampled_from(sorted(self.held)), unique=True, min_size=1)
        )
        self.pool.release(block_ids)
        for block_id in block_ids:
            self.held[block_id] -= 1
            if not self.held[block_id]:
                del self.held[block_id]
                if block_id in self.names:
                    self.idle.append(block_id)

    @precondition(lambda self: self.held)
    @rule(choice=st.data(), number=st.integers(0, 6))
    def publish(self, choice: st.DataObject, number: int) -> None:
        block_id = choice.draw(st.sampled_from(sorted(self.held)))
        self.pool.publish(block_id, name(number))
        if block_id not in self.names and name(number) not in self.names.values():
            self.names[block_id] = name(number)

    @rule()
    def forget(self) -> None:
        self.pool.forget_content()
        self.names.clear()
        self.idle.clear()

    @invariant()
    def agrees(self) -> None:
        self.pool.check_integrity()
        assert self.pool.num_evictable == len(self.idle)
        assert self.pool.num_free == self.num_blocks - len(self.held) - len(self.idle)
        for block_id in range(self.num_blocks):
            assert self.pool.reference_count(block_id) == self.held[block_id]
            assert self.pool.is_evictable(block_id) == (block_id in self.idle)
            assert self.pool.index.hash_of(block_id) == self.names.get(block_id)
        assert len(self.pool.index) == len(self.names)


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
