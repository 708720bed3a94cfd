"""States by sequence and by id, against a plain dictionary of arrays."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import pytest

from pippin.core.backend import mx
from pippin.core.cache.kv_layout import KVLayout, LayerKind, LayerSpec, StateSpec
from pippin.core.runner.state_store import StateStore

_SHAPES = ((1, 3, 4), (1, 2))
# The first number of each array of one sequence's state; all others follow from it.
Value: TypeAlias = tuple[int, ...]
NEW: Value = (0, 0)


def make_store(shapes: Sequence[tuple[int, ...]] = _SHAPES) -> StateStore:
    """Two recurrent layers with an attention layer between them."""
    recurrent = [
        LayerSpec(kind=LayerKind.RECURRENT, states=(StateSpec(shape, "float32", 4),))
        for shape in shapes
    ]
    full = LayerSpec(kind=LayerKind.FULL, num_kv_heads=1, key_dim=2, value_dim=2, item_bytes=4)
    return StateStore(KVLayout([recurrent[0], full, *recurrent[1:]]))


def arrays_of(values: Sequence[Value]) -> list[mx.array]:
    """What a pass over sequences of these states returns."""
    return [
        mx.concatenate([mx.full(shape, value[i], mx.float32) for value in values])
        for i, shape in enumerate(_SHAPES)
    ]


def values_of(state: Sequence[mx.array]) -> list[Value]:
    """The other way round; all numbers of one sequence's array must be equal."""
    rows = []
    for array, shape in zip(state, _SHAPES, strict=True):
        flat = np.array(array).reshape(len(array), -1)
        assert array.shape[1:] == shape[1:]
        assert (flat == flat[:, :1]).all()
        rows.append([int(value) for value in flat[:, 0]])
    return list(zip(*rows, strict=True))


@pytest.mark.parametrize("seed", range(60))
def test_random_orders_agree_with_a_dictionary(seed: int) -> None:  # noqa: C901 -- flat cases
    chosen = random.Random(seed)
    store, running, saved = make_store(), dict[int, Value](), dict[int, Value]()
    before, serial = dict[int, Value](), 0
    for _ in range(80):
        keys = chosen.sample(range(6), chosen.randint(1, 5))
        match chosen.randrange(12):
            case 0:
                store.forget(keys[0])
                running.pop(keys[0], None)
                before.pop(keys[0], None)
            case 10 | 11 if before:
                wrong = chosen.sample(list(before), chosen.randint(1, len(before)))
                # The others' guesses were right, and all go on.
                store.take_back(wrong)
                running.update((key, before[key]) for key in wrong)
                before.clear()
            case 1 if saved:
                state_id = chosen.choice(list(saved))
                store.resume(keys[0], state_id)
                running[keys[0]] = saved[state_id]
                before.pop(keys[0], None)
            case 2 | 3:
                state_id = chosen.randrange(4)
                store.save(state_id, keys[0])
                saved[state_id] = running.get(keys[0], NEW)
            case 4:
                mx.eval(store.take_unsettled())
            case _:
                if chosen.random() < 0.5:  # the same again, as in decoding
                    keys = sorted(running)[: len(keys)] or keys
                padding = chosen.choice((0, 0, 0, 1, 3))
                given = store.gather(keys, padding)
                got = values_of(given)
                assert got[: len(keys)] == [running.get(key, NEW) for key in keys]
                assert len(got) == len(keys) + padding
                new = [(serial + 2 * i + 1, serial + 2 * i + 2) for i in range(len(got))]
                serial += 2 * len(got)
                if chosen.random() < 0.5:
                    store.put(keys, arrays_of(new), before=given)
                    before = {key: running.get(key, NEW) for key in keys}
                else:
                    store.put(keys, arrays_of(new))
                    before = {}
                running.update(zip(keys, new, strict=False))
    for key, value in running.items():
        assert values_of(store.gather([key])) == [value]
    for state_id, value in saved.items():
        store.resume("late", state_id)
        assert values_of(store.gather(["late"])) == [value]


def test_the_same_sequences_get_the_very_arrays_of_the_last_pass() -> None:
    store = make_store()
    state = arrays_of([(1, 2), (3, 4), (0, 0)])
    store.put(["a", "b"], state)
    assert store.gather(["a", "b"], 1) is state


def test_a_new_sequence_that_takes_a_row_of_padding_starts_from_zeros() -> None:
    store = make_store()
    store.put(["a", "b"], arrays_of([(1, 2), (3, 4), (9, 9)]))
    assert values_of(store.gather(["a", "b", "c"])) == [(1, 2), (3, 4), NEW]
    store.forget("b")
    assert values_of(store.gather(["a", "b"], 1))[:2] == [(1, 2), NEW]


def _big(rows: int) -> list[mx.array]:
    return [mx.ones((rows, 100_000), mx.float32) for _ in range(2)]


def _active_after(store: StateStore) -> int:
    mx.eval(store.take_unsettled())
    mx.synchronize()
    return int(mx.get_active_memory())


@pytest.mark.parametrize("leaves", ["saved", "left out of a pass"])
def test_one_row_does_not_hold_on_to_a_batch(leaves: str) -> None:
    store = make_store([(1, 100_000), (1, 100_000)])
    before = _active_after(store)
    store.put(range(16), _big(16))
    assert _active_after(store) - before >= 16 * 800_000
    if leaves == "saved":
        store.save(0, 3)
        mx.eval(store.take_unsettled())
        for key in range(16):
            store.forget(key)
    else:
        store.put([0, 1], _big(2))
        for key in range(16):
            if key != 3:
                store.forget(key)
    assert _active_after(store) - before <= 2 * 800_000
    assert store.nbytes == 800_000


def test_resetting_leaves_nothing() -> None:
    store = make_store()
    store.put(["a", "b"], arrays_of([(1, 2), (3, 4)]))
    store.save(0, "a")
    store.reset()
    assert store.nbytes == 0
    assert store.take_unsettled() == []
    assert values_of(store.gather(["a"])) == [NEW]
