"""Real decode steps of one kind: how many there were, how large they were, and their times."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from vllm_nfp.types import Shape

SAMPLES_KEPT = 64
"""Most recent timed steps of a kind that its median is taken over, each for all it stands for."""
ENOUGH_PERIODS = 16
"""Intervals from which on the median period of a kind is told: as many as timed steps make a median
an observation (:mod:`vllm_nfp.results.real_steps`)."""


class Series:
    """Steps of one kind: how many there were, and the times of the last that were timed."""

    __slots__ = (
        "batch_sizes", "contexts", "count", "in_period", "periods", "periods_timed", "positions",
        "seconds", "stand_for", "timed", "waits",
    )  # fmt: skip

    def __init__(self) -> None:
        self.seconds = array("d", bytes(8 * SAMPLES_KEPT))
        self.stand_for = array("q", bytes(8 * SAMPLES_KEPT))
        """Steps that each of the times stands for."""
        self.waits = array("d", bytes(8 * SAMPLES_KEPT))
        """Seconds that the device may have waited for the step's launch, at most."""
        self.batch_sizes = array("q", bytes(8 * SAMPLES_KEPT))
        self.contexts = array("q", bytes(8 * SAMPLES_KEPT))
        self.positions = array("d", bytes(8 * SAMPLES_KEPT))
        """Mean over the sequences of each step."""
        self.count = 0
        self.timed = 0
        self.periods = array("d", bytes(8 * SAMPLES_KEPT))
        """Seconds from the begin of one step to the begin of the next: the mean of an interval."""
        self.in_period = array("q", bytes(8 * SAMPLES_KEPT))
        """Steps in each interval."""
        self.periods_timed = 0

    def add(
        self,
        seconds: float,
        stands_for: int = 1,
        batch_size: int = 1,
        context: int = 0,
        positions: float = 1.0,
        wait: float = 0.0,
    ) -> None:
        """Keep the time of one step.

        Args:
            wait: seconds that the device may have waited in it for its launch, at most.
        """
        place = self.timed % SAMPLES_KEPT
        self.seconds[place] = seconds
        self.waits[place] = wait
        self.stand_for[place] = stands_for
        self.batch_sizes[place] = batch_size
        self.contexts[place] = context
        self.positions[place] = positions
        self.timed += 1

    def add_period(self, seconds: float, steps: int) -> None:
        """Keep the mean period of so many steps in succession."""
        place = self.periods_timed % SAMPLES_KEPT
        self.periods[place] = seconds
        self.in_period[place] = steps
        self.periods_timed += 1

    @property
    def median_period(self) -> float | None:
        """Median of the kept periods, in seconds; None while there are too few."""
        kept = min(self.periods_timed, SAMPLES_KEPT)
        if kept < ENOUGH_PERIODS:
            return None
        return weighted_median(self.periods[:kept], self.in_period[:kept])

    @property
    def median(self) -> float:
        """Median of the kept times, in seconds; at least one must be there."""
        kept = min(self.timed, SAMPLES_KEPT)
        return weighted_median(self.seconds[:kept], self.stand_for[:kept])

    @property
    def median_wait(self) -> float:
        """Median of the most that the device may have waited, in seconds; as for the times."""
        kept = min(self.timed, SAMPLES_KEPT)
        return weighted_median(self.waits[:kept], self.stand_for[:kept])

    @property
    def mean_positions(self) -> float:
        """Mean of the kept steps' positions per sequence; at least one must be there."""
        kept = min(self.timed, SAMPLES_KEPT)
        return sum(self.positions[:kept]) / kept

    def mean_shape(self, positions: int) -> Shape:
        """Mean batch size and context of the kept steps, rounded; at least one must be there."""
        kept = min(self.timed, SAMPLES_KEPT)
        batch_size = sum(self.batch_sizes[:kept]) / kept
        return Shape(
            max(1, round(batch_size)), rounded_context(sum(self.contexts[:kept]) / kept), positions
        )


def rounded_context(context: float) -> int:
    """The context in steps of 16 tokens, or of some 4 % of a longer one; 16 at least.

    So contexts that are nearly alike share what was computed for one of them.

    >>> [rounded_context(tokens) for tokens in (3, 500, 1001, 3500, 16000)]
    [16, 496, 992, 3456, 15872]
    """
    unit = max(16, 1 << max(0, int(context).bit_length() - 5))
    return max(16, unit * round(context / unit))


@dataclass(frozen=True, slots=True)
class RealSteps:
    """Real decode steps of one kind."""

    kind: Shape
    """Upper bounds of their bucket."""
    shape: Shape
    """Mean batch size and context of the recent ones."""
    count: int
    """Since the start."""
    timed: int
    """Those of them that were timed."""
    median_seconds: float
    """Of the recent ones."""
    mean_positions: float
    """Of the recent ones, per sequence: not whole where sequences have unequal numbers."""
    wait_seconds: float = 0.0
    """What the device waited for the launch in the median step, at most."""
    period_seconds: float | None = None
    """Median time from the begin of a recent step to that of the next; None: not known."""


def weighted_median(values: Sequence[float], weights: Sequence[int]) -> float:
    """The median of what is left if each value is there as often as its weight says.

    Args:
        values: at least one.
        weights: of each value, above 0.

    >>> weighted_median([1.0, 9.0], [1, 1]), weighted_median([1.0, 9.0], [3, 1])
    (5.0, 1.0)
    """
    ordered = sorted(zip(values, weights, strict=True))
    passed, total = 0, sum(weights)
    for place, (value, weight) in enumerate(ordered):
        passed += weight
        if 2 * passed == total:
            return (value + ordered[place + 1][0]) / 2.0
        if 2 * passed > total:
            return value
    raise ValueError("a median of nothing")
