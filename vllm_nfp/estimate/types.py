"""The plain data of the estimate: cells, pairs of samples, curves and boundaries."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vllm_nfp.types import Module


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One module at one batch size (sequences) and context length (tokens)."""

    module: Module
    batch_size: int
    context: int


@dataclass(frozen=True, slots=True)
class Pair:
    """The time at N positions per sequence and that at one, taken side by side.

    Both in seconds. Clocks that drift with temperature and load change both alike, so that the
    ratio stays.

    Raises:
        ValueError: for a count below 1, or a time that is not finite and above 0.
    """

    positions: int
    seconds: float
    baseline_seconds: float

    def __post_init__(self) -> None:
        if self.positions < 1:
            raise ValueError(f"positions must be 1 or more, not {self.positions}")
        for name in ("seconds", "baseline_seconds"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0.0):
                raise ValueError(f"{name} must be finite and above 0, not {value!r}")

    @property
    def log_ratio(self) -> float:
        """log(t(N) / t(1))."""
        return math.log(self.seconds / self.baseline_seconds)


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
