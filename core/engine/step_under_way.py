"""A step that the device works on, or has worked on, and that nobody has been told of."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ..runner.step_output import StepInFlight, StepOutput
from .schedule import Schedule


@dataclass(slots=True)
class StepUnderWay:
    """A step that is not told yet.

    Attributes:
        gap_s: See `StepStats`.
        is_speculative: Whether it was started after the one before it had been told.
        is_new: Whether it was compiled first.
        output: What it drew, once it is read back.
        read_at: Monotonic seconds, when that was.
    """

    schedule: Schedule
    in_flight: StepInFlight
    started_at: float
    gap_s: float
    is_speculative: bool
    is_new: bool
    output: StepOutput | None = None
    read_at: float = 0.0

    def read(self) -> StepOutput:
        """Wait for the device and read the step back, once."""
        if self.output is None:
            self.output = self.in_flight.read()
            self.read_at = time.monotonic()
        return self.output
