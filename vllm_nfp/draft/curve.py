"""What a step with N positions costs, between and beyond the counts that were measured."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vllm_nfp.crossing import count_free

LARGEST_BATCH_SIZE = 1 << 20
LARGEST_COUNT = 1 << 20
"""Of positions: beyond all that any step runs."""


@dataclass(frozen=True, slots=True)
class StepCurve:
    """The whole step at one batch size and context.

    Raises:
        ValueError: if N = 1 is missing, counts do not ascend, a time is not above 0, or the batch
            size or a count is beyond all that a server runs.
    """

    batch_size: int
    context: int
    seconds_at_one: float
    """t(1)."""
    points: tuple[tuple[int, float], ...]
    """(N, t(N) / t(1)), ascending, beginning with N = 1."""
    without_graph_from: int | None = None
    """Smallest measured N that ran without a CUDA graph, where N = 1 had one; None: none did."""
    boundaries: tuple[tuple[float, int, bool], ...] = field(default=(), compare=False)
    """(epsilon, NFP, whether no measured count was over the line), as the probe or the predictor
    reports them; others follow from ``points``."""

    def __post_init__(self) -> None:
        counts = [positions for positions, _ in self.points]
        if not counts or counts[0] != 1:
            raise ValueError(f"{self._name} lacks its point at N = 1, the step without drafts")
        if self.points[0][1] != 1.0:
            raise ValueError(f"{self._name} has t(1) / t(1) = {self.points[0][1]:g}")
        if counts != sorted(set(counts)):
            raise ValueError(f"{self._name} has counts of positions that do not ascend")
        if not 1 <= self.batch_size <= LARGEST_BATCH_SIZE:
            raise ValueError(f"{self._name} has a batch size outside 1 to {LARGEST_BATCH_SIZE}")
        if counts[-1] > LARGEST_COUNT:
            raise ValueError(
                f"{self._name} has {counts[-1]} positions a sequence, above {LARGEST_COUNT}"
            )
        if any(not 1 <= positions <= counts[-1] for _, positions, _ in self.boundaries):
            raise ValueError(f"{self._name} has an NFP outside its counts of positions")
        times = (self.seconds_at_one, *(ratio for _, ratio in self.points))
        if not all(math.isfinite(time) and time > 0.0 for time in times):
            raise ValueError(f"{self._name} has a time that is not above 0")

    @property
    def _name(self) -> str:
        return f"the step's curve at B={self.batch_size} L={self.context}"

    @property
    def largest(self) -> int:
        """Largest measured N."""
        return self.points[-1][0]

    def ratio(self, positions: int) -> float:
        """t(N) / t(1), never below the measured staircase.

        Between two measured counts the step may lie anywhere, so the whole interval costs the
        dearer of the two. A count that was not measured thus never beats the next measured one.

        Raises:
            ValueError: for a count below 1 or above the largest measured one.
        """
        if not 1 <= positions <= self.largest:
            raise ValueError(
                f"{self._name} is measured up to N = {self.largest}, not at {positions}"
            )
        above = bisect.bisect_left(self.points, positions, key=lambda point: point[0])
        count, ratio = self.points[above]
        return ratio if count == positions else max(ratio, self.points[above - 1][1])

    def ratio_between(self, positions: float) -> float:
        """t(N) / t(1) on the straight line between measured counts: a guess, not a bound.

        Beyond the measured counts the nearest one counts.
        """
        counts = [count for count, _ in self.points]
        return interpolated(counts, [ratio for _, ratio in self.points], positions)

    def free_positions(self, epsilon: float) -> tuple[int, bool]:
        """NFP on the measured counts, and whether none of them was over the line.

        The largest measured N with t(n) <= (1 + epsilon) t(1) for every measured n up to it. Where
        NFP was reported at this epsilon, that is the answer: one question, one number.
        """
        for reported, positions, at_limit in self.boundaries:
            if reported == epsilon:
                return positions, at_limit
        free = count_free((ratio for _, ratio in self.points), epsilon)
        return self.points[free - 1][0], free == len(self.points)


def interpolated(places: Sequence[float], values: Sequence[float], place: float) -> float:
    """The value on the straight line between the two nearest places; the end ones' beyond them.

    Args:
        places: ascending, one at least.
        values: one for each place.
    """
    above = bisect.bisect_left(places, place)
    if above == 0:
        return values[0]
    if above == len(places):
        return values[-1]
    share = (place - places[above - 1]) / (places[above] - places[above - 1])
    return values[above - 1] * (1.0 - share) + values[above] * share


def curve_of_seconds(
    batch_size: int,
    context: int,
    seconds: Mapping[int, float],
    ratios: Mapping[int, float] | None = None,
) -> StepCurve:
    """The curve of times by the number of positions.

    Args:
        ratios: t(N) / t(1) from runs side by side, where they are known better than from the
            times; None: from the times.

    Raises:
        ValueError: if N = 1 is missing or a time is not above 0.
    """
    one = seconds.get(1, math.nan)
    if 1 in seconds and not one > 0.0:
        raise ValueError(f"t(1) at B={batch_size} L={context} is not above 0")
    known = {} if ratios is None else ratios
    points = tuple((n, known.get(n, seconds[n] / one)) for n in sorted(seconds))
    return StepCurve(batch_size, context, one, points)


def slower(low: StepCurve, high: StepCurve) -> StepCurve:
    """A curve for batch sizes strictly between two: at each N the dearer of theirs.

    Under experts a larger batch makes a position cheaper, in a dense model dearer; either way the
    gain of drafting in between is no less than this curve says, as long as it lies between its
    neighbours. t(1) is the shorter one, which weighs a draft's seconds most.
    """
    last = min(low.largest, high.largest)
    counts = sorted({n for curve in (low, high) for n, _ in curve.points if n <= last})
    without = [c.without_graph_from for c in (low, high) if c.without_graph_from is not None]
    return StepCurve(
        low.batch_size,
        low.context,
        min(low.seconds_at_one, high.seconds_at_one),
        tuple((n, max(low.ratio(n), high.ratio(n))) for n in counts),
        min(without, default=None),
    )
