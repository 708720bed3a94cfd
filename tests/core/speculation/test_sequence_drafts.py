"""Drafts are judged alike whether they run or not."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from pippin.core.speculation.ngram import NgramProposer
from pippin.core.speculation.sequence_drafts import SequenceDrafts, count_accepted
from pippin.core.speculation.stats import DraftCounts


class Script:
    """Guesses from a text of its own."""

    def __init__(self, text: Sequence[int]) -> None:
        self._text = list(text)

    def propose(self, token_ids: Sequence[int], max_tokens: int) -> list[int]:
        return self._text[len(token_ids) :][:max_tokens]


def replay(text: list[int], drafts: SequenceDrafts, *, run: bool) -> list[DraftCounts]:
    """Draw ``text``, with the drafts verified or one token a step, and list the judgements."""
    num_known, judged = 1, list[DraftCounts]()
    while True:
        if not drafts.is_open:
            draft = drafts.propose(text[:num_known], len(text) - num_known)
        step = 1
        if run:
            step += count_accepted(draft, text[num_known:])
        num_known += step
        if num_known > len(text):
            return judged
        counts = drafts.settle(text[:num_known])
        assert counts is not None or not run
        if counts is not None:
            judged.append(counts)


def test_acceptance_ends_at_the_first_difference() -> None:
    assert count_accepted([1, 2, 3], [1, 2, 4, 3]) == 2
    assert count_accepted([1, 2], [1, 2, 3]) == 2
    assert count_accepted([1, 2, 3], [1]) == 1
    assert count_accepted([], [1]) == 0


@given(st.lists(st.integers(0, 2), min_size=1, max_size=60))
def test_unrun_drafts_tell_what_run_ones_give(text: list[int]) -> None:
    unrun, run = (
        replay(text, SequenceDrafts(NgramProposer(min_n=1), 4), run=run) for run in (False, True)
    )
    assert unrun == run


def test_a_draft_stays_open_until_its_step_would_have_ended() -> None:
    drafts = SequenceDrafts(Script([0, 1, 2, 9]), 4)
    assert drafts.propose([0], 4) == [1, 2]
    assert drafts.settle([0]) is None
    assert drafts.settle([0, 1]) is None
    assert drafts.settle([0, 1, 2]) is None
    assert drafts.is_open
    expected = DraftCounts(num_steps=1, num_drafted=2, num_accepted=2, num_emitted=3)
    assert drafts.settle([0, 1, 2, 3]) == expected
    assert not drafts.is_open
    assert drafts.settle([0, 1, 2, 3, 4]) is None


def test_after_misses_a_guess_gets_no_row_until_it_was_right() -> None:
    truth = [0, 1, 2, 3, 4, 5, 6]
    drafts = SequenceDrafts(Script([0, 9, 9, 9, 4, 5, 6]), 4)
    lengths = []
    for num_known in range(1, 6):
        lengths.append(len(drafts.propose(truth[:num_known], 4)))
        counts = drafts.settle(truth[: num_known + 1 + lengths[-1]])
        assert counts is not None
        assert counts.num_drafted == lengths[-1]
        assert counts.num_emitted == counts.num_accepted + 1
    assert lengths == [2, 1, 0, 0, 1]


def test_a_draft_has_no_more_tokens_than_there_is_room_for() -> None:
    assert SequenceDrafts(Script([0, 1, 2]), 4).propose([0], 1) == [1]
    assert SequenceDrafts(Script([0, 1, 2]), 4).propose([0], 0) == []
