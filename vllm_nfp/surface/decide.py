"""Boundaries and draft lengths from the drawn curves of a cell, with 95 % intervals."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from vllm_nfp.surface.answers import TAIL, CellAnswer
from vllm_nfp.surface.prior import FloatArray, IntArray
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


@dataclass(frozen=True, slots=True)
class DraftAnswer:
    """The draft length K with the smallest mean square loss against the best goodput."""

    draft_length: int
    lower: int
    upper: int
    """In 95 % of the drawn curves the best length lies between these."""
    gain: float
    """Goodput over that without drafts."""
    expected_loss: float
    """Part of the best goodput that is lost on average since the curve is not known exactly."""
    basis: Basis


def boundary(cell: CellAnswer, epsilon: float) -> BoundaryAnswer:
    """NFP: the largest N with t(n) <= (1 + epsilon) t(1) for every asked n up to it."""
    line = 1.0 + epsilon
    surely, half, perhaps, alone = cell.limits
    lower, middle, upper = (bisect_right(limit, line) - 1 for limit in (surely, half, perhaps))
    last = len(alone) - 1
    free = next((n for n in range(last, middle, -1) if alone[n] <= line), middle)
    positions = cell.positions
    return BoundaryAnswer(
        epsilon,
        int(positions[middle]),
        int(positions[lower]),
        int(positions[upper]),
        middle == last,
        int(positions[free]),
        min(cell.basis[middle], cell.basis[min(middle + 1, last)], key=_STRENGTH.index),
    )


def draft_length(
    cell: CellAnswer, tokens: FloatArray, drafting: FloatArray, slack: float = 0.0
) -> DraftAnswer:
    """The best draft length: accepted tokens over the time of the step.

    Args:
        cell: of the whole step; K drafts run N = K + 1 positions, so that each N is a length.
        tokens: E(K) for each of its N, shape [n].
        drafting: t_draft(K) / t(1), the same.
        slack: goodput, as a share, that is given up for a shorter draft.
    """
    gains = tokens / (cell.curves + drafting)
    losses = 1.0 - gains / gains.max(axis=1, keepdims=True)
    # Of equal means the length that is never far off is better than a gamble: squares.
    size = np.sqrt((losses**2).mean(axis=0))
    chosen = int(np.flatnonzero(size <= size.min() + slack)[0])
    lower, _, upper = _quantiles(gains.argmax(axis=1))
    expected = gains.mean(axis=0)
    return DraftAnswer(
        int(cell.positions[chosen]) - 1,
        int(cell.positions[min(lower, chosen)]) - 1,
        int(cell.positions[max(upper, chosen)]) - 1,
        float(expected[chosen] / expected[0]),
        float(losses[:, chosen].mean()),
        cell.basis[chosen],
    )


def _quantiles(places: IntArray) -> tuple[int, int, int]:
    ordered = np.sort(places)
    last = len(ordered) - 1
    lower, middle, upper = (ordered[round(share * last)] for share in (TAIL, 0.5, 1.0 - TAIL))
    return int(lower), int(middle), int(upper)
