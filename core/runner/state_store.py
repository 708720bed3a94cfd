"""The states of recurrent layers: of running sequences, and saved ones to go on from.

A state is never written to: each pass returns new arrays, and whoever wants to keep one keeps a
reference. So a pass whose guesses were wrong is taken back by what it was given. As long as the
same sequences decode, the arrays that one pass returned for all of them go into the next one as
they are.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeAlias

import numpy as np

from ..backend import mx
from ..cache.kv_layout import KVLayout

# The arrays of all recurrent layers, one layer after another: ``[sequences, ...]`` each.
State: TypeAlias = list[mx.array]


class StateStore:
    """States by sequence and by id.

    Attributes:
        layout: Whose recurrent layers these are the states of.
    """

    def __init__(self, layout: KVLayout) -> None:
        self.layout = layout
        self._specs = [spec for layer in layout.layers for spec in layer.states]
        self._running: dict[Hashable, State] = {}
        self._saved: dict[int, State] = {}
        # What the last pass over several sequences returned, and the place of each in it.
        self._batch: State = []
        self._places: dict[Hashable, int] = {}
        # What speculative passes were given, and the place of each sequence in it.
        self._before: dict[Hashable, tuple[State, int]] = {}
        self._unsettled: list[mx.array] = []

    @property
    def nbytes(self) -> int:
        """Memory of all arrays."""
        before = {id(state): state for state, _ in self._before.values()}
        states = [*self._running.values(), *self._saved.values(), self._batch, *before.values()]
        return sum(array.nbytes for state in states for array in state)

    def gather(self, keys: Sequence[Hashable], num_padding: int = 0) -> State:
        """One array for all sequences, ``[len(keys) + num_padding, ...]``; zeros for new ones."""
        places = [self._places.get(key) for key in keys]
        if places == [*range(len(keys))] and len(self._batch[0]) == len(keys) + num_padding:
            return self._batch
        if None not in places and not num_padding and len(keys) > 1:
            index = mx.array(places)
            return [array[index] for array in self._batch]
        parts = [self._of(key) for key in keys]
        if num_padding:
            parts.append(self._zeros(num_padding))
        if len(parts) == 1:
            return parts[0]
        return [mx.concatenate(list(arrays)) for arrays in zip(*parts, strict=True)]

    def put(self, keys: Sequence[Hashable], state: State, *, before: State | None = None) -> None:
        """Take what a pass returned for these sequences, in the shapes of `gather`.

        Args:
            before: What `gather` gave it, for `take_back`.
        """
        self._unsettled += state
        for place, key in enumerate(keys):
            self._before.pop(key, None)
            if before is not None:
                self._before[key] = (before, place)
        if len(keys) == 1 and len(state[0]) == 1:
            self._leave(keys[0])
            self._running[keys[0]] = state
            return
        # Sequences that are not in this pass keep their own part of the last one.
        for key in set(self._places).difference(keys):
            self._running[key] = self._own(key)
            self._unsettled += self._running[key]
        for key in keys:
            self._running.pop(key, None)
        self._batch = state
        self._places = {key: place for place, key in enumerate(keys)}

    def take_back(self, keys: Sequence[Hashable]) -> None:
        """Have sequences go on from what their last passes were given."""
        rows = [key for key in keys if key in self._places]
        for key in set(keys).difference(rows):
            before, place = self._before.pop(key)
            if len(before[0]) > 1:
                before = [mx.contiguous(array[place : place + 1]) for array in before]
                self._unsettled += before
            self._running[key] = before
        if rows:
            # All were in the same pass.
            (before, _), *_ = [self._before.pop(key) for key in rows]
            wrong = np.zeros(len(before[0]), np.bool_)
            wrong[[self._places[key] for key in rows]] = True
            self._batch = [
                mx.where(mx.array(wrong.reshape(-1, *[1] * (old.ndim - 1))), old, new)
                for old, new in zip(before, self._batch, strict=True)
            ]
            self._unsettled += self._batch

    def save(self, state_id: int, key: Hashable) -> None:
        """Keep a sequence's state under an id, in place of what was kept there."""
        state = self._own(key)
        self._saved[state_id] = state
        self._unsettled += state

    def saved(self, state_id: int) -> State | None:
        """What is kept under an id."""
        return self._saved.get(state_id)

    def put_saved(self, state_id: int, state: State) -> None:
        """Keep a state that comes from elsewhere, in the shapes of `like`."""
        self._saved[state_id] = state

    def like(self) -> State:
        """A state of nothing."""
        return self._zeros(1)

    def resume(self, key: Hashable, state_id: int) -> None:
        """Have a sequence go on from a saved state."""
        self.forget(key)
        self._running[key] = self._saved[state_id]

    def forget(self, key: Hashable) -> None:
        """Drop a sequence's state."""
        self._leave(key)
        self._before.pop(key, None)

    def reset(self) -> None:
        """Drop everything."""
        self._running, self._saved, self._batch, self._places = {}, {}, [], {}
        self._before, self._unsettled = {}, []

    def take_unsettled(self) -> list[mx.array]:
        """Arrays, not given out before, that must be evaluated not to hold on to what they need."""
        arrays, self._unsettled = self._unsettled, []
        return arrays

    def _leave(self, key: Hashable) -> None:
        self._running.pop(key, None)
        self._places.pop(key, None)
        if not self._places:
            self._batch = []

    def _of(self, key: Hashable) -> State:
        if key in self._places:
            return self._row(self._places[key])
        return self._running.get(key) or self._zeros(1)

    def _own(self, key: Hashable) -> State:
        """A sequence's state, as arrays that do not hold on to the whole batch's."""
        state = self._of(key)
        return [mx.contiguous(array) for array in state] if key in self._places else state

    def _row(self, place: int) -> State:
        return [array[place : place + 1] for array in self._batch]

    def _zeros(self, count: int) -> State:
        return [mx.zeros((count, *spec.shape[1:]), getattr(mx, spec.dtype)) for spec in self._specs]
