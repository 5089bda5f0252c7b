"""A draft length on trial, in turns with the one in force."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

TRIAL_STEPS = 8
"""Timed steps of a length, and of the one in force beside it, before its time counts."""
MOST_TRIAL_STEPS = 64
"""The same where steps scatter, as with few sequences and experts, which depend on the tokens."""
CERTAIN_ENOUGH = 0.01
"""Standard error of a ratio, as a fraction, that is small enough for any ratio."""
ERRORS_APART = 3.0
"""Standard errors between a ratio and the break-even ratio from which a larger error does not
matter."""
CLEAR_STEPS = 3
"""Timed steps of each after which a trial may end if the two are far apart."""
CLEAR = 1.25
"""Far apart: even the best step of the slower one would have to be faster by this factor."""
DEVIATIONS_TO_ERROR = 1.858
"""Standard error of a median times the root of n, over the median absolute deviation, of normal
errors: 1.2533 x 1.4826."""
FEW_PAIRS = 6
"""Pairs of turns below which the standard deviation is used: one bad turn, which is in two pairs,
may shift the median without a trace in the median deviation."""
MEDIAN_TO_MEAN = 1.2533
"""Standard error of a median over that of a mean, of normal errors."""
PATIENCE = 64
"""Decode steps after which a trial ends if one of the lengths could not be timed; otherwise so many
times the steps that were timed of each."""
MOST_PASSED, PASSED_FOR_EACH = 8, 2
"""Steps with prompt tokens after which a trial ends, and how many more for each timed step: they
cost as much as timed ones."""


class Basis(StrEnum):
    """What the forecast of a length's time rests on."""

    FAR = "far"
    """The model alone."""
    BESIDE = "beside"
    """The next shorter or longer length, measured here, and the model for the difference."""


@dataclass(frozen=True, slots=True)
class TrialResult:
    """The result of a trial."""

    batch_size: int
    context: int
    draft_length: int
    reference: int
    """The draft length in force."""
    ratio: float | None
    """Time of a step of the length over that of the reference; None: too few could be timed."""
    worth: float | None
    """The break-even ratio; None: acceptance was not known."""
    forecast: float | None
    """The expected ratio; None: not known."""
    basis: Basis
    steps: int
    """Timed steps of the length."""


@dataclass(slots=True)
class Trial:
    """Steps of two lengths side by side in time.

    A host and its load slow all steps down for a while. So only neighbouring turns are compared,
    and the median of these ratios is used: the start or end of a slow spell spoils one or two of
    them, but would shift the medians of all steps.
    """

    length: int
    reference: int
    tokens: float
    """Tokens of a step of the length over those of the other; NaN: not known."""
    forecast: float | None = None
    """Its time over the other's, as expected; None: not known."""
    basis: Basis = Basis.FAR
    before: Sequence[float] = ()
    """Seconds of the last steps of the other before this began."""
    loss: float = 0.0
    """Expected loss of each of its steps, in steps of the other."""
    its_turn: bool = True
    steps: int = 0
    """Decode steps since the beginning, timed or not."""
    ran: int = 0
    """Steps of the length since the beginning, of any kind."""
    _passed: int = 0
    """Steps in a row with prompt tokens."""
    _passed_in_all: int = 0
    _turns: list[tuple[int, list[float]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.before:
            self._turns.append((self.reference, list(self.before)))

    def add(self, length: int, seconds: float) -> None:
        """Take in a timed step."""
        if length not in (self.length, self.reference):
            return
        if not self._turns or self._turns[-1][0] != length:
            self._turns.append((length, []))
        self._turns[-1][1].append(seconds)

    def saw(self, length: int, seconds: float | None) -> None:
        """Take in a decode step; ``seconds`` is None if it could not be timed."""
        self.steps += 1
        self.ran += length == self.length
        self._passed = 0
        if seconds is not None:
            self.add(length, seconds)

    def passed(self, turn: int) -> bool:
        """Take in a step of the length with prompt tokens; true if it ends the turn.

        Args:
            turn: steps in a turn.
        """
        self.ran += 1
        self._passed += 1
        self._passed_in_all += 1
        if self._passed < turn:
            return False
        ends, self.its_turn, self._passed = self.its_turn, False, 0
        return ends

    def timed(self, length: int) -> int:
        """Timed steps of a length since the beginning."""
        steps = sum(len(times) for of, times in self._turns if of == length)
        return steps - len(self.before) if length == self.reference else steps

    @property
    def complete(self) -> bool:
        """Whether both lengths have enough steps, or the few leave no doubt."""
        steps = self._timed_of_each
        if steps >= TRIAL_STEPS:
            return steps >= MOST_TRIAL_STEPS or self._is_certain
        return steps >= CLEAR_STEPS and self.is_clear

    @property
    def patient(self) -> bool:
        """Whether the trial may go on."""
        if self._passed_in_all >= MOST_PASSED + PASSED_FOR_EACH * self.timed(self.length):
            return False
        return self.steps < PATIENCE * max(1, self._timed_of_each)

    @property
    def _timed_of_each(self) -> int:
        return min(self.timed(self.length), self.timed(self.reference))

    @property
    def hint(self) -> float | None:
        """The ratio so far, on any number of steps; None: there are none."""
        return self.ratio if self._pairs() else None

    @property
    def ratio(self) -> float:
        """Time of a step of the length over that of the other."""
        return statistics.median(self._ratios())

    @property
    def error(self) -> float:
        """Standard error of the ratio's logarithm, from how the turns scatter."""
        logs = [math.log(ratio) for ratio in self._ratios()]
        if 1 < len(logs) < FEW_PAIRS:
            return MEDIAN_TO_MEAN * statistics.stdev(logs) / math.sqrt(len(logs))
        middle = statistics.median(logs)
        deviation = statistics.median(abs(one - middle) for one in logs)
        return DEVIATIONS_TO_ERROR * deviation / math.sqrt(len(logs))

    def result(self, cell: tuple[int, int], ratio: float | None) -> TrialResult:
        """The result, for a cell of this batch size and context."""
        return TrialResult(
            *cell,
            self.length,
            self.reference,
            ratio,
            None if math.isnan(self.tokens) else self.tokens,
            self.forecast,
            self.basis,
            self.timed(self.length),
        )

    @property
    def _is_certain(self) -> bool:
        """Whether it is certain enough which of the two is worth more."""
        error = self.error
        if error <= CERTAIN_ENOUGH or math.isnan(self.tokens):
            return True
        return abs(math.log(self.ratio / self.tokens)) >= ERRORS_APART * error

    def _ratios(self) -> list[float]:
        return [statistics.median(its) / statistics.median(of) for its, of in self._pairs()]

    @property
    def is_clear(self) -> bool:
        """Far apart, compared with the turn before as well as with the one after."""
        pairs = self._pairs()
        if len(pairs) < 2:
            return False
        return all(
            min(its) > CLEAR * self.tokens * statistics.median(others) for its, others in pairs
        ) or all(
            CLEAR * statistics.median(its) < self.tokens * min(others) for its, others in pairs
        )

    def _pairs(self) -> list[tuple[list[float], list[float]]]:
        """Seconds of the length and of the other, in neighbouring turns."""
        return [
            (one, other) if of == self.length else (other, one)
            for (of, one), (_, other) in itertools.pairwise(self._turns)
        ]
