"""What may be drawn next in one answer: the interface that the engine knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import numpy as np

from ..errors import PippinError

# A row of uint32: bit ``i % 32`` of word ``i // 32`` says whether token ``i`` may be drawn.
MaskRow: TypeAlias = np.ndarray[Any, np.dtype[np.uint32]]


class ConstraintError(PippinError):
    """An answer cannot go on within its constraint; the message says why."""


class Constraint(Protocol):
    """Follows the tokens of one answer. Lives on the engine thread."""

    @property
    def num_accepted(self) -> int:
        """Tokens of the answer that it has been told."""

    @property
    def is_over(self) -> bool:
        """Whether from here on everything may be drawn."""

    @property
    def rules_end(self) -> bool:
        """Whether the answer ends where the constraint says, whatever its params would like."""

    def fill(self, row: MaskRow) -> None:
        """Say what may be drawn next; ``row`` comes with all bits set.

        Raises:
            ConstraintError: That takes more effort than one token may.
        """

    def accept(self, token_id: int) -> None:
        """Take the answer's next token.

        Raises:
            ConstraintError: It must not stand there.
        """

    def copy(self) -> Constraint:
        """One that goes its own way from here."""


ConstraintFactory: TypeAlias = Callable[[], Constraint]


def set_only(row: MaskRow, token_ids: tuple[int, ...]) -> None:
    """Let only these be drawn."""
    row[:] = 0
    allow(row, token_ids)


def allow(row: MaskRow, token_ids: tuple[int, ...]) -> None:
    """Let these be drawn, too."""
    for token_id in token_ids:
        row[token_id // 32] |= np.uint32(1 << token_id % 32)


def forbid(row: MaskRow, token_ids: tuple[int, ...]) -> None:
    """Let none of these be drawn."""
    for token_id in token_ids:
        row[token_id // 32] &= np.uint32(~(1 << token_id % 32) & 0xFFFFFFFF)
