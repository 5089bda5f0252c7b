"""The plain data of the estimate: cells, pairs of samples, curves and boundaries."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_nfp.types import Cell


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One point of t(N) / t(1)."""

    positions: int
    samples: int
    """Pairs behind it; those of all other points for N = 1."""
    median_seconds: float
    ratio: float
    ratio_lower: float
    """Lower end of the 95 % interval of the ratio; 0 if the samples are too few to tell."""
    ratio_upper: float
    """Upper end; infinite if the samples are too few to tell."""
    seconds_lower: float
    """Lower end of the 95 % interval of the median time; 0 if the samples are too few to tell."""
    seconds_upper: float
    """Upper end; infinite if the samples are too few to tell."""


@dataclass(frozen=True, slots=True)
class Curve:
    """t(N) / t(1) on the measured grid, ascending; the first point is N = 1 with ratio 1."""

    points: tuple[CurvePoint, ...]


@dataclass(frozen=True, slots=True)
class Boundary:
    """NFP(epsilon) of one cell, on the measured grid."""

    epsilon: float
    positions: int
    """Largest measured N for which it and all smaller measured n are within 1 + epsilon."""
    lower: int
    upper: int
    """95 % interval; lower <= positions <= upper."""
    at_limit: bool
    """No measured N is over the line: the boundary is at the largest measured N or beyond, and
    ``upper`` is censored there."""
    largest_free: int
    """Largest measured N that is surely under the line, even if a smaller one is over it, since t
    is not monotone; ``positions`` if there is none. In 95 % it names no other N over the line."""


@dataclass(frozen=True, slots=True)
class CellEstimate:
    """The curve of one cell and its boundary at each epsilon."""

    cell: Cell
    curve: Curve
    boundaries: tuple[Boundary, ...]
