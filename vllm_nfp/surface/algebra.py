"""Linear algebra of the posterior: the root of an inverse, and observations that contradict."""

from __future__ import annotations

import numpy as np

from vllm_nfp.give_way import give_way
from vllm_nfp.surface.prior import FloatArray, IntArray

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


def times_root(root: FloatArray, columns: FloatArray) -> FloatArray:
    """root @ columns, without the half that is 0; gives way."""
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


def doubtful(root: FloatArray, residual: FloatArray, uncertain: IntArray) -> dict[int, float]:
    """Rows that contradict the prediction from all others, and by how much to raise their variance.

    The worst row goes first, because it makes its neighbours look wrong as well.

    Args:
        root: of :func:`inverse_root`.
        uncertain: indices of the rows that may be doubted.
    """
    raised: dict[int, float] = {}
    if not len(uncertain):
        return raised
    spread = (root**2).sum(axis=0)
    pull = root.T @ (root @ residual)
    changes: list[tuple[float, FloatArray]] = []
    while len(raised) < MOST_DOUBTED:
        size = (np.abs(pull) / np.sqrt(spread))[uncertain]
        worst = int(uncertain[size.argmax()])
        if size.max() <= OUTLIER or worst in raised:
            break
        raised[worst] = float(pull[worst] / spread[worst]) ** 2
        row = root.T @ root[:, worst]
        for weight, other in changes:
            row -= weight * other[worst] * other
        # Sherman and Morrison: the inverse after one variance is raised.
        weight = raised[worst] / (1.0 + raised[worst] * row[worst])
        pull = pull - weight * pull[worst] * row
        spread = spread - weight * row**2
        changes.append((weight, row))
        give_way()
    return raised
