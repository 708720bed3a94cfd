"""Positions to slots, with a tail that may be gone."""

import pytest

from pippin.core.cache.block_table import BlockTable


def make_table(*block_ids: int, block_size: int = 4) -> BlockTable:
    table = BlockTable(block_size)
    table.append(block_ids)
    return table


def test_slots_follow_the_blocks() -> None:
    table = make_table(7, 2, block_size=4)
    assert [table.slot(position) for position in range(8)] == [28, 29, 30, 31, 8, 9, 10, 11]


def test_positions_behind_the_last_block_have_no_slot() -> None:
    with pytest.raises(IndexError):
        make_table(7).slot(4)


def test_dropped_positions_have_no_slot_and_the_others_keep_theirs() -> None:
    table = make_table(7, 2, 5)
    assert table.drop_before(2) == [7, 2]
    assert table.slot(8) == 20
    assert (table.first_block, table.num_blocks, table.num_held) == (2, 3, 1)
    assert list(table.block_ids) == [5]
    with pytest.raises(IndexError, match="before the first held block 2"):
        table.slot(7)


def test_dropping_again_or_less_changes_nothing() -> None:
    table = make_table(7, 2, 5)
    table.drop_before(2)
    assert table.drop_before(2) == []
    assert table.drop_before(0) == []
    assert table.num_held == 1


def test_no_more_is_dropped_than_is_held() -> None:
    table = make_table(7, 2)
    assert table.drop_before(9) == [7, 2]
    assert (table.first_block, table.num_blocks) == (2, 2)
    table.append([3])
    assert table.block_at(2) == 3


def test_reused_blocks_may_start_in_the_middle() -> None:
    table = BlockTable(4)
    table.start_at(3, [9, 8])
    table.append([1])
    assert [table.block_at(index) for index in (3, 4, 5)] == [9, 8, 1]
    assert table.num_blocks == 6
    with pytest.raises(IndexError):
        table.block_at(2)


def test_only_an_empty_table_can_start() -> None:
    with pytest.raises(AssertionError):
        make_table(1).start_at(0, [2])


def test_clearing_gives_everything_back_in_order_and_starts_afresh() -> None:
    table = make_table(7, 2, 5)
    table.drop_before(1)
    assert table.clear() == [2, 5]
    assert (table.first_block, table.num_blocks) == (0, 0)
    table.start_at(1, [4])
    assert table.slot(4) == 16


def test_a_span_follows_what_is_held() -> None:
    table = make_table(7, 2)
    assert table.span(0, 2).tolist() == [7, 2]
    table.append([5, 9, 4])  # more than were there
    assert table.span(1, 5).tolist() == [2, 5, 9, 4]
    table.drop_before(2)
    table.append([8, 3])  # as many as before
    assert table.span(3, 7).tolist() == [9, 4, 8, 3]
    table.clear()
    table.start_at(1, [6])
    table.append([1])
    assert table.span(1, 3).tolist() == [6, 1]


def test_the_version_says_whether_a_span_may_have_changed() -> None:
    table = make_table(7, 2)
    version = table.version
    table.append([5])
    table.drop_before(0)
    assert table.version == version
    table.drop_before(1)
    dropped = table.version
    assert dropped != version
    table.clear()
    assert table.version != dropped
