"""Reasoning first, then what the grammar lets through: the whole of one answer."""

from __future__ import annotations

from .constraint import ConstraintError, MaskRow, allow, forbid, set_only
from .matcher import GrammarMatcher
from .thinking import Thinking
from .vocabulary import Vocabulary


class ReplyConstraint:
    """The `Constraint` of an answer.

    Args:
        thinking: ``None`` if the model does not reason, or no longer does.
        matcher: ``None`` if what follows the reasoning is free.
    """

    def __init__(
        self, vocabulary: Vocabulary, thinking: Thinking | None, matcher: GrammarMatcher | None
    ) -> None:
        self._vocabulary = vocabulary
        self._thinking = thinking
        self._matcher = matcher
        # Of the grammar's beginning, while what stands there may yet become the begin marker.
        self._unbegun: GrammarMatcher | None = None
        self.num_accepted = 0

    @property
    def is_over(self) -> bool:
        """See `Constraint`."""
        return self._matcher is None and (self._thinking is None or self._thinking.is_over)

    @property
    def rules_end(self) -> bool:
        """See `Constraint`."""
        return self._matcher is not None

    def fill(self, row: MaskRow) -> None:
        """See `Constraint.fill`."""
        thinking, matcher = self._thinking, self._matcher
        if thinking is not None and not thinking.is_over:
            if (token_id := thinking.forced) is not None:
                set_only(row, (token_id,))
            elif matcher is not None and not thinking.is_open:
                self._fill_opening(row, thinking, matcher)
            elif matcher is not None:
                # What was asked for is still to come.
                forbid(row, self._vocabulary.end_ids)
        elif matcher is not None:
            matcher.fill(row)

    def accept(self, token_id: int) -> None:
        """See `Constraint.accept`."""
        self.num_accepted += 1
        thinking, matcher = self._thinking, self._matcher
        if thinking is not None and not thinking.is_over:
            if matcher is None or thinking.is_open or token_id == thinking.opening:
                self._think(token_id, thinking)
                return
            thinking.skip()
            self._unbegun = None
        if matcher is not None:
            matcher.accept(token_id)

    def copy(self) -> ReplyConstraint:
        """See `Constraint.copy`."""
        thinking, matcher = self._thinking, self._matcher
        twin = ReplyConstraint(
            self._vocabulary, thinking and thinking.copy(), matcher and matcher.copy()
        )
        twin._unbegun = self._unbegun and self._unbegun.copy()
        twin.num_accepted = self.num_accepted
        return twin

    def _begin_both(self, token_id: int, thinking: Thinking, matcher: GrammarMatcher) -> None:
        """Follow the grammar, too, as long as it knows the tokens of the begin marker."""
        is_first = not thinking.is_opening
        if not matcher.allows(token_id):
            self._matcher, self._unbegun = self._unbegun or matcher, None
        elif is_first or self._unbegun is not None:
            self._unbegun = self._unbegun or matcher.copy()
            matcher.accept(token_id)

    def _fill_opening(self, row: MaskRow, thinking: Thinking, matcher: GrammarMatcher) -> None:
        opening = thinking.opening
        assert opening is not None
        if thinking.is_opening and self._unbegun is None:
            set_only(row, (opening,))  # no part of what the grammar knows
        else:
            matcher.fill(row)
            allow(row, (opening,))

    def _think(self, token_id: int, thinking: Thinking) -> None:
        if self._matcher is not None and not thinking.is_open:
            self._begin_both(token_id, thinking, self._matcher)
        thinking.accept(self._vocabulary.token_bytes(token_id))
        if thinking.is_open and self._unbegun is not None:
            self._matcher, self._unbegun = self._unbegun, None
        # What models put between the marker and what they say is none of the grammar's business.
        said = thinking.rest.strip()
        if not said or self._matcher is None:
            return
        try:
            for rest_id in self._vocabulary.encode(said.decode("utf-8")):
                self._matcher.accept(rest_id)
        except UnicodeDecodeError as error:
            raise ConstraintError("a character is cut in two where the reasoning ends") from error
