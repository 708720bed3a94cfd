"""An answer inside a grammar."""

from __future__ import annotations

import numpy as np
from llguidance import LLMatcher

from .constraint import ConstraintError, MaskRow, set_only
from .vocabulary import Vocabulary


class GrammarMatcher:
    """Follows what a grammar has to say about; see `Constraint` for `fill` and `accept`.

    A grammar that is through lets the answer end, and one that can go no further lets it do nothing
    else.
    """

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    def fill(self, row: MaskRow) -> None:
        """See `Constraint.fill`."""
        if self._matcher.is_stopped():
            set_only(row, self._vocabulary.end_ids)
        else:
            bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint32)
            row[: len(bits)] = bits[: len(row)]
            row[len(bits) :] = 0  # the model's logits may be wider than its vocabulary
        self._check()

    def accept(self, token_id: int) -> None:
        """See `Constraint.accept`."""
        if not self._matcher.consume_token(token_id):
            self._check()
            raise ConstraintError("a token does not fit the grammar")

    @property
    def is_exhausted(self) -> bool:
        """Whether it has spent its limits before a token has come."""
        twin = self._matcher.deep_copy()
        twin.compute_bitmask()
        return bool(twin.is_error())

    def allows(self, token_id: int) -> bool:
        """Whether a token may come next."""
        return self._matcher.validate_tokens([token_id]) == 1

    def copy(self) -> GrammarMatcher:
        """One that goes its own way from here."""
        return GrammarMatcher(self._matcher.deep_copy(), self._vocabulary)

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.get_error().strip().splitlines()[0]
            raise ConstraintError(f"the grammar cannot be followed any further: {reason}")
