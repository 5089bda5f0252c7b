"""Boundaries from the drawn curves of a cell, with 95 % intervals."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from vllm_nfp.surface.answers import CellAnswer
from vllm_nfp.types import Basis

_STRENGTH = (Basis.PREDICTED, Basis.INFERRED, Basis.MEASURED)


@dataclass(frozen=True, slots=True)
class BoundaryAnswer:
    """NFP(epsilon) of a cell, on the asked positions."""

    epsilon: float
    positions: int
    """Median over the drawn curves."""
    lower: int
    upper: int
    """95 % interval."""
    at_limit: bool
    """The median is the largest N that was asked for: it may lie beyond."""
    largest_free: int
    """Largest N that is under the line in 97.5 % of the drawn curves, though a smaller one may be
    over it; the boundary if there is none."""
    basis: Basis


def boundary(cell: CellAnswer, epsilon: float) -> BoundaryAnswer:
    """NFP: the largest N with t(n) <= (1 + epsilon) t(1) for every asked n up to it."""
    line = 1.0 + epsilon
    surely, half, perhaps, alone = cell.limits
    lower, middle, upper = (bisect_right(limit, line) - 1 for limit in (surely, half, perhaps))
    free = last = len(alone) - 1
    while free > middle and alone[free] > line:
        free -= 1
    positions = cell.positions.tolist()
    here, beyond = cell.basis[middle], cell.basis[min(middle + 1, last)]
    return BoundaryAnswer(
        epsilon,
        positions[middle],
        positions[lower],
        positions[upper],
        middle == last,
        positions[free],
        here if here is beyond else min(here, beyond, key=_STRENGTH.index),
    )
