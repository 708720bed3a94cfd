"""Prompt lookup against a search that looks everywhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pippin.core.speculation.ngram import NgramProposer


def search(token_ids: list[int], max_tokens: int, *, min_n: int, max_n: int) -> list[int]:
    """The definition, without an index."""
    n = len(token_ids)
    for length in range(max_n, min_n - 1, -1):
        for start in range(n - length - 1, -1, -1):
            if token_ids[start : start + length] == token_ids[n - length :]:
                draft = list(token_ids)
                for i in range(max_tokens):
                    draft.append(draft[start + length + i])
                return draft[n:]
    return []


@given(
    tokens=st.lists(st.integers(0, 3), max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=8),
    bounds=st.tuples(st.integers(1, 3), st.integers(0, 3)),
    max_tokens=st.integers(1, 9),
)
def test_drafts_are_those_of_a_full_search(
    tokens: list[int], cuts: list[int], bounds: tuple[int, int], max_tokens: int
) -> None:
    min_n, max_n = bounds[0], sum(bounds)
    proposer = NgramProposer(min_n=min_n, max_n=max_n, max_candidates=40)
    for cut in sorted({*cuts, 40}):
        known = tokens[:cut]
        expected = search(known, max_tokens, min_n=min_n, max_n=max_n)
        assert proposer.propose(known, max_tokens) == expected


def test_the_longest_match_beats_a_newer_one() -> None:
    text = [1, 2, 3, 4, 50, 9, 3, 4, 60, 1, 2, 3, 4]
    assert NgramProposer(min_n=2, max_n=4).propose(text, 2) == [50, 9]
    assert NgramProposer(min_n=2, max_n=2).propose(text, 2) == [60, 1]


def test_a_match_at_the_start_of_the_text_ends_there() -> None:
    assert NgramProposer(min_n=2).propose([1, 2, 50, 1, 2, 60, 2, 1, 2], 1) == [60]


def test_a_loop_is_drafted_beyond_the_end_of_the_text() -> None:
    assert NgramProposer(min_n=2).propose([7, 1, 2, 3, 1, 2, 3], 7) == [1, 2, 3, 1, 2, 3, 1]
    assert NgramProposer(min_n=2).propose([5, 5, 5], 4) == [5, 5, 5, 5]


def test_there_is_no_draft_without_a_match_or_room() -> None:
    proposer = NgramProposer(min_n=2)
    assert proposer.propose([], 4) == []
    assert proposer.propose([1, 2], 4) == []
    assert proposer.propose([1, 2, 3, 1], 4) == []
    assert proposer.propose([1, 2, 3, 1, 2], 0) == []
    assert proposer.propose([1, 2, 3, 1, 2], 4) == [3, 1, 2, 3]


def test_ngrams_that_share_a_chain_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pippin.core.speculation.ngram._NUM_CHAINS", 1)
    assert NgramProposer(min_n=2).propose([1, 2, 8, 9, 3, 4, 1, 2], 2) == [8, 9]
    assert NgramProposer(min_n=2).propose([1, 2, 8, 9, 3, 4, 1, 3], 2) == []


def test_the_number_of_candidates_is_bounded() -> None:
    far = [1, 2, 3, 4, 77]
    near = [9, 3, 4, 5] * 3
    text = far + near + [1, 2, 3, 4]
    assert NgramProposer(min_n=2, max_candidates=4).propose(text, 1) == [77]
    assert NgramProposer(min_n=2, max_candidates=3).propose(text, 1) == [5]


def test_a_token_is_read_once() -> None:
    class Counting(list[int]):
        copied = 0

        def __getitem__(self, key):  # type: ignore[no-untyped-def]
            found = super().__getitem__(key)
            Counting.copied += len(found) if isinstance(key, slice) else 1
            return found

    proposer = NgramProposer()
    text = Counting(range(20_000))
    proposer.propose(text, 8)
    Counting.copied = 0
    for token in range(100):
        text.append(token)
        proposer.propose(text, 8)
    assert Counting.copied < 100 * 1000


@pytest.mark.parametrize(("min_n", "max_n"), [(0, 3), (4, 3)])
def test_impossible_lengths_are_refused(min_n: int, max_n: int) -> None:
    with pytest.raises(ValueError, match="min_n <= max_n"):
        NgramProposer(min_n=min_n, max_n=max_n)
