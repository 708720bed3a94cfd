"""What can be reused, what is held, and what goes first; over all layer groups at once."""

from collections.abc import Callable, Sequence
from itertools import permutations
from typing import TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pippin.core.cache.kv_cache_manager import KVCacheManager, PrefixMatch, SequenceCache
from pippin.core.cache.kv_layout import LayerGroup

SIZE = 4
NOTHING = PrefixMatch(0, False)
Windows: TypeAlias = tuple[int | None, ...]
Corruption: TypeAlias = Callable[[KVCacheManager, SequenceCache], None]


def make_manager(
    windows: Windows = (None,),
    num_blocks: int | Sequence[int] = 16,
    namespace: Sequence[str] = ("model",),
    num_states: int | None = None,
) -> KVCacheManager:
    counts = [num_blocks] * len(windows) if isinstance(num_blocks, int) else num_blocks
    groups = [
        LayerGroup(layers=(i,), window=window, bytes_per_token=1)
        for i, window in enumerate(windows)
    ]
    return KVCacheManager(
        groups, counts, block_size=SIZE, namespace=namespace, num_states=num_states
    )


def make_tokens(count: int, first: int = 0) -> list[int]:
    return list(range(first, first + count))


def start(manager: KVCacheManager, token_ids: Sequence[int], *, salt: str = "") -> SequenceCache:
    """Take over what is there already, as the scheduler does on admission."""
    cache = manager.open(salt=salt)
    manager.adopt(cache, manager.match(cache, token_ids))
    manager.announce(cache)
    return cache


def compute(
    manager: KVCacheManager,
    cache: SequenceCache,
    token_ids: Sequence[int],
    *,
    stop: int | None = None,
    chunk: int = 1000,
) -> None:
    """Compute what is missing, in chunks."""
    stop = len(token_ids) if stop is None else stop
    for at in range(cache.num_published * SIZE, stop, chunk):
        until = min(at + chunk, stop)
        assert manager.try_grow(cache, start=at, stop=until)
        manager.publish(cache, token_ids, num_computed=until)


def run(
    manager: KVCacheManager, token_ids: Sequence[int], *, salt: str = "", chunk: int = 1000
) -> SequenceCache:
    """Compute a whole prompt and keep hold of it."""
    cache = start(manager, token_ids, salt=salt)
    compute(manager, cache, token_ids, chunk=chunk)
    return cache


def run_and_release(manager: KVCacheManager, token_ids: Sequence[int], *, salt: str = "") -> None:
    manager.release(run(manager, token_ids, salt=salt, chunk=SIZE))
    manager.check_integrity([])


def found(manager: KVCacheManager, token_ids: Sequence[int], *, salt: str = "") -> int:
    """Tokens of a prompt that would not have to be computed."""
    return manager.match(manager.open(salt=salt), token_ids).num_blocks * SIZE


@pytest.mark.parametrize("windows", [(None,), (None, 6), (6,), (None, 1, 6)])
@pytest.mark.parametrize("length", range(1, 2 * SIZE + 3))
def test_a_repeat_recomputes_at_most_one_block(windows: Windows, length: int) -> None:
    manager = make_manager(windows)
    token_ids = make_tokens(length)
    run_and_release(manager, token_ids)
    computed = length - found(manager, token_ids)
    assert 1 <= computed <= SIZE


def test_the_last_token_is_always_computed() -> None:
    manager = make_manager()
    run_and_release(manager, make_tokens(8))
    assert found(manager, make_tokens(8)) == 4
    assert found(manager, make_tokens(9)) == 8
    assert manager.match(manager.open(), []) == NOTHING


def test_only_full_blocks_are_shared() -> None:
    manager = make_manager()
    run_and_release(manager, make_tokens(7))
    assert found(manager, make_tokens(20)) == 4


def test_a_prompt_shares_what_it_has_in_common() -> None:
    manager = make_manager()
    run_and_release(manager, make_tokens(16))
    assert found(manager, [*make_tokens(10), 99, 99, 99, 99]) == 8


