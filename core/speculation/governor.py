"""Decides from measured times alone whether speculation pays now.

What a speculative step gives (tokens) and what it costs (seconds, against a plain step with as many
sequences) are estimated apart. The tokens depend on the text, and can be known without speculating
where drafts are free (`SequenceDrafts`); the cost depends on the machine and the number of
sequences. Their quotient is the gain; speculation is on while it is above 1.

Estimates can be wrong, so a budget of lost time stands above them: plain steps pay 2 % of their
duration into it, speculative ones what they save against plain ones, or lose. It holds 16 plain
steps at most, starts full, and speculation ends when it is used up. So by these measurements any
stretch of time loses at most 2 % of it, 16 plain steps, and what the last speculative step takes.
Waits between attempts that double with each failure make it far less.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median

_COST_LIMIT = 0.02  # of the time without speculation, for attempts
_BUDGET = 16.0  # at most, in plain steps
_STAKE = 4.0  # budget that an attempt needs and may lose, in plain steps
_SLOWEST = 16.0  # plain steps; what takes longer was held up by something else
_ENTER, _LEAVE = 1.1, 1.03  # gain; above 1, because plain steps are measured rarely meanwhile
_HORIZON = 32.0  # steps that estimates look back on
_ENOUGH = 4  # steps that make an estimate
_PLAIN_ENOUGH = 8  # of plain steps, whose duration all else is measured by
_ATTEMPT = 8  # steps before the estimated gain can end an attempt; time lost always can
_FIRST_WAIT, _LONGEST_WAIT = 32, 8192  # plain steps between attempts
_REMEASURE = 512  # speculative steps after which the plain step's time is measured again


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeStep:
    """What one step took and gave.

    Steps that also ran a prefill chunk tell nothing and are left out.

    Attributes:
        seconds: From the moment the step before was read back until this one was. The whole of it:
            a plain step is prepared while the one before runs, a speculative one is not.
        num_sequences: Sequences that drew tokens, with drafts or without.
        num_tokens: Tokens drawn and kept.
        is_speculative: Whether the step waited for the newest tokens in order to guess further,
            though perhaps no sequence had a draft.
    """

    seconds: float
    num_sequences: int
    num_tokens: int
    is_speculative: bool


class Governor:
    """Watches every decode step and says how the next one should run.

    It has no clock: time is what steps report. Costs are kept apart by the number of sequences,
    attempts by its power of two.
    """

    def __init__(self) -> None:
        self._plain: dict[int, _PlainTime] = {}
        self._trials: dict[int, _Trial] = {}
        # Tokens that a speculative step gives to a sequence.
        self._tokens = _DecayedMean()
        self._was_speculative = False

    def wants_speculation(self, num_sequences: int) -> bool:
        """Whether the next step should be speculative."""
        trial = self._trials.get(_bucket(num_sequences))
        if trial is None or not trial.is_on:
            return False
        plain = self._plain.get(num_sequences)
        return plain is not None and plain.seconds is not None

    def gain(self, num_sequences: int) -> float | None:
        """Estimated speed with speculation, by the speed without; ``None`` while unknown."""
        trial = self._trials.get(_bucket(num_sequences))
        return None if trial is None else self._gain(trial)

    def observe(self, step: DecodeStep) -> None:
        """Learn from a step."""
        self._tokens.fade()
        plain = self._plain.setdefault(step.num_sequences, _PlainTime())
        if step.is_speculative:
            self._observe_speculative(step, plain)
        else:
            self._observe_plain(step, plain)
        self._was_speculative = step.is_speculative

    def observe_unrun(self, *, num_sequences: int, num_steps: int, num_tokens: int) -> None:
        """Learn from drafts that were judged without being run.

        Args:
            num_sequences: Sequences that run now.
            num_steps: Speculative steps of single sequences that the drafts stand for. A sequence
                that must not speculate counts as well: one step, one token.
            num_tokens: What these steps would have given.
        """
        self._tokens.add(num_tokens / num_sequences, weight=num_steps / num_sequences)

    def _observe_plain(self, step: DecodeStep, plain: _PlainTime) -> None:
        usual = plain.seconds
        trial = self._trials.get(_bucket(step.num_sequences))
        if self._was_speculative:
            # Nothing was prepared ahead for this one, and that is speculation's doing.
            if usual is not None and trial is not None:
                trial.pay(usual - min(step.seconds, _SLOWEST * usual), usual)
            return
        plain.add(step.seconds)
        if usual is None:
            return
        if trial is None:
            trial = _Trial(budget=_BUDGET * usual)
            self._trials[_bucket(step.num_sequences)] = trial
        trial.pay(_COST_LIMIT * step.seconds, usual)
        trial.num_waited += 1
        if not trial.is_on and trial.budget >= _STAKE * usual:
            self._consider(trial)

    def _observe_speculative(self, step: DecodeStep, plain: _PlainTime) -> None:
        usual = plain.seconds
        trial = self._trials.get(_bucket(step.num_sequences))
        if usual is None or trial is None:
            return
        plain.use()
        num_tokens = step.num_tokens / step.num_sequences
        seconds = min(step.seconds, _SLOWEST * usual)
        self._tokens.add(num_tokens)
        trial.cost.fade()
        trial.cost.add(seconds / usual)
        saved = num_tokens * usual - seconds
        trial.num_steps += 1
        trial.saved += saved
        trial.pay(saved, usual)
        gain = self._gain(trial)
        loses = trial.num_steps >= _ATTEMPT and gain is not None and gain < _LEAVE
        is_too_dear = trial.saved < -_STAKE * usual or trial.budget <= 0
        if trial.is_on and (loses or is_too_dear):
            trial.end()

    def _consider(self, trial: _Trial) -> None:
        """Start speculating if that promises a gain, or if it is time to find out."""
        num_tokens = self._tokens.value
        if num_tokens is not None and num_tokens <= _ENTER:
            return  # a step never costs less than a plain one
        gain = self._gain(trial)
        if gain is not None and gain > _ENTER:
            trial.start()
        elif trial.num_waited >= trial.wait:
            trial.cost.doubt()
            trial.start()

    def _gain(self, trial: _Trial) -> float | None:
        num_tokens, cost = self._tokens.value, trial.cost.value
        return None if num_tokens is None or cost is None else num_tokens / cost


def _bucket(num_sequences: int) -> int:
    return (num_sequences - 1).bit_length()


class _DecayedMean:
    """A mean in which older evidence counts less, and that is forgotten if none comes."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._weight = 0.0

    @property
    def value(self) -> float | None:
        # Half a step less than enough: some of it has faded already.
        return self._sum / self._weight if self._weight > _ENOUGH - 0.5 else None

    def fade(self) -> None:
        keep = math.exp(-1 / _HORIZON)
        self._sum *= keep
        self._weight *= keep

    def add(self, total: float, *, weight: float = 1.0) -> None:
        self._sum += total
        self._weight += weight

    def doubt(self) -> None:
        """Let what comes next soon outweigh what is old."""
        keep = min(1.0, _ENOUGH / self._weight) if self._weight else 1.0
        self._sum *= keep
        self._weight *= keep


