"""Guesses by a small model, for the large one to verify.

The draft model keeps its keys and values in blocks of its own with the ids of the target's blocks,
so that the target's block tables serve for both. It draws with the numbers that the target will
draw with at the same position: where the two agree on the odds they agree on the token.

Nothing here can change an answer. What the store holds may be stale; that only spoils guesses.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..backend import mx
from ..cache.block_hash import BlockHash
from ..cache.block_table import BlockTable
from ..cache.kv_store import KVStore
from ..speculation.sequence_drafts import count_accepted
from .batch_builder import BatchBuilder, Run
from .forward_batch import PassForm
from .logits_processors import RowKey
from .model_runner import dispatch, row_state
from .paged_model import PagedModel
from .sampler import SampledRows, Sampler

if TYPE_CHECKING:  # engine stands above runner
    from ..engine.sequence import Sequence

logger = logging.getLogger(__name__)

# Known tokens that one step reads in chunks: those who are drafted for wait meanwhile.
CATCH_UP_TOKENS = 512
# Longer runs are chunks.
_LONGEST_ROW_RUN = 16


@dataclass(slots=True)
class _Progress:
    """What the draft model has read of one sequence.

    Attributes:
        num_computed: Known tokens whose keys and values are in the store.
        num_recorded: Blocks from the start whose content is on record.
        guesses: Tokens behind these that were run as well, on trust.
    """

    num_computed: int
    num_recorded: int
    guesses: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Draft:
    """A guess in the making: whose, its place among the results, its length, 0 for none yet."""

    sequence: Sequence
    index: int
    length: int


class DraftRunner:
    """Runs a draft model; the engine's `DraftSource`.

    Args:
        store: As many blocks in every layer group as the target's full attention has.
        vocab_size: Length of the target's rows of logits.
        draft_vocab_size: Length of the draft model's; padding differs between models of a family.
        max_tokens: Longest sequence that the draft model was made for.
        row_bucket: How many rows a pass of rows alone is filled up to.
    """

    name = "draft"
    is_free = False

    def __init__(
        self,
        model: PagedModel,
        sampler: Sampler,
        store: KVStore,
        *,
        vocab_size: int,
        draft_vocab_size: int,
        max_tokens: int,
        row_bucket: Callable[[int], int] = lambda count: count,
    ) -> None:
        self._model = model
        self._sampler = sampler
        self._store = store
        self._vocab_size = vocab_size
        self._last_token_id = draft_vocab_size - 1
        self._max_tokens = max_tokens
        trash = BlockTable(store.block_size)
        trash.append([store.trash_block(0)])
        self._num_groups = len(store.layout.groups)
        self._builder = BatchBuilder(
            store.layout.groups,
            model.attention,
            trash=[trash] * self._num_groups,
            row_bucket=row_bucket,
            longest_row_run=1 if model.form is PassForm.ALONE else _LONGEST_ROW_RUN,
            form=model.form,
        )
        self._progress: dict[RowKey, _Progress] = {}
        # What this model has computed, by block: the target fills blocks, and finds them again,
        # that this model has not seen.
        self._content: dict[int, BlockHash] = {}
        self._failed: set[RowKey] = set()
        self.is_behind = False

    def propose(self, wanted: Seq[tuple[Sequence, int]]) -> list[list[int]]:
        """See `DraftSource.propose`. Sequences with much to read first get no guess."""
        runs, drafts = list[Run](), list[_Draft]()
        budget = CATCH_UP_TOKENS
        for index, (sequence, count) in enumerate(wanted):
            stop = sequence.num_tokens
            if sequence.key in self._failed or stop + count > self._max_tokens:
                continue
            progress = self._progress_of(sequence)
            start = progress.num_computed
            if stop - start > _LONGEST_ROW_RUN:
                stop = min(stop, start + budget)
                budget -= stop - start
            if start == stop:
                continue
            length = count if stop == sequence.num_tokens else 0
            drafts.append(_Draft(sequence, index, length))
            runs.append(self._known_run(sequence, start, stop, num_drawn=min(1, length)))
            progress.num_computed = stop
            table = sequence.cache.tables[0]
            last = stop + max(1, length) - 2
            for block in range(progress.num_recorded, last // table.block_size + 1):
                self._content.pop(table.block_at(block), None)  # it is written now
        self.is_behind = budget < CATCH_UP_TOKENS
        guesses: list[list[int]] = [[] for _ in wanted]
        if runs:
            order = self._builder.order(runs)
            self._draft([runs[i] for i in order], [drafts[i] for i in order], guesses)
        for draft in drafts:
            self._record(draft.sequence, guesses[draft.index])
        return guesses

    def forget(self, key: RowKey) -> None:
        """Drop what is kept for a sequence that has ended or lost its blocks."""
        self._progress.pop(key, None)
        self._failed.discard(key)

    def reset(self) -> None:
        """Start again with an empty store."""
        self._progress.clear()
        self._content.clear()
        self._store.reset()

    def _draft(self, runs: Seq[Run], drafts: Seq[_Draft], guesses: list[list[int]]) -> None:
        """Run the model once for each token of the longest guess; read all at the end."""
        sampled = self._pass(runs, drafts, 0, None)
        if sampled is None:
            return
        drafts = [draft for draft in drafts if draft.length]
        passes = [(drafts, sampled)]
        for place in range(1, max(draft.length for draft in drafts)):
            rows = [row for row, draft in enumerate(drafts) if draft.length > place]
            runs = [self._guess_run(drafts[row].sequence, place, row) for row in rows]
            drafts = [drafts[row] for row in rows]
            sampled = self._pass(runs, drafts, place, sampled.token_ids)
            assert sampled is not None
            passes.append((drafts, sampled))
        token_ids = np.asarray(mx.concatenate([it.read_ids for _, it in passes])).tolist()
        order = [draft for drafts, _ in passes for draft in drafts]
        for draft, token_id in zip(order, token_ids, strict=True):
            guesses[draft.index].append(token_id)
        failed = {
            it.sequence.key for it, token_id in zip(order, token_ids, strict=True) if token_id < 0
        }
        if failed:
            # Blocks that do not hold numbers would spoil whoever has them next.
            self._failed |= failed
            logger.warning("the draft model's logits were not numbers")
            self.reset()
            for guess in guesses:
                guess.clear()

    def _pass(
        self, runs: Seq[Run], drafts: Seq[_Draft], place: int, drawn: mx.array | None
    ) -> SampledRows | None:
        """Run the model once and draw the ``place``-th token of each guess.

        Args:
            drawn: Tokens of the pass before, still on the device.
        """
        logits, written = self._model.run(self._store, self._builder.build(runs, drawn))
        last, stop = list[int](), 0
        for run, draft in zip(runs, drafts, strict=True):
            stop += run.num_logits
            if draft.length:
                last.append(stop - 1)
        if not last:
            dispatch(written)
            return None
        logits = logits[mx.array(last)][:, : self._vocab_size]
        missing = self._vocab_size - logits.shape[-1]
        if missing:
            logits = mx.pad(logits, [(0, 0), (0, missing)], constant_values=-mx.inf)
        rows = [
            row_state(draft.sequence, draft.sequence.num_tokens + place)
            for draft in drafts
            if draft.length
        ]
        sampled, _ = self._sampler.sample(logits, rows)
        dispatch([sampled.token_ids, sampled.read_ids], written)
        return sampled

    def _known_run(self, sequence: Sequence, start: int, stop: int, *, num_drawn: int) -> Run:
        is_chunk = stop - start > _LONGEST_ROW_RUN
        return Run(
            token_ids=[min(token, self._last_token_id) for token in sequence.token_ids[start:stop]],
            start=start,
            tables=[sequence.cache.tables[0]] * self._num_groups,
            # Of rows all of them: a batch of which some are left out is not compiled.
            num_logits=num_drawn if is_chunk else stop - start,
        )

    def _guess_run(self, sequence: Sequence, place: int, source: int) -> Run:
        return Run(
            token_ids=[0],
            start=sequence.num_tokens + place - 1,
            tables=[sequence.cache.tables[0]] * self._num_groups,
            num_logits=1,
            source=source,
        )

    def _progress_of(self, sequence: Sequence) -> _Progress:
        """What need not be run again; the newest token always is."""
        table, known = sequence.cache.tables[0], sequence.token_ids
        progress = self._progress.get(sequence.key)
        if progress is None:
            hashes, count = sequence.cache.block_hashes, 0
            while (
                count < min(len(hashes), table.num_blocks)
                and self._content.get(table.block_at(count)) == hashes[count]
            ):
                count += 1
            progress = _Progress(count * table.block_size, count)
            self._progress[sequence.key] = progress
        progress.num_computed += count_accepted(progress.guesses, known[progress.num_computed :])
        progress.num_computed = min(progress.num_computed, len(known) - 1)
        progress.guesses = []
        return progress

    def _record(self, sequence: Sequence, guess: list[int]) -> None:
        """Keep what is computed now."""
        progress = self._progress.get(sequence.key)
        if progress is None:
            return  # all was lost to a fault
        table, hashes = sequence.cache.tables[0], sequence.cache.block_hashes
        full = min(progress.num_computed // table.block_size, len(hashes))
        for index in range(progress.num_recorded, full):
            self._content[table.block_at(index)] = hashes[index]
        progress.num_recorded = max(progress.num_recorded, full)
        progress.guesses = guess[:-1]  # the last one is not run
