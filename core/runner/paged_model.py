"""A model on the paged KV store: one call runs the passes of a step.

Batches of rows alone come in few shapes and are compiled, one graph a shape. Building the graph
of a step then costs a third of the time, and mlx fuses small operations.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Any, TypeAlias

from ..backend import mx
from ..cache.kv_store import KVStore
from .attention.row_attention import RowAttention
from .forward_batch import ForwardBatch, PassForm
from .head import Head
from .layer_cache import ForwardPass
from .model_adapter import Model
from .run_cache import PassCaches
from .state_store import StateStore

logger = logging.getLogger(__name__)

# Logits, new states, what must be evaluated for the store to be written, and hidden states if kept.
_Outcome: TypeAlias = tuple[mx.array, list[mx.array], list[mx.array], mx.array | None]


class PagedModel:
    """Runs batches.

    Args:
        head: Works out chosen rows' logits only; without it, all logits of a batch are.
        is_compiled: Whether batches of rows alone are compiled.
        form: What the model's code can be handed.

    Attributes:
        takes_ragged: Whether passes may be ragged.
        keeps_hidden: Whether `run` hands out hidden states.
        num_traces: Graphs compiled so far; steady once all shapes have been met.
    """

    def __init__(
        self,
        model: Model,
        attention: RowAttention[Any],
        *,
        head: Head | None = None,
        is_compiled: bool = False,
        form: PassForm = PassForm.FLAT,
    ) -> None:
        self._model = model
        self.attention = attention
        self.head = head
        self.is_compiled = is_compiled
        self.form = form
        self.takes_ragged = False
        self.keeps_hidden = False
        self._compiled = mx.compile(self._trace)
        self._store: KVStore | None = None
        self._template: ForwardBatch | None = None
        self.num_traces = 0

    def keep_hidden(self) -> None:
        """Have `run` hand out hidden states from now on; there must be a head."""
        self.keeps_hidden = True
        self._compiled = mx.compile(self._trace)  # what was compiled before does not

    def run(
        self,
        store: KVStore,
        passes: Seq[ForwardBatch],
        states: StateStore | None = None,
        *,
        hidden: list[mx.array] | None = None,
    ) -> tuple[mx.array, list[mx.array]]:
        """Run passes, one after another.

        Args:
            states: Of recurrent layers, if the model has any.
            hidden: Takes, if they are kept, what the head is given: ``[tokens, dims]`` of each
                pass, filling left out.

        Returns:
            Logits of the tokens that want them, ``[n, vocab]``, and what must be evaluated for the
            store to hold the passes' tokens.
        """
        parts, written = list[mx.array](), list[mx.array]()
        for batch in passes:
            if states is not None:
                before = states.gather(batch.state_keys, batch.num_padding)
                batch = replace(batch, states=tuple(before))
            logits, new_states, done, seen = self._run_pass(store, batch)
            if hidden is not None:
                hidden.append(_real_tokens(seen, batch))
            # Arrays that a pass replaces depend on those that it found.
            written = [*written, *done] if store.is_written_in_place else done
            if states is not None:
                kept = before if batch.is_speculative else None
                states.put(batch.state_keys, new_states, before=kept)
            if batch.has_logits:
                # Behind the last pass's logits, those of padding are in nobody's way.
                cut = batch.num_padding if batch.logit_index is None and len(passes) > 1 else 0
                parts.append(logits[:-cut] if cut else logits)
        return (parts[0] if len(parts) == 1 else _join(parts)), written

    def _run_pass(self, store: KVStore, batch: ForwardBatch) -> _Outcome:
        is_rows = not any(group.chunks for group in batch.groups) and batch.run_start is None
        is_whole = batch.logit_index is None or batch.run_lengths is not None
        if not (self.is_compiled and is_rows and is_whole):
            return self._run(store, batch)
        # Which logits are wanted differs from step to step; in a ragged pass it is nearly all.
        self._store, self._template = store, replace(batch, logit_index=None)
        count = len(batch.states)
        try:
            logits, *arrays = self._compiled(batch.arrays, store.arrays())
        # Model code may look at numbers, which a trace does not have; it runs all the same.
        except Exception as error:
            if self.num_traces > 1:  # it worked before, so this is no matter of compiling
                raise
            logger.warning("steps are not compiled: %s", error)
            self.is_compiled = False
            return self._run(store, batch)
        seen = arrays.pop(0) if self.keeps_hidden else None
        new_states, arrays = arrays[:count], arrays[count:]
        logits = logits if batch.logit_index is None else logits[batch.logit_index]
        if store.is_written_in_place:
            return logits, new_states, arrays, seen
        store.put(arrays)
        return logits, new_states, store.last_layer(), seen

    def _trace(self, batch_arrays: Seq[mx.array], store_arrays: Seq[mx.array]) -> list[mx.array]:
        """The same as a function of arrays."""
        assert self._store is not None
        assert self._template is not None
        self.num_traces += 1
        batch = self._template.with_arrays(batch_arrays)
        logger.debug("compile a step of rows=%d in runs of %d", batch.num_rows, batch.run_length)
        store = self._store.over(store_arrays)
        logits, states, written, seen = self._run(store, batch)
        arrays = [logits] if seen is None else [logits, seen]
        return [*arrays, *states, *(written if store.is_written_in_place else store.arrays())]

    def _run(self, store: KVStore, batch: ForwardBatch) -> _Outcome:
        if not self.keeps_hidden:
            return *self._run_model(store, batch), None
        assert self.head is not None
        with self.head.watch() as seen:
            outcome = self._run_model(store, batch)
        (hidden,) = seen
        return *outcome, hidden.reshape(-1, hidden.shape[-1])

    def _run_model(
        self, store: KVStore, batch: ForwardBatch
    ) -> tuple[mx.array, list[mx.array], list[mx.array]]:
        forward = ForwardPass(store, self.attention, batch)
        made = PassCaches(forward, self.form)
        index = batch.logit_index
        num_runs = -1 if batch.run_start is None else 1
        tokens = batch.token_ids.reshape(num_runs, batch.run_length if num_runs < 0 else -1)
        inputs = {} if batch.hidden is None else {"hidden": batch.hidden.reshape(*tokens.shape, -1)}
        logits: mx.array
        if index is not None and index.size and self.head is not None:
            with self.head.select(index):
                logits = self._model(tokens, cache=made.caches, **inputs)
            logits = logits.reshape(-1, logits.shape[-1])
        else:
            logits = self._model(tokens, cache=made.caches, **inputs)
            logits = logits.reshape(-1, logits.shape[-1])
            logits = logits if index is None else logits[index]
        # Evaluating the last layer's keys and values brings all earlier layers' along. Naming
        # those too would make mlx hold on to them until the pass is done, and the next pass could
        # not write to them in place.
        written = forward.written if store.is_written_in_place else store.last_layer()
        return logits, made.states(), written


def _join(parts: Seq[mx.array]) -> mx.array:
    return mx.concatenate(list(parts)) if parts else mx.zeros((0, 1))


def _real_tokens(hidden: mx.array | None, batch: ForwardBatch) -> mx.array:
    assert hidden is not None, "hidden states are not kept"
    if batch.token_index is not None:
        return hidden[batch.token_index]
    return hidden[: -batch.num_padding] if batch.num_padding else hidden
