"""Drafts are judged alike whether they run or not."""

from hypothesis import given
from hypothesis import strategies as st

from pippin.core.speculation.ngram import NgramProposer
from pippin.core.speculation.sequence_drafts import SequenceDrafts, count_accepted
from pippin.core.speculation.stats import DraftCounts


def replay(text: list[int], *, run: bool) -> list[DraftCounts]:
    """Draw ``text``, with the drafts verified or one token a step, and list the judgements."""
    num_known, judged = 1, list[DraftCounts]()
    proposer, drafts = NgramProposer(min_n=1), SequenceDrafts(4)
    while True:
        if not drafts.is_open:
            count = min(drafts.num_wanted, len(text) - num_known)
            draft = drafts.open(num_known, proposer.propose(text[:num_known], count))
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
    assert replay(text, run=False) == replay(text, run=True)


def test_a_draft_stays_open_until_its_step_would_have_ended() -> None:
    drafts = SequenceDrafts(4)
    assert drafts.open(1, [1, 2]) == [1, 2]
    assert drafts.settle([0]) is None
    assert drafts.settle([0, 1]) is None
    assert drafts.settle([0, 1, 2]) is None
    assert drafts.is_open
    expected = DraftCounts(num_steps=1, num_drafted=2, num_accepted=2, num_emitted=3)
    assert drafts.settle([0, 1, 2, 3]) == expected
    assert not drafts.is_open
    assert drafts.settle([0, 1, 2, 3, 4]) is None


def test_after_misses_a_guess_gets_no_row_until_it_was_right() -> None:
    truth, script = [0, 1, 2, 3, 4, 5, 6], [0, 9, 9, 9, 4, 5, 6]
    drafts = SequenceDrafts(4)
    wanted, lengths = [], []
    for num_known in range(1, 6):
        wanted.append(drafts.num_wanted)
        guess = script[num_known : num_known + wanted[-1]]
        lengths.append(len(drafts.open(num_known, guess)))
        counts = drafts.settle(truth[: num_known + 1 + lengths[-1]])
        assert counts is not None
        assert counts.num_drafted == lengths[-1]
        assert counts.num_emitted == counts.num_accepted + 1
    assert wanted == [2, 1, 1, 1, 1]
    assert lengths == [2, 1, 0, 0, 1]
