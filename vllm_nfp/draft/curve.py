"""What a step with N positions costs, also between measured counts of positions."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from vllm_nfp.crossing import count_free
from vllm_nfp.types import Basis

LARGEST_BATCH_SIZE = 1 << 20
LARGEST_COUNT = 1 << 20
"""Of positions: more than any step runs."""
UNBOUNDED = (0.0, math.inf)
"""The interval of a ratio that has none."""


@dataclass(frozen=True, slots=True)
class StepCurve:
    """The whole step at one batch size and context.

    Raises:
        ValueError: if N = 1 is missing, counts do not ascend, a time is not above 0, or the batch
            size or a count is larger than any that a server runs.
    """

    batch_size: int
    context: int
    seconds_at_one: float
    """t(1)."""
    points: tuple[tuple[int, float], ...]
    """(N, t(N) / t(1)), ascending, beginning with N = 1."""
    without_graph_from: int | None = None
    """Smallest N of the points that runs without a CUDA graph, where N = 1 has one; None: none
    does."""
    boundaries: tuple[tuple[float, int, bool], ...] = field(default=(), compare=False)
    """(epsilon, NFP, whether the largest N is still free), as the probe or the predictor reports
    them; those at other epsilons follow from ``points``."""
    bases: tuple[Basis, ...] = ()
    """What each point rests on; empty: pairs of this very shape."""
    intervals: tuple[tuple[float, float], ...] = field(default=(), compare=False)
    """95 % interval of each ratio, :data:`UNBOUNDED` where it is not known; empty: none is."""

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
        if {len(self.bases), len(self.intervals)} - {0, len(counts)}:
            raise ValueError(f"{self._name} lacks the basis or the interval of a point")

    @property
    def _name(self) -> str:
        return f"the step's curve at B={self.batch_size} L={self.context}"

    @property
    def largest(self) -> int:
        """Largest measured N."""
        return self.points[-1][0]

    def ratio(self, positions: int) -> float:
        """t(N) / t(1), never below the measured staircase.

        Between two measured counts the time may be anywhere between theirs, so the slower of the
        two is assumed. A count that was not measured never beats the next measured one.

        Raises:
            ValueError: for a count below 1 or above the largest measured one.
        """
        return max(ratio for _, ratio in self.points[self._around(positions)])

    def basis(self, positions: int) -> Basis:
        """What t(N) / t(1) rests on; between two points the weaker of theirs.

        At N = 1, where the ratio is 1 whatever is measured, that of the next point: it decides
        whether any draft pays.

        Raises:
            ValueError: as :meth:`ratio` does.
        """
        at = self._around(max(positions, min(2, self.largest)))
        return weakest(self.bases[max(at.start, min(1, at.stop - 1)) : at.stop])

    def interval(self, positions: int) -> tuple[float, float]:
        """95 % interval of t(N) / t(1); between two points both of theirs.

        Raises:
            ValueError: as :meth:`ratio` does.
        """
        near = self.intervals[self._around(positions)] or (UNBOUNDED,)
        return min(lower for lower, _ in near), max(upper for _, upper in near)

    def _around(self, positions: int) -> slice:
        """The place of a count among the points, or of its two neighbours."""
        if not 1 <= positions <= self.largest:
            raise ValueError(f"{self._name} is known up to N = {self.largest}, not at {positions}")
        above = bisect.bisect_left(self.points, positions, key=lambda point: point[0])
        return slice(above - (self.points[above][0] != positions), above + 1)

    def ratio_between(self, positions: float) -> float:
        """t(N) / t(1) on the straight line between measured counts: an estimate, not a bound.

        Outside the measured counts that of the nearest one.
        """
        counts = [count for count, _ in self.points]
        return interpolated(counts, [ratio for _, ratio in self.points], positions)

    def free_positions(self, epsilon: float) -> tuple[int, bool]:
        """NFP on the measured counts, and whether the largest of them is still free.

        The largest measured N with t(n) <= (1 + epsilon) t(1) for every measured n up to it. Where
        NFP was reported at this epsilon, that is returned, so that all reports agree.
        """
        for reported, positions, at_limit in self.boundaries:
            if reported == epsilon:
                return positions, at_limit
        free = count_free((ratio for _, ratio in self.points), epsilon)
        return self.points[free - 1][0], free == len(self.points)


def interpolated(places: Sequence[float], values: Sequence[float], place: float) -> float:
    """The value on the straight line between the two nearest places; outside, that at the end.

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
        ratios: t(N) / t(1) from paired runs, which are more accurate; None: from the times.

    Raises:
        ValueError: if N = 1 is missing or a time is not above 0.
    """
    one = seconds.get(1, math.nan)
    if 1 in seconds and not one > 0.0:
        raise ValueError(f"t(1) at B={batch_size} L={context} is not above 0")
    known = {} if ratios is None else ratios
    points = tuple((n, known.get(n, seconds[n] / one)) for n in sorted(seconds))
    return StepCurve(batch_size, context, one, points)


def weakest(bases: Iterable[Basis]) -> Basis:
    """Of answers together; measured if there is none."""
    order = (Basis.PREDICTED, Basis.INFERRED, Basis.MEASURED)
    return min(bases, key=order.index, default=Basis.MEASURED)
