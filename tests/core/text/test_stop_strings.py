"""Stop strings are found where they end first, however the text is cut, and never shown in part."""

import time
from collections.abc import Sequence
from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pippin.core.text.stop_strings import StopStringScanner

LETTERS = st.text("ab\n]^", max_size=30)
STOPS = st.lists(st.text("ab\n]^", min_size=1, max_size=5), min_size=1, max_size=4)


def find_stop(text: str, stops: Sequence[str], first_end: int = 0) -> tuple[str, str | None]:
    """The rule, spelled out slowly: the first end of a stop string, then the longest one there."""
    for end in range(max(first_end, 1), len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            matched = max(ending, key=len)
            return text[: end - len(matched)], matched
    return text, None


def longest_begun(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that more text may make a stop string."""
    lengths = [n for stop in stops for n in range(len(stop)) if text.endswith(stop[:n])]
    return max(lengths)


def cut(text: str, places: Sequence[int]) -> list[str]:
    borders = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in pairwise(borders)]


@settings(deadline=None, max_examples=300)
@given(LETTERS, STOPS, st.lists(st.integers(0, 99), max_size=10))
@example("aab", ["ab"], [1, 2])
@example("aaab", ["aab", "b"], [1, 2, 3])
def test_any_cut_gives_what_the_whole_text_gives(
    text: str, stops: list[str], places: list[int]
) -> None:
    scanner = StopStringScanner(stops)
    shown, matched = "", None
    for delta in cut(text, places):
        scan = scanner.feed(delta)
        shown, matched = shown + scan.text, scan.matched_stop
        if matched is not None:
            break
    else:
        shown += scanner.close()
    assert (shown, matched) == find_stop(text, stops)


@settings(deadline=None, max_examples=300)
@given(LETTERS, STOPS)
def test_exactly_what_may_begin_a_stop_is_held(text: str, stops: list[str]) -> None:
    scanner = StopStringScanner(stops)
    shown = ""
    for position, character in enumerate(text, start=1):
        scan = scanner.feed(character)
        if scan.matched_stop is not None:
            return
        shown += scan.text
        num_held = longest_begun(text[:position], stops)
        assert shown == text[: position - num_held]
        assert scanner.num_held == num_held


@settings(deadline=None, max_examples=300)
@given(LETTERS, STOPS, st.integers(0, 30), st.lists(st.integers(0, 99), max_size=6))
def test_unarmed_text_may_begin_a_stop_but_not_complete_one(
    text: str, stops: list[str], num_unarmed: int, places: list[int]
) -> None:
    scanner = StopStringScanner(stops)
    shown = ""
    for delta in cut(text[:num_unarmed], places):
        scan = scanner.feed(delta, armed=False)
        assert scan.matched_stop is None
        shown += scan.text
    assert scanner.num_held == longest_begun(text[:num_unarmed], stops)
    scan = scanner.feed(text[num_unarmed:])
    shown += scan.text
    if scan.matched_stop is None:
        shown += scanner.close()
    expected = find_stop(text, stops, first_end=num_unarmed + 1)
    assert (shown, scan.matched_stop) == expected


def test_first_completed_stop_wins_over_an_earlier_begun_one() -> None:
    scan = StopStringScanner(["abcd", "bc"]).feed("xabcd")
    assert (scan.text, scan.matched_stop) == ("xa", "bc")


def test_longest_of_the_stops_that_end_together_wins() -> None:
    scan = StopStringScanner(["c", "abc", "bc"]).feed("xabc")
    assert (scan.text, scan.matched_stop) == ("x", "abc")


def test_shorter_stop_inside_of_a_longer_one_that_fails_is_found() -> None:
    scan = StopStringScanner(["abab!", "ba"]).feed("ab")
    assert scan.text == ""
    scanner = StopStringScanner(["xbay", "ba"])
    assert scanner.feed("xb").text == ""
    assert scanner.feed("a").matched_stop == "ba"


def test_scanner_can_be_closed_twice() -> None:
    scanner = StopStringScanner(["stop"])
    assert scanner.feed("a sto").text == "a "
    assert scanner.close() == "sto"
    assert scanner.close() == ""


def test_long_stop_that_almost_matches_everywhere_costs_linear_time() -> None:
    # A scanner that starts over, or that copies what it holds, does 10^9 steps here.
    num_characters, length = 100_000, 10_000
    scanner = StopStringScanner(["a" * length + "b"])
    started_at = time.process_time()
    num_shown = sum(len(scanner.feed("a").text) for _ in range(num_characters))
    assert time.process_time() - started_at < 2.0
    assert num_shown == num_characters - length
    assert scanner.feed("b").matched_stop is not None