class _PlainTime:
    """How long a plain step with a certain number of sequences takes."""

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=2 * _PLAIN_ENOUGH)
        self._num_uses = 0

    @property
    def seconds(self) -> float | None:
        # The median: one step that was held up must not make speculation look good for long.
        return median(self._samples) if len(self._samples) >= _PLAIN_ENOUGH else None

    def add(self, seconds: float) -> None:
        self._samples.append(seconds)
        self._num_uses = 0

    def use(self) -> None:
        """Count a speculative step that was compared with it; forget it when it is old."""
        self._num_uses += 1
        if self._num_uses >= _REMEASURE:
            self._samples.clear()


@dataclass(slots=True)
class _Trial:
    """Speculation with about so many sequences.

    Attributes:
        budget: Time that may still be lost, in seconds.
        cost: Duration of a speculative step, in plain steps.
        num_steps: Speculative steps since it was last switched on.
        saved: Seconds saved since then.
        num_waited: Plain steps since it was last switched off.
        wait: How many there must be before an attempt that nothing speaks for.
    """

    budget: float
    is_on: bool = False
    cost: _DecayedMean = field(default_factory=_DecayedMean)
    num_steps: int = 0
    saved: float = 0.0
    num_waited: int = 0
    wait: int = _FIRST_WAIT

    def pay(self, seconds: float, plain_seconds: float) -> None:
        self.budget = min(self.budget + seconds, _BUDGET * plain_seconds)

    def start(self) -> None:
        self.is_on = True
        self.num_steps, self.saved = 0, 0.0

    def end(self) -> None:
        self.is_on = False
        self.num_waited = 0
        self.wait = _FIRST_WAIT if self.saved > 0 else min(2 * self.wait, _LONGEST_WAIT)
