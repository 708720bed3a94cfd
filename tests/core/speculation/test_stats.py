"""Counts add up."""

from pippin.core.speculation.stats import DraftCounts


def test_counts_add_up() -> None:
    one = DraftCounts(num_steps=1, num_drafted=4, num_accepted=1, num_emitted=2)
    other = DraftCounts(num_steps=1, num_drafted=4, num_accepted=3, num_emitted=4)

    assert one + other == DraftCounts(num_steps=2, num_drafted=8, num_accepted=4, num_emitted=6)


def test_the_acceptance_rate_is_of_drafted_tokens() -> None:
    assert DraftCounts(num_drafted=8, num_accepted=2).acceptance_rate == 0.25
    assert DraftCounts().acceptance_rate == 0.0
