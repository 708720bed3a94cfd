"""Guesses by a head that was trained with the model: multi-token prediction (MTP).

Such a head makes a further hidden state of the model's own one at a position and of the token
behind it; the model's last layer makes logits of that, for the token after next. Fed with what it
made, it goes on guessing. Its layers attend to the past, so each position of a text goes through
it: it follows the model step by step, and keeps keys and values in blocks with the ids of the
model's blocks. While nobody waits for guesses that is all it does; mlx leaves out the rest.

Nothing here can change an answer. Of blocks that come back from the disk, and of the last token of
one that another text filled, the head has not seen the past; that only spoils guesses.

Source: DeepSeek-AI 2024, "DeepSeek-V3 Technical Report", section 2.2.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..backend import mx
from ..cache.block_table import BlockTable
from ..cache.kv_store import KVStore
from .batch_builder import BatchBuilder, Run
from .head import Head
from .logits_processors import RowKey
from .model_runner import dispatch, row_state
from .paged_model import PagedModel
from .sampler import SampledRows, Sampler

if TYPE_CHECKING:  # engine stands above runner
    from ..engine.schedule import ScheduledSequence
    from ..engine.sequence import Sequence

logger = logging.getLogger(__name__)

# Longer runs are chunks.
_LONGEST_ROW_RUN = 16

IntArray: TypeAlias = np.ndarray[Any, np.dtype[Any]]
# A sequence, its place among the results, and how many tokens are wanted.
_Wanted: TypeAlias = "tuple[Sequence, int, int]"


class MtpRunner:
    """Runs an MTP head; the engine's `DraftSource`.

    Args:
        model: Makes hidden states of tokens and hidden states; of the form that is flat.
        head: The model's own.
        store: Of one layer group, with as many blocks as the model's full attention has.
        max_tokens: Longest sequence that the model was made for.
        row_bucket: How many rows a pass of rows alone is filled up to.

    Attributes:
        is_behind: Whether the last `propose` had nothing to go by.
    """

    name = "mtp"
    is_free = False

    def __init__(
        self,
        model: PagedModel,
        head: Head,
        sampler: Sampler,
        store: KVStore,
        *,
        max_tokens: int,
        row_bucket: Callable[[int], int] = lambda count: count,
    ) -> None:
        self._model = model
        self._head = head
        self._sampler = sampler
        self._store = store
        self._max_tokens = max_tokens
        trash = BlockTable(store.block_size)
        trash.append([store.trash_block(0)])
        self._builder = BatchBuilder(
            store.layout.groups,
            model.attention,
            trash=[trash],
            row_bucket=row_bucket,
            longest_row_run=_LONGEST_ROW_RUN,
        )
        self._is_wanted = False
        # What the newest step left behind each token that it drew, and for whom: the first row,
        # and the position of the token that it ran.
        self._hidden: mx.array | None = None
        self._rows: dict[RowKey, tuple[int, int]] = {}
        self.is_behind = False

    @property
    def num_traces(self) -> int:
        """Graphs compiled so far."""
        return self._model.num_traces

    def follow(
        self, items: Seq[ScheduledSequence], hidden: mx.array, drawn: mx.array | None
    ) -> list[mx.array]:
        """Go over the tokens of a step of the model.

        Args:
            items: In the order of the step's runs.
            hidden: ``[tokens, dims]``, the model's.
            drawn: ``[rows]``, what the step drew.

        Returns:
            What must be evaluated.
        """
        runs = [_run(item.sequence, item.start, item.stop) for item in items]
        order = self._builder.order(runs)
        ends = np.cumsum([len(run.token_ids) for run in runs])
        step = np.concatenate([np.arange(ends[i] - len(runs[i].token_ids), ends[i]) for i in order])
        # The token behind each: known, or drawn in this very step.
        num_drawn = sum(item.num_rows for item in items)
        known, source, drew = list[int](), list[int](), list[int]()
        rows: dict[RowKey, tuple[int, int]] = {}
        for item in items:
            stop = item.stop - item.num_rows
            if item.samples:
                rows[item.sequence.key] = (len(drew), stop)
            source += range(num_drawn + len(known), num_drawn + len(known) + stop - item.start)
            known += item.sequence.token_ids[item.start + 1 : stop + 1]
            source += range(len(drew), len(drew) + item.num_rows)
            drew += range(len(source) - item.num_rows, len(source))
        ids = mx.array(np.asarray(known, np.int32))
        ids = ids if drawn is None else mx.concatenate([drawn, ids])
        made, written = self._pass(
            [runs[i] for i in order], ids, np.asarray(source)[step], hidden, step
        )
        is_wanted, self._is_wanted = self._is_wanted, False
        self._hidden, self._rows = None, {}
        if is_wanted and drew:
            place = np.empty_like(step)
            place[step] = np.arange(len(step))
            self._hidden, self._rows = made[_index(place[drew])], rows
            written = [*written, self._hidden]
        return written

    def propose(self, wanted: Seq[tuple[Sequence, int]]) -> list[list[int]]:
        """See `DraftSource.propose`. Only sequences that the newest step ran get a guess."""
        self._is_wanted = True
        guesses: list[list[int]] = [[] for _ in wanted]
        drafts, rows = list[_Wanted](), list[int]()
        for index, (sequence, count) in enumerate(wanted):
            first, position = self._rows.get(sequence.key, (0, sequence.num_tokens))
            row = first + sequence.num_tokens - 2 - position
            if row >= first and sequence.num_tokens + count <= self._max_tokens:
                drafts.append((sequence, index, count))
                rows.append(row)
        self.is_behind = bool(wanted) and not drafts
        if drafts:
            assert self._hidden is not None
            self._guess(drafts, self._hidden[_index(rows)], guesses)
        return guesses

    def forget(self, key: RowKey) -> None:
        """See `DraftSource.forget`."""
        self._rows.pop(key, None)

    def scrub(self) -> None:
        """Clear all blocks of what are no numbers."""
        self._store.scrub()

    def reset(self) -> None:
        """Start again with an empty store."""
        self._hidden, self._rows, self._is_wanted = None, {}, False
        self._store.reset()

    def _guess(self, drafts: Seq[_Wanted], hidden: mx.array, guesses: list[list[int]]) -> None:
        """Draw from ``[drafts, dims]``, run the head over what was drawn, and so on."""
        sampled = self._draw(drafts, hidden, 0)
        passes = [(drafts, sampled)]
        for place in range(1, max(count for _, _, count in drafts)):
            rows = [row for row, (_, _, count) in enumerate(drafts) if count > place]
            drafts = [drafts[row] for row in rows]
            runs = []
            for sequence, _, _ in drafts:
                position = sequence.num_tokens - 2 + place
                runs.append(_run(sequence, position, position + 1))
            places = np.asarray(rows)
            hidden, written = self._pass(runs, sampled.token_ids, places, hidden, places)
            hidden = hidden[: len(runs)]
            sampled = self._draw(drafts, hidden, place, written)
            passes.append((drafts, sampled))
        token_ids = np.asarray(mx.concatenate([it.read_ids for _, it in passes])).tolist()
        order = [index for drafts, _ in passes for _, index, _ in drafts]
        for index, token_id in zip(order, token_ids, strict=True):
            guesses[index].append(token_id)
        if min(token_ids) < 0:
            # Blocks that do not hold numbers would spoil whoever has them next.
            logger.warning("the MTP head's logits were not numbers")
            self.scrub()
            for guess in guesses:
                guess.clear()

    def _draw(
        self, drafts: Seq[_Wanted], hidden: mx.array, place: int, written: Seq[mx.array] = ()
    ) -> SampledRows:
        """Draw the ``place``-th token of each guess, with the numbers that the model will use."""
        states = [row_state(sequence, sequence.num_tokens + place) for sequence, _, _ in drafts]
        sampled, _ = self._sampler.sample(self._head.logits(hidden), states)
        dispatch([sampled.token_ids, sampled.read_ids], [*written])
        return sampled

    def _pass(
        self,
        runs: Seq[Run],
        token_ids: mx.array,
        tokens: IntArray,
        hidden: mx.array,
        places: IntArray,
    ) -> tuple[mx.array, list[mx.array]]:
        """Run the head once; returns ``[tokens, dims]``, and what must be evaluated.

        Args:
            tokens: Where among ``token_ids`` each run's tokens are.
            places: Where in ``hidden`` what goes with them is.
        """
        (batch,) = self._builder.build(runs)
        filling = (0, batch.token_ids.size - len(tokens))
        batch = replace(
            batch,
            token_ids=token_ids[_index(np.pad(tokens, filling))],
            hidden=hidden[_index(np.pad(places, filling))],
        )
        return self._model.run(self._store, [batch])


def _run(sequence: Sequence, start: int, stop: int) -> Run:
    """Positions of a sequence; which tokens there are is found out on the device."""
    return Run(
        token_ids=[0] * (stop - start),
        start=start,
        tables=[sequence.cache.tables[0]],
        num_logits=stop - start,
    )


def _index(places: Seq[int] | IntArray) -> mx.array:
    return mx.array(np.asarray(places, np.int32))
