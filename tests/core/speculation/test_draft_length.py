"""How draft lengths follow what becomes of drafts."""

import pytest

from pippin.core.speculation.draft_length import DraftLength


def test_it_doubles_up_to_the_maximum_while_all_is_right() -> None:
    length = DraftLength(6)
    seen = []
    for _ in range(4):
        seen.append(length.tokens)
        length.update(num_drafted=length.tokens, num_accepted=length.tokens)
    assert seen == [2, 4, 6, 6]


@pytest.mark.parametrize(("num_accepted", "expected"), [(7, 7), (5, 5), (4, 4), (1, 4), (0, 4)])
def test_a_miss_keeps_what_was_right_and_at_least_half(num_accepted: int, expected: int) -> None:
    length = DraftLength(8, initial=8)
    length.update(num_drafted=8, num_accepted=num_accepted)
    assert length.tokens == expected


def test_repeated_misses_end_drafts_and_one_right_guess_brings_them_back() -> None:
    length = DraftLength(8, initial=4)
    for expected in (2, 1, 0, 0):
        length.update(num_drafted=4, num_accepted=0)
        assert length.tokens == expected
    length.update(num_drafted=1, num_accepted=1)
    assert length.tokens == 1


def test_without_a_draft_nothing_is_learnt() -> None:
    length = DraftLength(8)
    length.update(num_drafted=0, num_accepted=0)
    assert length.tokens == 2


def test_the_first_draft_is_no_longer_than_the_longest() -> None:
    assert DraftLength(1).tokens == 1
    assert DraftLength(0).tokens == 0
