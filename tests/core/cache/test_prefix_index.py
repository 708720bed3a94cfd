"""Hash to block and back."""

import pytest

from pippin.core.cache.block_hash import BlockHash
from pippin.core.cache.prefix_index import PrefixIndex

A, B, C = (BlockHash(name) for name in (b"a", b"b", b"c"))


def make_index(*entries: tuple[BlockHash, int]) -> PrefixIndex:
    index = PrefixIndex()
    for block_hash, block_id in entries:
        assert index.insert(block_hash, block_id)
    index.check_integrity()
    return index


def test_both_directions_are_found() -> None:
    index = make_index((A, 3), (B, 1))
    assert (index.block_of(A), index.hash_of(1), len(index)) == (3, B, 2)
    assert (index.block_of(C), index.hash_of(2)) == (None, None)


def test_the_first_block_with_a_hash_keeps_it() -> None:
    index = make_index((A, 3))
    assert not index.insert(A, 4)
    assert (index.block_of(A), index.hash_of(4)) == (3, None)
    index.check_integrity()


def test_a_block_keeps_its_first_hash() -> None:
    index = make_index((A, 3))
    assert not index.insert(B, 3)
    assert (index.block_of(B), index.hash_of(3)) == (None, A)
    index.check_integrity()


def test_a_removed_block_is_not_found_and_may_come_back_with_other_content() -> None:
    index = make_index((A, 3))
    index.remove_block(3)
    assert index.block_of(A) is None
    assert index.insert(B, 3)
    assert index.insert(A, 4)
    index.check_integrity()


def test_the_integrity_check_sees_a_one_way_entry() -> None:
    index = make_index((A, 3))
    index._hash_by_block[4] = B
    with pytest.raises(AssertionError, match="disagree"):
        index.check_integrity()
