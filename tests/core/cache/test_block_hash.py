"""A block's hash covers everything before it, and nothing else."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pippin.core.cache.block_hash import BlockHash, hash_block, root_hash

TOKENS = st.lists(st.integers(0, 2**31), min_size=1, max_size=8)


def chain(root: BlockHash, *blocks: list[int]) -> BlockHash:
    for block in blocks:
        root = hash_block(root, block)
    return root


@given(TOKENS)
def test_equal_content_has_equal_hashes(token_ids: list[int]) -> None:
    assert hash_block(root_hash("m"), token_ids) == hash_block(root_hash("m"), tuple(token_ids))


@given(TOKENS, TOKENS)
def test_other_tokens_have_other_hashes(first: list[int], second: list[int]) -> None:
    same = hash_block(root_hash(), first) == hash_block(root_hash(), second)
    assert same == (first == second)


def test_permuted_blocks_have_different_hashes() -> None:
    blocks = [[1, 2], [3, 4], [5, 6]]
    ends = {chain(root_hash(), *order) for order in permutations(blocks)}
    assert len(ends) == 6


def test_a_block_is_not_its_predecessor_run_together_with_it() -> None:
    assert chain(root_hash(), [1, 2], [3, 4]) != chain(root_hash(), [1, 2, 3, 4])


def test_the_same_block_after_another_parent_is_another_block() -> None:
    assert chain(root_hash(), [7], [1]) != chain(root_hash(), [8], [1])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ab", "c"), ("a", "bc")),
        (("a", ""), ("a",)),
        (("a", ""), ("", "a")),
        (("model", "salt"), ("model", "salz")),
    ],
)
def test_extra_keys_do_not_run_into_each_other(
    one: tuple[str, ...], other: tuple[str, ...]
) -> None:
    assert root_hash(*one) != root_hash(*other)


def test_half_a_surrogate_pair_is_a_salt_like_any_other() -> None:
    assert len({root_hash("\ud800"), root_hash("\ud801"), root_hash("?"), root_hash("")}) == 4
