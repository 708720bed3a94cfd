"""A runner that takes down what comes to lie in the store, sequence by sequence."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pippin.core.backend import mx
from pippin.core.cache.block_table import BlockTable
from pippin.core.cache.kv_layout import KVLayout
from pippin.core.engine.schedule import Schedule, ScheduledSequence
from pippin.core.engine.sequence import Sequence
from pippin.core.runner.model_runner import MaskBuilder
from pippin.core.runner.paged_runner import PagedRunner
from pippin.core.runner.step_output import StepInFlight

Floats: TypeAlias = NDArray[np.float32]
# By layer: keys and values, ``[num_kv_heads, tokens, dim]``.
Rows: TypeAlias = dict[int, tuple[Floats, Floats]]


@dataclass
class Stay:
    """What a sequence had in the store, from its admission until nothing of it changed any more.

    Attributes:
        first: First position that it computed itself; what lies before was there already.
        stop: End of what it computed.
        parts: Stored numbers and the position of the first; a later part is written over others.
        draws: Positions that drew a token.
        drafts: Guesses that ran, by position.
        states: Of recurrent layers, by the position that goes on from them.
    """

    sequence: Sequence
    layout: KVLayout
    first: int
    stop: int = 0
    parts: list[tuple[int, Rows]] = field(default_factory=list)
    draws: set[int] = field(default_factory=set)
    drafts: dict[int, int] = field(default_factory=dict)
    states: dict[int, list[mx.array]] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """End of what was right, and of the answer."""
        tokens = self.sequence.token_ids
        wrong = [at for at, token in self.drafts.items() if tokens[at : at + 1] != [token]]
        return min(self.stop, len(tokens), *wrong)

    def rows(self, layer: int) -> tuple[Floats, Floats]:
        """A layer's keys and values up to ``length``; NaN where a window had passed by."""
        return self._side(layer, 0), self._side(layer, 1)

    def _side(self, layer: int, side: int) -> Floats:
        held = [(start, rows[layer][side]) for start, rows in self.parts if layer in rows]
        heads, _, dim = held[0][1].shape
        stop = max(start + part.shape[1] for start, part in held)
        run = np.full((heads, stop, dim), np.nan, np.float32)
        for start, part in held:
            run[:, start : start + part.shape[1]] = part
        return run[:, : self.length]

    def add(self, item: ScheduledSequence, parts: Seq[tuple[int, Rows]]) -> None:
        """Take in a step; it may run again what came after a wrong guess."""
        self.stop = item.stop
        self.parts += parts
        self.draws = {at for at in self.draws if at < item.start}
        self.drafts = {at: token for at, token in self.drafts.items() if at < item.start}
        self.states = {at: state for at, state in self.states.items() if at <= item.start}
        self.draws.update(range(item.stop - item.num_rows, item.stop))
        self.drafts.update(enumerate(item.drafts, item.stop - len(item.drafts)))


class RecordedRunner(PagedRunner):
    """Reads the store after every step, so it is slow.

    Attributes:
        stays: In the order in which they began.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.stays: list[Stay] = []
        self._open: dict[tuple[str, int], Stay] = {}

    def execute(self, schedule: Schedule, masks: MaskBuilder | None = None) -> StepInFlight:
        """See `PagedRunner.execute`."""
        for sequence in schedule.preempted:
            self._open.pop(sequence.key, None)
        step = super().execute(schedule, masks)
        for item in schedule.scheduled:
            if item.stop > item.start:
                self._take_down(item)
        return step

    def _resume_states(self, items: Seq[ScheduledSequence]) -> None:
        super()._resume_states(items)
        for item in items:
            key = item.sequence.key
            # What is replayed is stored anew, but tokens were drawn from what was there before.
            if key not in self._open or item.replays:
                self._open[key] = Stay(item.sequence, self._store.layout, item.start)
                self.stays.append(self._open[key])
                self._keep_state(self._open[key], item.start)

    def _take_down(self, item: ScheduledSequence) -> None:
        stay = self._open[item.sequence.key]
        tables = item.sequence.cache.tables
        starts = {item.start}
        if not stay.parts:  # also what it found; windows begin later
            starts = {table.first_block * table.block_size for table in tables}
        stay.add(item, [(at, self._read(tables, at, item.stop)) for at in sorted(starts)])
        self._keep_state(stay, item.stop)

    def _read(self, tables: Seq[BlockTable], start: int, stop: int) -> Rows:
        """Of the layers that hold all of these positions."""
        size = self._store.block_size
        lazy: dict[int, list[mx.array]] = {}
        for layer, group in self._store.group_of_layer.items():
            table = tables[group]
            if table.first_block * size > start:
                continue
            ids = [table.block_at(at) for at in range(start // size, -(-stop // size))]
            own = slice(start % size, start % size + stop - start)
            pair = self._store.gather(layer, mx.array(ids, mx.uint32))
            lazy[layer] = [side[0, :, own].astype(mx.float32) for side in pair]
        mx.eval(lazy)
        return {layer: (np.array(pair[0]), np.array(pair[1])) for layer, pair in lazy.items()}

    def _keep_state(self, stay: Stay, position: int) -> None:
        if self._states is not None:
            stay.states[position] = self._states.gather([stay.sequence.key])
            mx.eval(stay.states[position])