@given(st.permutations(range(4)))
def test_permuted_blocks_match_only_as_far_as_they_agree(order: list[int]) -> None:
    manager = make_manager()
    blocks = [make_tokens(SIZE, first=i * SIZE) for i in range(4)]
    run_and_release(manager, [*make_tokens(len(blocks) * SIZE), 0])
    agreed = next((i for i, block in enumerate(order) if i != block), 4)
    assert found(manager, [*(t for i in order for t in blocks[i]), 0]) == agreed * SIZE


@pytest.mark.parametrize("windows", [(None,), (2,), (None, 2)])
def test_blocks_in_another_order_are_never_found(windows: Windows) -> None:
    for order in list(permutations(range(3)))[1:]:
        manager = make_manager(windows)
        blocks = [make_tokens(SIZE, first=i * SIZE) for i in range(3)]
        run_and_release(manager, [*make_tokens(len(blocks) * SIZE), 0])
        # The window's rule looks at the last blocks alone; their hashes know what came before.
        agreed = next(i for i, block in enumerate(order) if i != block)
        assert found(manager, [*(t for i in order for t in blocks[i]), 0]) <= agreed * SIZE


def test_salts_keep_callers_apart() -> None:
    manager = make_manager((None, 6))
    run_and_release(manager, make_tokens(12), salt="mine")
    assert found(manager, make_tokens(12), salt="mine") == 8
    assert found(manager, make_tokens(12), salt="yours") == 0
    assert found(manager, make_tokens(12)) == 0


def test_namespaces_keep_models_apart() -> None:
    hashes = []
    for namespace in (("model", "float32"), ("model", "float16"), ("other", "float32")):
        manager = make_manager(namespace=namespace)
        hashes.append(tuple(run(manager, make_tokens(8)).block_hashes))
    assert len(set(hashes)) == 3


def test_shared_blocks_are_held_by_everyone_who_uses_them() -> None:
    manager = make_manager()
    first = run(manager, make_tokens(9))
    second = run(manager, make_tokens(9))
    shared = list(first.tables[0].block_ids)[:2]
    assert list(second.tables[0].block_ids)[:2] == shared
    assert first.tables[0].block_at(2) != second.tables[0].block_at(2)
    assert [manager.pools[0].reference_count(block_id) for block_id in shared] == [2, 2]
    manager.check_integrity([first, second])
    manager.release(first)
    assert [manager.pools[0].reference_count(block_id) for block_id in shared] == [1, 1]
    manager.check_integrity([second])
    manager.release(second)
    assert manager.num_free + manager.num_evictable == manager.num_blocks
    manager.check_integrity([])


def test_of_two_that_computed_the_same_the_first_is_found() -> None:
    manager = make_manager()
    first, second = start(manager, make_tokens(9)), start(manager, make_tokens(9))
    compute(manager, first, make_tokens(9))
    compute(manager, second, make_tokens(9))
    third = start(manager, make_tokens(9))
    assert list(third.tables[0].block_ids) == list(first.tables[0].block_ids)[:2]
    manager.check_integrity([first, second, third])
    manager.release(first)
    manager.release(second)
    assert manager.num_evictable == 0  # the third holds the findable ones, the others were private
    manager.release(third)
    manager.check_integrity([])


def test_the_tail_is_evicted_first_and_the_head_of_the_prompt_last() -> None:
    manager = make_manager(num_blocks=4)
    run_and_release(manager, make_tokens(16))
    lengths = []
    for count in range(1, 5):
        other = manager.open()
        assert manager.try_grow(other, start=0, stop=count * SIZE)
        lengths.append(found(manager, make_tokens(17)))
        manager.release(other)
        manager.check_integrity([])
    # The first block taken is given back free and is taken first again.
    assert lengths == [12, 8, 4, 0]


def test_the_prompt_that_was_used_last_stays_longest() -> None:
    manager = make_manager(num_blocks=4)
    run_and_release(manager, make_tokens(8))
    run_and_release(manager, make_tokens(8, first=50))
    manager.release(start(manager, make_tokens(9)))
    run_and_release(manager, make_tokens(8, first=90))
    assert found(manager, make_tokens(9)) == 8
    assert found(manager, make_tokens(9, first=50)) == 0


