"""Where states are saved, how they are found again, and that none is lost."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from pippin.core.cache.block_hash import BlockHash
from pippin.core.cache.checkpoints import _GRID, _LEAST_APART, Checkpoints, SequenceCheckpoints


def hashes_of(text: str, count: int) -> list[BlockHash]:
    """Of a text's blocks: texts differ from the first one on."""
    return [BlockHash(f"{text}{i}".encode()) for i in range(count)]


def planned(count: int, *, start: int = 0, ends: Iterable[int] = ()) -> list[int]:
    """Where the states of a prompt of so many whole blocks are saved."""
    mine = SequenceCheckpoints()
    Checkpoints(4).plan(mine, hashes_of("a", count), start, ends)
    return mine.planned


def saved(
    checkpoints: Checkpoints, text: str, counts: Iterable[int], *, rolls: bool = False
) -> SequenceCheckpoints:
    """A sequence whose states after so many blocks have been saved."""
    mine = SequenceCheckpoints()
    for count in counts:
        assert checkpoints.reserve(mine, count, rolls=rolls) is not None
        checkpoints.publish(mine, hashes_of(text, count), count)
    checkpoints.check_integrity([mine])
    return mine


def found(checkpoints: Checkpoints, text: str, most: int = 100) -> list[int]:
    """After how many blocks of a text there is a state."""
    hashes = hashes_of(text, most)
    return [i + 1 for i, each in enumerate(hashes) if checkpoints.id_of(each) is not None]


@pytest.mark.parametrize(
    ("count", "start", "ends", "want"),
    [
        (0, 0, [], []),
        (1, 0, [], [1]),
        (5, 5, [], []),
        (5, 0, [], [5]),
        (9, 0, [0, 9, 12], [9]),  # what is not inside says nothing
        (9, 0, [2], [2, 9]),  # a first message, mostly the system prompt
        (9, 4, [2, 3, 4], [9]),
        (9, 4, [5, 6, 7], [6, 7, 9]),  # the last two, however short
        (9, 0, [5, 5, 6, 7, 7], [5, 6, 7, 9]),
        (60, 0, [3, 5, 20, 22, 40, 50, 55], [3, 20, 32, 40, 50, 55, 60]),
    ],
)
def test_states_are_saved_where_messages_end(
    count: int, start: int, ends: list[int], want: list[int]
) -> None:
    assert planned(count, start=start, ends=ends) == want


@pytest.mark.parametrize("start", [0, 1, _GRID - 1, _GRID, _GRID + 1])
def test_one_long_message_is_saved_on_a_grid(start: int) -> None:
    count = 5 * _GRID + _LEAST_APART - 1
    grid = [n for n in range(_GRID, 5 * _GRID, _GRID) if n > start]
    # The last place of the grid is as good as the end.
    assert planned(count, start=start) == [*grid, count]
    assert planned(count + 1, start=start) == [*grid, 5 * _GRID, count + 1]


def test_nobody_who_starts_elsewhere_on_the_grid_saves_elsewhere() -> None:
    count = 6 * _GRID
    whole = set(planned(count))
    for start in range(count):
        assert set(planned(count, start=start)) <= whole


def test_what_is_planned_is_announced_until_it_is_computed() -> None:
    checkpoints, mine, hashes = Checkpoints(4), SequenceCheckpoints(), hashes_of("a", 9)
    checkpoints.plan(mine, hashes, 0, [4])
    assert checkpoints.is_announced(hashes[3:])
    assert not checkpoints.is_announced(hashes_of("b", 9))
    checkpoints.publish(mine, hashes, 4)
    assert not checkpoints.is_announced(hashes[:8])
    assert checkpoints.is_announced(hashes[4:])
    checkpoints.publish(mine, hashes, 9)
    assert not checkpoints.is_announced(hashes)
    checkpoints.check_integrity([mine])


def test_two_who_announce_the_same_are_counted_apart() -> None:
    checkpoints, hashes = Checkpoints(4), hashes_of("a", 4)
    first, second = SequenceCheckpoints(), SequenceCheckpoints()
    for mine in (first, second):
        checkpoints.plan(mine, hashes, 0, ())
    checkpoints.release(first)
    assert checkpoints.is_announced(hashes)
    checkpoints.check_integrity([second])
    checkpoints.release(second)
    assert not checkpoints.is_announced(hashes)


def test_nobody_waits_where_no_state_can_be_saved() -> None:
    checkpoints, mine, hashes = Checkpoints(0), SequenceCheckpoints(), hashes_of("a", 4)
    checkpoints.plan(mine, hashes, 0, ())
    assert not checkpoints.is_announced(hashes)
    assert checkpoints.reserve(mine, 4, rolls=True) is None
    checkpoints.check_integrity([mine])


