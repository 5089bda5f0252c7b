"""Linear algebra of the posterior: the root of an inverse, and observations that contradict."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vllm_nfp.give_way import give_way, in_pieces
from vllm_nfp.surface.parts import FloatArray, IntArray

OUTLIER = 3.5
"""An observation that is so many standard deviations from what all others say is doubted."""
MOST_DOUBTED = 8
"""Observations that are doubted in one posterior."""
SMALL = 48
"""Rows from which on a triangular matrix is inverted in halves."""
MUCH = 4_000_000
"""Products of numbers before a pause: some 0.2 ms."""
LEAST_ROWS = 8
"""Rows before a pause: matrix products of fewer are slow."""


def inverse_root(covariance: FloatArray) -> FloatArray:
    """The lower triangular W with W.T @ W = inverse of the covariance; shape [n, n]."""
    if not len(covariance):
        return covariance
    lower = np.asarray(np.linalg.cholesky(covariance), np.float64)
    give_way()
    root = np.zeros_like(lower)
    _invert(lower, root)
    give_way()
    return root


def _invert(lower: FloatArray, into: FloatArray) -> None:
    size = len(lower)
    if size <= SMALL:
        into[:] = np.linalg.inv(lower)
        return
    half = size // 2
    _invert(lower[:half, :half], into[:half, :half])
    _invert(lower[half:, half:], into[half:, half:])
    give_way()
    below = lower[half:, :half] @ into[:half, :half]
    into[half:, :half] = -(into[half:, half:] @ below)


@dataclass(frozen=True, slots=True)
class Root:
    """W, with W.T @ W = the inverse of a covariance after some of its variances were raised.

    A raised variance bends the root of before: W = (1 - size along.T along) W before, one after the
    other. That costs a few products of vectors, and a new root as much as the first one.

    Attributes:
        lower: W before; lower triangular, shape [n, n].
        sizes: of the bends, shape [bends].
        along: shape [bends, n].
    """

    lower: FloatArray
    sizes: FloatArray
    along: FloatArray

    def times(self, columns: FloatArray) -> FloatArray:
        """W @ columns; gives way."""
        found = times_root(self.lower, columns)
        if len(self.sizes):
            bent = self.along @ found
            give_way()
            among = self.along @ self.along.T
            for i, size in enumerate(self.sizes):
                bent[i] -= among[i, :i] @ bent[:i]
                bent[i] *= size
            first = int(np.flatnonzero(self.along.any(axis=0))[0])
            most = max(LEAST_ROWS, MUCH // max(1, 8 * bent.size))
            for at in in_pieces(range(first, len(found), most), 1):
                found[at : at + most] -= self.along[:, at : at + most].T @ bent
        return found


def times_root(root: FloatArray, columns: FloatArray) -> FloatArray:
    """Lower triangular root @ columns, without the half that is 0; gives way."""
    found = np.empty_like(columns)
    most = MUCH / max(1, columns.shape[1])
    end = 0
    while end < len(root):
        at = end
        # Later rows are longer, so fewer of them go before a pause: rows * (at + rows) = most.
        rows = int((at**2 / 4.0 + most) ** 0.5 - at / 2.0)
        end = min(len(root), at + max(LEAST_ROWS, rows))
        np.matmul(root[at:end, :end], columns[:end], out=found[at:end])
        give_way()
    return found


@dataclass(frozen=True, slots=True)
class Solved:
    """The inverse of a covariance times a residual, with outliers doubted.

    Attributes:
        root: of the inverse, raised variances included.
        solution: that inverse @ residual, shape [n].
        raised: rows that contradict the prediction from all others, and what was added to their
            variance.
    """

    root: Root
    solution: FloatArray
    raised: dict[int, float]


def solve(lower: FloatArray, residual: FloatArray, uncertain: IntArray) -> Solved:
    """Solve, and raise the variance of rows that contradict what all others say of them.

    The worst row goes first, because it makes its neighbours look wrong as well.

    Args:
        lower: of :func:`inverse_root`.
        uncertain: indices of the rows that may be doubted.
    """
    raised: dict[int, float] = {}
    sizes: list[float] = []
    along: list[FloatArray] = []
    pull = lower.T @ (lower @ residual)
    spread = (lower**2).sum(axis=0)
    while len(uncertain) and len(raised) < MOST_DOUBTED:
        apart = (np.abs(pull) / np.sqrt(spread))[uncertain]
        worst = int(uncertain[apart.argmax()])
        if apart.max() <= OUTLIER or worst in raised:
            break
        raised[worst] = float(pull[worst] / spread[worst]) ** 2
        column = lower[:, worst]
        for size, other in zip(sizes, along, strict=True):
            column = column - size * (other @ column) * other
        # Its column of the inverse is W.T @ column: what bends W so far is symmetric.
        row = column
        for size, other in zip(reversed(sizes), reversed(along), strict=True):
            row = row - size * (other @ row) * other
        row = lower.T @ row
        # Sherman and Morrison: the inverse after one variance is raised.
        length = float(column @ column)
        weight = raised[worst] / (1.0 + raised[worst] * length)
        pull = pull - weight * pull[worst] * row
        spread = spread - weight * row**2
        sizes.append((1.0 - (1.0 - weight * length) ** 0.5) / length)
        along.append(column)
        give_way()
    bends = np.array(along).reshape(len(along), len(lower))
    return Solved(Root(lower, np.array(sizes), bends), pull, raised)