@pytest.mark.parametrize(
    ("window", "needed"),
    [(1, []), (2, [3]), (5, [3]), (6, [2, 3]), (9, [2, 3]), (10, [1, 2, 3]), (99, [0, 1, 2, 3])],
)
def test_a_window_needs_only_the_blocks_that_it_reaches_back_over(
    window: int, needed: list[int]
) -> None:
    for lost in range(4):
        manager = make_manager((None, window))
        cache = run(manager, make_tokens(17))
        held = [manager.pools[1].index.block_of(h) for h in cache.block_hashes]
        manager.release(cache)
        block_id = held[lost]
        assert block_id is not None
        _evict(manager, 1, block_id)
        assert (found(manager, make_tokens(17)) == 16) == (lost not in needed)
        adopter = start(manager, make_tokens(17))
        manager.check_integrity([adopter])


def _evict(manager: KVCacheManager, group: int, block_id: int) -> None:
    """Have one idle block taken by somebody else, by using every other one in between."""
    pool = manager.pools[group]
    idle = [i for i in range(pool.num_blocks) if pool.is_evictable(i) and i != block_id]
    pool.retain(idle)
    free = pool.allocate(pool.num_free + 1)
    assert block_id in free
    pool.release(free)
    pool.release(idle)


def test_a_match_is_as_long_as_the_shortest_of_all_groups() -> None:
    manager = make_manager((None, 3), [8, 8])
    cache = run(manager, make_tokens(17))
    full = manager.pools[0].index.block_of(cache.block_hashes[2])
    manager.release(cache)
    assert full is not None
    _evict(manager, 0, full)
    assert found(manager, make_tokens(17)) == 8


def test_a_match_backs_off_to_where_every_window_is_whole() -> None:
    manager = make_manager((None, 3, 6))
    cache = run(manager, make_tokens(17))
    lost = manager.pools[2].index.block_of(cache.block_hashes[2])
    manager.release(cache)
    assert lost is not None
    _evict(manager, 2, lost)
    # 16 needs blocks 2 and 3 of the window of 6, 12 needs 1 and 2, 8 needs 0 and 1.
    assert found(manager, make_tokens(17)) == 8
    adopter = start(manager, make_tokens(17))
    assert [table.num_blocks for table in adopter.tables] == [2, 2, 2]
    assert [table.first_block for table in adopter.tables] == [0, 1, 0]
    manager.check_integrity([adopter])


@pytest.mark.parametrize("chunk", [1, 3, 4, 7])
def test_what_lies_behind_a_window_is_let_go(chunk: int) -> None:
    manager = make_manager((None, 6))
    cache = run(manager, make_tokens(40), chunk=chunk)
    full, sliding = cache.tables
    assert (full.first_block, full.num_held) == (0, 10)
    last_start = range(0, 40, chunk)[-1]
    assert sliding.first_block == max(0, last_start - 5) // SIZE
    assert sliding.num_blocks == 10
    manager.check_integrity([cache])


def test_dropped_blocks_stay_findable() -> None:
    manager = make_manager((None, 2))
    cache = run(manager, make_tokens(16), chunk=SIZE)
    assert cache.tables[1].num_held == 2
    assert found(manager, make_tokens(9)) == 8
    manager.check_integrity([cache])


def test_either_every_group_grows_or_none_does() -> None:
    manager = make_manager((None, 50), [8, 2])
    cache = manager.open()
    assert not manager.try_grow(cache, start=0, stop=3 * SIZE)
    assert manager.num_free == 10
    assert manager.try_grow(cache, start=0, stop=2 * SIZE)
    assert not manager.try_grow(cache, start=8, stop=9)
    assert [table.num_blocks for table in cache.tables] == [2, 2]
    manager.check_integrity([cache])


