"""What the surface says of a cell: its curve, its boundaries, its draft length, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from vllm_nfp.surface.kernel import Functionals, covariance, stacked
from vllm_nfp.surface.posterior import Posterior, measured_key
from vllm_nfp.surface.prior import FloatArray, IntArray, Part, Prior
from vllm_nfp.types import Module

DRAWS = 256
"""Curves that are drawn of a cell. The same random numbers for all: an answer changes with what is
measured, never by chance."""
TAIL = 0.025
"""Chance of each side of an interval to miss."""
NORMAL_TAIL = 1.959964
INFERRED = 0.5
"""Part of the prior's variance that must be gone for an answer to rest on measurements."""
JITTER = 1e-12

_DRAWN = np.random.default_rng(19).standard_normal((DRAWS, 513))


class Basis(StrEnum):
    """What an answer rests on."""

    MEASURED = "measured"
    """Pairs of this very shape, or for an FFN of as many tokens."""
    INFERRED = "inferred"
    """Measurements nearby: they took half or more of the prediction's variance away."""
    PREDICTED = "predicted"
    """The prediction; what was measured says little of this shape."""


@dataclass(frozen=True, slots=True)
class CellAnswer:
    """log t(N) / t(1) of one module at one batch size and context.

    Attributes:
        positions: N, ascending from 1, shape [n].
        log_ratio: its mean, 0 at N = 1, shape [n].
        covariance: shape [n, n].
        basis: of each N.
        curves: drawn t(N) / t(1), shape [draws, n].
    """

    module: Module
    batch_size: int
    context: int
    positions: IntArray
    log_ratio: FloatArray
    covariance: FloatArray
    basis: tuple[Basis, ...]
    curves: FloatArray

    @property
    def ratio(self) -> FloatArray:
        """Median t(N) / t(1), shape [n]."""
        return np.asarray(np.exp(self.log_ratio))

    @property
    def interval(self) -> tuple[FloatArray, FloatArray]:
        """Both ends of the 95 % interval of t(N) / t(1), each of shape [n]."""
        reach = NORMAL_TAIL * np.sqrt(np.maximum(np.diag(self.covariance), 0.0))
        return np.exp(self.log_ratio - reach), np.exp(self.log_ratio + reach)


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
    basis: Basis


@dataclass(frozen=True, slots=True)
class DraftAnswer:
    """The draft length K with the largest expected goodput."""

    draft_length: int
    lower: int
    upper: int
    """In 95 % of the drawn curves the best length lies between these."""
    gain: float
    """Goodput over that without drafts."""
    expected_loss: float
    """Part of the best goodput that is lost on average since the curve is not known exactly."""
    basis: Basis


def answer(
    prior: Prior,
    posterior: Posterior,
    module: Module,
    cells: Sequence[tuple[int, int]],
    positions: Sequence[int],
) -> tuple[CellAnswer, ...]:
    """The module in some cells, all at the same positions.

    Args:
        cells: (batch size, context).
        positions: N, ascending from 1, up to the prior's last.
    """
    counts = np.array(positions, dtype=np.int64)
    asked = [cell_rows(prior, module, cell, counts) for cell in cells]
    rows = stacked([functionals for functionals, _ in asked])
    means, factor = posterior.mean_and_factor(rows)
    width = len(counts)
    found = []
    for i, (cell, (functionals, expected)) in enumerate(zip(cells, asked, strict=True)):
        here = slice(i * width, (i + 1) * width)
        before = covariance(functionals, functionals, posterior.hyper)
        after = before - factor[:, here].T @ factor[:, here]
        mean = expected + means[here]
        bases = _bases(posterior, module, functionals, np.diag(before), np.diag(after))
        found.append(
            CellAnswer(module, *cell, counts, mean, after, bases, np.exp(_draw(mean, after)))
        )
    return tuple(found)


def cell_rows(
    prior: Prior, module: Module, cell: tuple[int, int], counts: IntArray
) -> tuple[Functionals, FloatArray]:
    """Rows of log t(N) / t(1) at each N of a cell, and what the prior says."""
    known = prior(*cell)
    at = counts - 1
    log_seconds, weights = known.log_seconds(module), known.weights(module)
    shapes = np.ones((len(at), 2, 3), dtype=np.int64)
    shapes[:, :, 0], shapes[:, :, 2] = cell
    shapes[:, 0, 1] = counts
    tokens = np.stack([known.tokens[at], np.full(len(at), known.tokens[0])], axis=1)
    padded = np.stack([known.padded[at], np.full(len(at), known.padded[0])], axis=1)
    both = np.zeros((len(at), 2, len(Part)))
    both[:, 0], both[:, 1] = weights[:, at].T, -weights[:, 0]
    return Functionals(shapes, tokens, padded, both), log_seconds[at] - log_seconds[0]


def boundary(cell: CellAnswer, epsilon: float) -> BoundaryAnswer:
    """NFP: the largest N with t(n) <= (1 + epsilon) t(1) for every asked n up to it."""
    over = cell.curves > 1.0 + epsilon
    over[:, 0] = False
    last = np.where(over.any(axis=1), over.argmax(axis=1) - 1, len(cell.positions) - 1)
    lower, middle, upper = _quantiles(last)
    decided_at = min(middle + 1, len(cell.positions) - 1)
    return BoundaryAnswer(
        epsilon,
        int(cell.positions[middle]),
        int(cell.positions[lower]),
        int(cell.positions[upper]),
        middle == len(cell.positions) - 1,
        _weakest(cell.basis[n] for n in (middle, decided_at)),
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
    expected = gains.mean(axis=0)
    chosen = int(np.flatnonzero(expected >= (1.0 - slack) * expected.max())[0])
    best = gains.argmax(axis=1)
    lower, _, upper = _quantiles(best)
    loss = 1.0 - gains[:, chosen] / gains.max(axis=1)
    return DraftAnswer(
        int(cell.positions[chosen]) - 1,
        int(cell.positions[min(lower, chosen)]) - 1,
        int(cell.positions[max(upper, chosen)]) - 1,
        float(expected[chosen] / expected[0]),
        float(loss.mean()),
        cell.basis[chosen],
    )


def _quantiles(places: IntArray) -> tuple[int, int, int]:
    ordered = np.sort(places)
    last = len(ordered) - 1
    lower, middle, upper = (ordered[round(share * last)] for share in (TAIL, 0.5, 1.0 - TAIL))
    return int(lower), int(middle), int(upper)


def _draw(mean: FloatArray, spread: FloatArray) -> FloatArray:
    values, vectors = np.linalg.eigh(spread)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    return np.asarray(mean + _DRAWN[:, : len(mean)] @ root.T)


def _weakest(bases: object) -> Basis:
    order = (Basis.PREDICTED, Basis.INFERRED, Basis.MEASURED)
    return min(bases, key=order.index)  # type: ignore[call-overload, no-any-return]


def _bases(
    posterior: Posterior,
    module: Module,
    rows: Functionals,
    before: FloatArray,
    after: FloatArray,
) -> tuple[Basis, ...]:
    found = []
    for i in range(len(rows)):
        if _key(module, rows, i) in posterior.measured:
            found.append(Basis.MEASURED)
        elif before[i] <= JITTER:
            found.append(Basis.MEASURED if len(posterior.measured) else Basis.PREDICTED)
        else:
            near = after[i] <= INFERRED * before[i]
            found.append(Basis.INFERRED if near else Basis.PREDICTED)
    return tuple(found)


def _key(module: Module, rows: Functionals, i: int) -> tuple[object, ...]:
    return measured_key(module, rows.shapes[i, 0], rows.tokens[i], rows.padded[i])
