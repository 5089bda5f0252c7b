"""Which medians of real steps tell something new, and where real steps spend their time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from vllm_nfp.surface.noise import STEP_DEVIATION
from vllm_nfp.timing import RealSteps
from vllm_nfp.types import CellKey, Shape

ENOUGH = 16
"""Timed steps of a kind from which on their median is an observation."""
MOVED = 0.01
"""Change of a median, as a fraction, that is told at once."""
AGAIN_SECONDS = 60.0
"""Time after which a median is told again although it has not moved: it is not old."""
LARGEST_WAIT = 12**0.5 * STEP_DEVIATION
"""Of a step's time, the largest bound on a wait in it: a number that may lie anywhere from 0 to W
deviates by W / 12^0.5 from its mean, which is here what a median of real steps errs by anyway."""
LATELY_SECONDS = 180.0
"""Age at which the time that traffic has spent in a cell counts 1/e."""


def is_whole(of: RealSteps) -> bool:
    """Whether these steps say what N positions in every sequence take.

    Sequences may have unequal numbers, as with n-grams or adaptive verification. Within the error
    of a median of real steps, the median over numbers whose mean is N is that of N: a step's time
    never rises faster than its tokens.
    """
    positions = of.shape.positions
    return abs(of.mean_positions - positions) <= STEP_DEVIATION * positions


def seconds_of_work(of: RealSteps) -> float | None:
    """The median step without the device's waits; None where they may be too much of it.

    How long the device waited for the step's launch is known as an upper bound. The wait is taken
    as half of it: it lies anywhere up to there.
    """
    if of.wait_seconds > LARGEST_WAIT * of.median_seconds:
        return None
    return of.median_seconds - of.wait_seconds / 2.0


class SteadySteps:
    """Picks the kinds of real steps whose medians are worth telling."""

    def __init__(self) -> None:
        self._told: dict[Shape, tuple[int, float, float]] = {}
        """By kind: steps that were timed, their median, and when."""

    def new(self, kinds: Iterable[RealSteps], now: float) -> Iterator[RealSteps]:
        """Those with enough newly timed steps whose median has moved, or was told long ago."""
        for of in kinds:
            timed, median, at = self._told.get(of.kind, (0, math.inf, -math.inf))
            if of.timed < timed + ENOUGH:
                continue
            moved = abs(of.median_seconds / median - 1.0) > MOVED
            if moved or now >= at + AGAIN_SECONDS:
                self._told[of.kind] = of.timed, of.median_seconds, now
                yield of


class Traffic:
    """Where real decode steps spend their time, now and lately: a decaying sum."""

    def __init__(self) -> None:
        self._counted: dict[Shape, int] = {}
        self._seconds: dict[CellKey, float] = {}
        self._at = -math.inf

    def update(self, kinds: Iterable[RealSteps], now: float) -> None:
        """Add the steps since the last update.

        Args:
            now: seconds of a monotonic clock.
        """
        decay = math.exp(-max(0.0, now - self._at) / LATELY_SECONDS)
        kept = {cell: seconds * decay for cell, seconds in self._seconds.items()}
        self._at = now
        for of in kinds:
            steps = of.count - self._counted.get(of.kind, 0)
            if steps <= 0:
                continue
            self._counted[of.kind] = of.count
            cell = of.shape.batch_size, of.shape.context
            kept[cell] = kept.get(cell, 0.0) + steps * of.median_seconds
        most = max(kept.values(), default=0.0)
        self._seconds = {cell: seconds for cell, seconds in kept.items() if seconds > 1e-3 * most}

    @property
    def shares(self) -> Mapping[CellKey, float]:
        """Fraction of the time by cell; they add up to 1. Empty before the first step."""
        total = sum(self._seconds.values())
        return {cell: seconds / total for cell, seconds in self._seconds.items()}