def test_growing_takes_no_more_blocks_than_the_tokens_need() -> None:
    manager = make_manager()
    cache = manager.open()
    for stop in range(1, 30):
        assert manager.try_grow(cache, start=stop - 1, stop=stop)
        assert cache.tables[0].num_held == -(-stop // SIZE)
    manager.check_integrity([cache])


def test_room_is_counted_without_what_others_hold() -> None:
    manager = make_manager(num_blocks=5)
    cache = run(manager, make_tokens(8, first=70))
    other = manager.open()
    assert manager.can_hold(other, NOTHING, num_tokens=12, max_chunk=4)
    assert not manager.can_hold(other, NOTHING, num_tokens=13, max_chunk=4)
    manager.release(cache)
    assert manager.can_hold(other, NOTHING, num_tokens=20, max_chunk=4)


def test_reused_idle_blocks_are_not_counted_as_room_too() -> None:
    manager = make_manager(num_blocks=4)
    run_and_release(manager, make_tokens(8))
    cache = manager.open()
    match = manager.match(cache, make_tokens(12))
    assert match.num_blocks == 2
    assert manager.can_hold(cache, match, num_tokens=16, max_chunk=4)
    assert not manager.can_hold(cache, match, num_tokens=17, max_chunk=4)


def test_shared_blocks_cost_nothing() -> None:
    manager = make_manager(num_blocks=4)
    holder = run(manager, make_tokens(8))
    cache = manager.open()
    match = manager.match(cache, make_tokens(12))
    assert manager.can_hold(cache, match, num_tokens=16, max_chunk=4)
    assert not manager.can_hold(cache, match, num_tokens=17, max_chunk=4)
    manager.check_integrity([holder])


def test_a_long_prompt_fits_a_window_that_holds_one_chunk_of_it() -> None:
    manager = make_manager((6,), num_blocks=4)
    cache = manager.open()
    assert manager.can_hold(cache, NOTHING, num_tokens=1000, max_chunk=4)
    assert not manager.can_hold(cache, NOTHING, num_tokens=1000, max_chunk=7)
    compute(manager, cache, make_tokens(1000), chunk=4)
    manager.check_integrity([cache])


def test_a_reused_window_and_a_chunk_need_no_more_than_without_reuse() -> None:
    # Counted apart from the chunk, the reused blocks would never fit: the prompt waited for ever.
    manager = make_manager((None, 6), [20, 4])
    run_and_release(manager, make_tokens(21))
    cache = manager.open()
    match = manager.match(cache, make_tokens(40))
    assert match.num_blocks == 5
    assert manager.can_hold(cache, match, num_tokens=41, max_chunk=4)
    manager.adopt(cache, match)
    compute(manager, cache, make_tokens(40), chunk=4)
    manager.check_integrity([cache])


def test_reused_idle_blocks_of_a_window_are_not_counted_as_room_too() -> None:
    manager = make_manager((None, 6), [20, 4])
    run_and_release(manager, make_tokens(21))
    cache = manager.open()
    match = manager.match(cache, make_tokens(28))
    assert match.num_blocks == 5  # of which the window reaches back over two
    assert manager.can_hold(cache, match, num_tokens=28, max_chunk=100)
    other = manager.open()
    assert manager.try_grow(other, start=0, stop=1)
    assert not manager.can_hold(cache, match, num_tokens=28, max_chunk=100)
    assert manager.can_hold(cache, match, num_tokens=24, max_chunk=100)
    manager.check_integrity([other])


def test_a_prompt_under_way_is_worth_waiting_for() -> None:
    manager = make_manager()
    leader = start(manager, make_tokens(12))
    follower = manager.open()
    assert manager.match(follower, make_tokens(12)) == PrefixMatch(0, True)
    compute(manager, leader, make_tokens(12), stop=5)
    assert manager.match(follower, make_tokens(12)) == PrefixMatch(1, True)
    compute(manager, leader, make_tokens(12), stop=8)
    # The leader's last block is its own: its last token is computed in a row.
    assert manager.match(follower, make_tokens(12)) == PrefixMatch(2, False)
    manager.check_integrity([leader])


def test_nobody_waits_for_another_prompt_or_another_salt() -> None:
    manager = make_manager()
    leader = start(manager, make_tokens(12))
    assert not manager.match(manager.open(), make_tokens(12, first=1)).is_pending
    assert not manager.match(manager.open(salt="x"), make_tokens(12)).is_pending
    assert not manager.match(manager.open(), make_tokens(4)).is_pending
    manager.check_integrity([leader])


def test_a_leader_that_goes_takes_its_promise_along() -> None:
    manager = make_manager()
    leader = start(manager, make_tokens(12))
    compute(manager, leader, make_tokens(12), stop=5)
    manager.release(leader)
    assert manager.match(manager.open(), make_tokens(12)) == PrefixMatch(1, False)
    manager.check_integrity([])


def test_two_promises_are_kept_apart() -> None:
    manager = make_manager()
    first, second = start(manager, make_tokens(12)), start(manager, make_tokens(12))
    manager.release(first)
    assert manager.match(manager.open(), make_tokens(12)).is_pending
    manager.check_integrity([second])
    manager.release(second)
    assert not manager.match(manager.open(), make_tokens(12)).is_pending
    manager.check_integrity([])


def test_after_forgetting_nothing_is_found_and_holders_keep_what_they_hold() -> None:
    manager = make_manager((None, 6))
    run_and_release(manager, make_tokens(12, first=50))
    holder = run(manager, make_tokens(12))
    before = [list(table.block_ids) for table in holder.tables]
    manager.clear_index()
    assert found(manager, make_tokens(12)) == found(manager, make_tokens(12, first=50)) == 0
    assert manager.num_evictable == 0
    assert [list(table.block_ids) for table in holder.tables] == before
    manager.check_integrity([holder])
    assert manager.try_grow(holder, start=12, stop=16)
    manager.publish(holder, make_tokens(16), num_computed=16)
    assert found(manager, make_tokens(17)) == 0
    manager.release(holder)
    manager.check_integrity([])


def test_releasing_twice_is_harmless() -> None:
    manager = make_manager()
    cache = run(manager, make_tokens(12))
    manager.release(cache)
    manager.release(cache)
    manager.check_integrity([])


def test_a_released_sequence_may_start_again() -> None:
    manager = make_manager((None, 6))
    cache = run(manager, make_tokens(14))
    manager.release(cache)
    longer = make_tokens(20)
    assert manager.adopt(cache, manager.match(cache, longer)) == 12
    manager.announce(cache)
    compute(manager, cache, longer)
    assert found(manager, make_tokens(21)) == 20
    manager.check_integrity([cache])


def test_the_longest_sequence_is_what_full_attention_can_hold() -> None:
    assert make_manager((None, 6), [9, 3]).max_sequence_tokens == 9 * SIZE
    assert make_manager((6,), 3).max_sequence_tokens is None


def test_numbers_add_up_over_the_groups() -> None:
    manager = make_manager((None, 6), [9, 7])
    run_and_release(manager, make_tokens(8))
    assert (manager.num_blocks, manager.num_free, manager.num_evictable) == (16, 12, 4)


def test_without_groups_everything_is_possible_and_nothing_is_held() -> None:
    manager = make_manager(())
    cache = start(manager, make_tokens(1000))
    assert manager.can_hold(cache, NOTHING, num_tokens=10**9, max_chunk=10**9)
    compute(manager, cache, make_tokens(1000))
    assert found(manager, make_tokens(1000)) == 0
    assert manager.max_sequence_tokens is None
    manager.check_integrity([cache])
    manager.release(cache)
    manager.clear_index()


def run_with_states(
    manager: KVCacheManager, token_ids: Sequence[int], *, ends: Sequence[int] = ()
) -> SequenceCache:
    """Compute a prompt in chunks that end where states are saved, and keep hold of it."""
    cache = manager.open()
    at = manager.adopt(cache, manager.match(cache, token_ids))
    manager.announce(cache, ends)
    while at < len(token_ids):
        stop = manager.next_stop(cache, at) or len(token_ids)
        assert manager.try_grow(cache, start=at, stop=stop)
        manager.reserve_state(cache, stop, rolls=False)
        manager.publish(cache, token_ids, num_computed=stop)
        at = stop
        manager.check_integrity([cache])
    return cache


@pytest.mark.parametrize("windows", [(), (None,), (None, 6), (6,)])
def test_a_match_ends_where_a_state_was_saved(windows: Windows) -> None:
    manager = make_manager(windows, 32, num_states=8)
    run_with_states(manager, make_tokens(41), ends=[9, 23])
    # After the blocks that a message ends with or in front of, and after the last whole one.
    assert found(manager, make_tokens(41)) == 40
    assert found(manager, make_tokens(40)) == 20
    assert found(manager, [*make_tokens(30), 99, 99, 99]) == 20
    assert found(manager, make_tokens(20)) == 8
    assert found(manager, make_tokens(8)) == 0


def test_a_state_without_its_blocks_is_of_no_use() -> None:
    manager = make_manager((None,), 16, num_states=8)
    cache = run_with_states(manager, make_tokens(33), ends=[16])
    lost = manager.pools[0].index.block_of(cache.block_hashes[5])
    manager.release(cache)
    assert lost is not None
    _evict(manager, 0, lost)
    assert found(manager, make_tokens(33)) == 16


def test_a_reused_prefix_names_the_state_to_go_on_from() -> None:
    manager = make_manager((None,), 16, num_states=8)
    first = run_with_states(manager, make_tokens(17))
    again = manager.open()
    num_tokens = manager.adopt(again, manager.match(again, make_tokens(17)))
    assert num_tokens == 16
    assert manager.checkpoints is not None
    saved = manager.checkpoints.id_of(first.block_hashes[3])
    assert manager.use_state(again, num_tokens) == saved
    assert manager.use_state(manager.open(), 0) is None
    manager.check_integrity([first, again])


def test_states_are_promised_until_they_are_there() -> None:
    manager = make_manager((None,), 16, num_states=8)
    leader = manager.open()
    manager.adopt(leader, manager.match(leader, make_tokens(17)))
    manager.announce(leader, [8])
    follower = manager.open()
    assert manager.match(follower, make_tokens(17)) == PrefixMatch(0, True)
    assert manager.match(manager.open(), make_tokens(17, first=1)) == NOTHING
    assert manager.match(manager.open(), make_tokens(8)) == NOTHING
    manager.release(leader)
    assert manager.match(follower, make_tokens(17)) == NOTHING


def test_after_forgetting_no_state_is_found() -> None:
    manager = make_manager((), num_states=8)
    run_with_states(manager, make_tokens(17))
    manager.clear_index()
    assert found(manager, make_tokens(17)) == 0


def _hold_too_much(manager: KVCacheManager, cache: SequenceCache) -> None:
    manager.pools[0].retain([cache.tables[0].block_at(0)])


def _hold_too_little(manager: KVCacheManager, cache: SequenceCache) -> None:
    manager.pools[0].release([cache.tables[0].block_at(0)])


def _keep_a_dropped_block(manager: KVCacheManager, cache: SequenceCache) -> None:
    cache.tables[1].drop_before(1)


def _take_and_forget(manager: KVCacheManager, cache: SequenceCache) -> None:
    manager.pools[1].allocate(1)


def _lose_a_free_block(manager: KVCacheManager, cache: SequenceCache) -> None:
    manager.pools[0]._free.pop()


def _list_a_block_twice(manager: KVCacheManager, cache: SequenceCache) -> None:
    cache.tables[0].append([cache.tables[0].block_at(0)])


def _promise_nothing(manager: KVCacheManager, cache: SequenceCache) -> None:
    manager._announced.clear()


def _promise_what_nobody_computes(manager: KVCacheManager, cache: SequenceCache) -> None:
    manager._announced.update([cache.root])


@pytest.mark.parametrize(
    "corrupt",
    [
        _hold_too_much,
        _hold_too_little,
        _keep_a_dropped_block,
        _take_and_forget,
        _lose_a_free_block,
        _list_a_block_twice,
        _promise_nothing,
        _promise_what_nobody_computes,
    ],
)
def test_the_integrity_check_sees(corrupt: Corruption) -> None:
    manager = make_manager((None, 6))
    cache = start(manager, make_tokens(13))
    compute(manager, cache, make_tokens(13), stop=9)
    manager.check_integrity([cache])
    corrupt(manager, cache)
    with pytest.raises(AssertionError):
        manager.check_integrity([cache])


def test_the_integrity_check_sees_a_holder_that_nobody_knows() -> None:
    manager = make_manager()
    run(manager, make_tokens(4))
    with pytest.raises(AssertionError, match="holders counted"):
        manager.check_integrity([])