def test_a_state_that_could_not_be_saved_is_not_announced_for_ever() -> None:
    checkpoints, mine, hashes = Checkpoints(1), SequenceCheckpoints(), hashes_of("a", 4)
    other = SequenceCheckpoints()
    assert checkpoints.reserve(other, 1, rolls=False) is not None
    checkpoints.plan(mine, hashes, 0, ())
    assert checkpoints.reserve(mine, 4, rolls=False) is None
    checkpoints.publish(mine, hashes, 4)
    assert not checkpoints.is_announced(hashes)
    checkpoints.check_integrity([mine, other])


def test_a_reserved_state_is_found_only_once_it_is_computed() -> None:
    checkpoints, mine = Checkpoints(2), SequenceCheckpoints()
    state_id = checkpoints.reserve(mine, 3, rolls=False)
    checkpoints.publish(mine, hashes_of("a", 2), 2)
    assert found(checkpoints, "a") == []
    checkpoints.publish(mine, hashes_of("a", 3), 3)
    assert found(checkpoints, "a") == [3]
    assert checkpoints.use(hashes_of("a", 3)[2]) == state_id


def test_a_state_under_way_is_not_reserved_again() -> None:
    checkpoints, mine = Checkpoints(2), SequenceCheckpoints()
    assert checkpoints.reserve(mine, 3, rolls=False) is not None
    assert checkpoints.reserve(mine, 3, rolls=False) is None
    checkpoints.check_integrity([mine])


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_an_answer_keeps_its_newest_state_and_those_on_the_grid(lag: int) -> None:
    checkpoints, mine = Checkpoints(8), SequenceCheckpoints()
    last = 2 * _GRID + 5
    for count in range(_GRID - 3, last + 1):
        assert checkpoints.reserve(mine, count, rolls=True) is not None
        checkpoints.publish(mine, hashes_of("a", count), count - lag)
        checkpoints.check_integrity([mine])
    checkpoints.publish(mine, hashes_of("a", last), last)
    assert found(checkpoints, "a") == [_GRID, 2 * _GRID, last]
    checkpoints.release(mine)
    assert found(checkpoints, "a") == [_GRID, 2 * _GRID, last]
    checkpoints.check_integrity([])


def test_another_sequence_rolls_on_beside_what_the_first_left() -> None:
    checkpoints = Checkpoints(4)
    checkpoints.release(saved(checkpoints, "a", [3, 4], rolls=True))
    saved(checkpoints, "a", [5, 6], rolls=True)
    assert found(checkpoints, "a") == [4, 6]


def test_rolling_on_leaves_what_others_saved() -> None:
    checkpoints = Checkpoints(4)
    checkpoints.release(saved(checkpoints, "a", [5]))
    saved(checkpoints, "a", [4, 5, 6], rolls=True)
    assert found(checkpoints, "a") == [5, 6]


def test_the_state_that_was_used_last_stays_longest() -> None:
    checkpoints = Checkpoints(2)
    for text in ("a", "b"):
        checkpoints.release(saved(checkpoints, text, [1]))
    checkpoints.use(hashes_of("a", 1)[0])
    checkpoints.release(saved(checkpoints, "c", [1]))
    assert [bool(found(checkpoints, text)) for text in "abc"] == [True, False, True]


@pytest.mark.parametrize("num_states", [0, 1, 3, 20])
@pytest.mark.parametrize("seed", range(25))
def test_random_orders_lose_nothing(num_states: int, seed: int) -> None:
    chosen = random.Random(seed)
    checkpoints = Checkpoints(num_states)
    living: list[tuple[SequenceCheckpoints, list[BlockHash], list[int]]] = []
    # What each id would hold on the device: the hash that it was last saved by.
    content: dict[int, BlockHash] = {}
    for _ in range(150):
        if len(living) < 2 or chosen.random() < 0.1:
            hashes, mine = hashes_of(chosen.choice("abc"), 60), SequenceCheckpoints()
            length, start = chosen.randrange(40), chosen.randrange(8)
            start = min(start, length)
            ends = [chosen.randrange(60) for _ in range(chosen.randrange(6))]
            checkpoints.plan(mine, hashes[:length], start, ends)
            living.append((mine, hashes, [start, start]))
        mine, hashes, (reserved, published) = entry = chosen.choice(living)
        match chosen.randrange(5):
            case 0 if chosen.random() < 0.2:
                checkpoints.release(mine)
                living.remove(entry)
            case 0 | 1 | 2 if reserved < 60:
                entry[2][0] = count = reserved + 1
                rolls = count not in mine.planned
                state_id = checkpoints.reserve(mine, count, rolls=rolls)
                if state_id is not None:
                    content[state_id] = hashes[count - 1]
            case _:
                entry[2][1] = count = chosen.randint(published, reserved)
                checkpoints.publish(mine, hashes[:count], count)
        checkpoints.check_integrity([mine for mine, _, _ in living])
        for each in {h for _, hashes, _ in living for h in hashes}:
            state_id = checkpoints.id_of(each)
            assert state_id is None or content[state_id] == each
    for mine, _, _ in living:
        checkpoints.release(mine)
    checkpoints.check_integrity([])
    assert checkpoints.pool.num_available == num_states
