"""From pairs of samples to NFP with its interval.

NFP(epsilon) is the largest N such that t(n) <= (1 + epsilon) t(1) for every n <= N (docs/theory.md,
"Terms"). The walk up the measured grid ends at the first n that is over the line:

- the estimate ends before the first n whose estimated ratio is over;
- the lower end of the interval ends before the first n that is not surely under;
- the upper end ends before the first n that is surely over.

"Surely" is a one-sided test at 5 %: the interval misses on one side only if the last free n is
taken to be over, on the other only if the next n is taken to be free, and rarely do both of these
lie near the line. Too high takes one wrong test, that of the first n that is truly over. Too low
takes a wrong test at any of the n before it, and a plateau of a staircase can hold many that lie
just under the line; so that tail is divided by the number of points that come near it
(Bonferroni), which costs nothing where only one does. A point that lies over the line by twice its
interval is over without a further test, so that few pairs, whose exact levels are coarse, end the
walk as well; what lies beyond it counts for nothing.

Simulated in benchmarks/coverage.py, with its table in docs/estimation.md: 95 to 98 % where a step
lies at the line, which is the worst case, and more where none is near it, since there the grid
leaves one answer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vllm_nfp.estimate.location import (
    FloatArray,
    center,
    interval,
    median_interval,
    walsh_averages,
)
from vllm_nfp.estimate.types import Boundary, CellEstimate, Curve, CurvePoint
from vllm_nfp.give_way import give_way
from vllm_nfp.types import Cell, Pair

RATIO_TAIL = 0.025
"""Chance of each side of a ratio's 95 % interval to miss."""
BOUNDARY_TAIL = 0.05
"""Chance of a boundary's interval to miss; see the module's text for why not half of it."""


@dataclass(frozen=True, slots=True)
class _Point:
    """Log ratios at one N, prepared for any interval."""

    positions: int
    samples: int
    averages: FloatArray
    log_ratio: float
    curve_point: CurvePoint

    def interval(self, tail: float) -> tuple[float, float]:
        return interval(self.averages, self.samples, tail)


def estimate_cell(
    cell: Cell,
    pairs: Sequence[Pair],
    epsilons: Sequence[float] = (0.05, 0.1, 0.2),
    min_samples: int = 6,
) -> CellEstimate | None:
    """Curve and boundaries of one cell.

    Args:
        pairs: in any order.
        epsilons: tolerances, each above 0.
        min_samples: pairs that a position count needs to be on the grid.

    Returns:
        None if no count beyond 1 has enough pairs.

    Raises:
        ValueError: for an epsilon that is not above 0.
    """
    points = _points(pairs, min_samples)
    if not points:
        return None
    baselines = np.array([pair.baseline_seconds for pair in pairs])
    curve = Curve((_first_point(baselines), *(point.curve_point for point in points)))
    return CellEstimate(cell, curve, tuple(_boundary(points, epsilon) for epsilon in epsilons))


def _points(pairs: Iterable[Pair], min_samples: int) -> list[_Point]:
    grouped: dict[int, list[Pair]] = {}
    for pair in pairs:
        if pair.positions > 1:
            grouped.setdefault(pair.positions, []).append(pair)
    return [_point(n, tuple(grouped[n])) for n in sorted(grouped) if len(grouped[n]) >= min_samples]


@lru_cache(maxsize=1024)
def _point(positions: int, pairs: tuple[Pair, ...]) -> _Point:
    """Kept, since a live server's new pair changes one point of its cell and no other."""
    averages = walsh_averages(np.array([pair.log_ratio for pair in pairs]))
    log_ratio = center(averages)
    seconds = np.array([pair.seconds for pair in pairs])
    curve_point = _curve_point(positions, averages, log_ratio, seconds)
    give_way()  # with many pairs a point takes most of a millisecond
    return _Point(positions, len(pairs), averages, log_ratio, curve_point)


def _first_point(baselines: FloatArray) -> CurvePoint:
    seconds, *seconds_interval = median_interval(baselines, RATIO_TAIL)
    return CurvePoint(
        1,
        len(baselines),
        seconds,
        1.0,
        1.0,
        1.0,
        max(0.0, seconds_interval[0]),
        seconds_interval[1],
    )


def _curve_point(
    positions: int, averages: FloatArray, log_ratio: float, times: FloatArray
) -> CurvePoint:
    lower, upper = interval(averages, len(times), RATIO_TAIL)
    seconds, seconds_lower, seconds_upper = median_interval(times, RATIO_TAIL)
    return CurvePoint(
        positions,
        len(times),
        seconds,
        math.exp(log_ratio),
        math.exp(lower),
        math.exp(upper),
        max(0.0, seconds_lower),
        seconds_upper,
    )


def _boundary(points: Sequence[_Point], epsilon: float) -> Boundary:
    if not epsilon > 0.0:
        raise ValueError(f"epsilon must be above 0, not {epsilon!r}")
    line = math.log1p(epsilon)
    estimate = _walk(points, [p.log_ratio <= line for p in points])
    lower = _walk(points, [p.interval(BOUNDARY_TAIL)[1] <= line for p in points])
    return Boundary(
        epsilon=epsilon,
        positions=estimate,
        lower=min(lower, estimate),
        upper=max(_upper(points, line), estimate),
        at_limit=all(point.log_ratio <= line for point in points),
        largest_free=_largest_free(points, line, estimate),
    )


def _upper(points: Sequence[_Point], line: float) -> int:
    """Largest N before the first that is surely over the line."""
    open_points = list(
        itertools.takewhile(lambda p: p.log_ratio <= line or _is_near(p, line), points)
    )
    near = [_is_near(point, line) for point in open_points]
    tail = BOUNDARY_TAIL / max(1, sum(near))
    return _walk(
        open_points,
        [
            not is_near or point.interval(tail)[0] <= line
            for point, is_near in zip(open_points, near, strict=True)
        ],
    )


def _largest_free(points: Sequence[_Point], line: float, boundary: int) -> int:
    """Largest N that is surely under the line, the boundary if none is beyond it.

    The largest of many noisy points under the line is mostly one that only noise took there. So
    each point beyond the boundary is tested, at a level divided by the number of those near the
    line: in 95 % no N is named that is over it.
    """
    beyond = [point for point in points if point.positions > boundary]
    near = [_is_near(point, line) for point in beyond]
    tail = BOUNDARY_TAIL / max(1, sum(near))
    free = [
        point.positions
        for point, is_near in zip(beyond, near, strict=True)
        if (point.interval(tail)[1] if is_near else point.log_ratio) <= line
    ]
    return max(free, default=boundary)


def _is_near(point: _Point, line: float) -> bool:
    """Whether noise could take the point over the line: its interval, doubled, holds the line."""
    lower, upper = point.interval(RATIO_TAIL)
    reach = upper - lower
    return lower - reach / 2 <= line <= upper + reach / 2


def _walk(points: Sequence[_Point], passes: Sequence[bool]) -> int:
    """Largest N before the first point that does not pass; 1 if none does."""
    reached = 1
    for point, passed in zip(points, passes, strict=True):
        if not passed:
            break
        reached = point.positions
    return reached
