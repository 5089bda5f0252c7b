"""Answers of the cost surface as the rows that are published."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from vllm_nfp.surface import BoundaryAnswer, CellAnswer, boundary
from vllm_nfp.types import Basis, Boundary, Cell, CurvePoint

Seconds: TypeAlias = "tuple[float, float, float]"
"""Median, and both ends of the 95 % interval."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A cell's answer at the positions that it can run, as plain numbers."""

    positions: tuple[int, ...]
    ratios: tuple[Seconds, ...]
    """t(N) / t(1) with its interval."""
    basis: tuple[Basis, ...]
    boundaries: tuple[BoundaryAnswer, ...]

    def curve(
        self,
        cell: Cell,
        at_one: Seconds,
        samples: Callable[[int], int],
        execution: Callable[[int, int], str],
    ) -> tuple[CurvePoint, ...]:
        """The rows of the curve.

        Args:
            at_one: t(1) in seconds.
            samples: pairs of the shape of so many positions.
            execution: how a step of (batch size, positions) runs.
        """
        pairs = [samples(n) for n in self.positions[1:]]
        counted = (sum(pairs), *pairs)
        rows = zip(
            self.positions, counted, self.ratios, self._times(at_one), self.basis, strict=True
        )
        return tuple(
            CurvePoint(
                *cell, n, taken, time[0], *ratio, execution(cell.batch_size, n), *time[1:], basis
            )
            for n, taken, ratio, time, basis in rows
        )

    def _times(self, at_one: Seconds) -> Iterable[Seconds]:
        """t(N) in seconds, whose two factors err independently."""
        median, below, above = at_one[0], at_one[0] / at_one[1], at_one[2] / at_one[0]
        ratio, lower, upper = np.array(self.ratios).T
        times = median * ratio
        below = np.exp(np.hypot(np.log(ratio / lower), np.log(below)))
        above = np.exp(np.hypot(np.log(upper / ratio), np.log(above)))
        return zip(times.tolist(), (times / below).tolist(), (times * above).tolist(), strict=True)

    def lines(self, cell: Cell) -> tuple[Boundary, ...]:
        """The rows of the boundaries."""
        return tuple(
            Boundary(
                *cell,
                found.epsilon,
                found.positions,
                found.lower,
                found.upper,
                found.at_limit,
                found.largest_free,
                found.basis,
            )
            for found in self.boundaries
        )


def answered(answer: CellAnswer, positions: tuple[int, ...], epsilons: Sequence[float]) -> Answered:
    """The answer at some of its positions.

    Args:
        positions: ascending from 1, among those of the answer.
    """
    if positions != tuple(answer.positions.tolist()):
        answer = _at(answer, positions)
    lower, upper = answer.interval
    ratios = zip(answer.ratio.tolist(), lower.tolist(), upper.tolist(), strict=True)
    lines = tuple(boundary(answer, epsilon) for epsilon in epsilons)
    return Answered(positions, tuple(ratios), answer.basis, lines)


def _at(answer: CellAnswer, positions: tuple[int, ...]) -> CellAnswer:
    at = np.searchsorted(answer.positions, positions)
    return replace(
        answer,
        positions=answer.positions[at],
        log_ratio=answer.log_ratio[at],
        covariance=answer.covariance[np.ix_(at, at)],
        basis=tuple(answer.basis[i] for i in at),
        curves=answer.curves[:, at],
        limits=tuple(tuple(of[i] for i in at) for of in answer.limits),
    )
