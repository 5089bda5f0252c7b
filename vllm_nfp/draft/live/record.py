"""How far forecasts have been off, and what a new one must promise to be worth a trial.

The result of a trial stands for itself: weighing it with its forecast changed goodput by 0.1 % at
most in every scenario of benchmarks/draft_ablation.py (docs/draft-control.md).
"""

from __future__ import annotations

import math
from collections import deque

from vllm_nfp.draft.live.trial import Basis

SPREAD = {Basis.FAR: 0.2, Basis.BESIDE: 0.065}
"""Standard deviation of the logarithm of a forecast time, by what it rests on, before any trial."""
SPREAD_TRIALS = 4.0
"""Trials after which their errors count as much as that."""
LEAST_SPREAD = 0.01
KEPT_ERRORS = 32
DOUBT = 2.0
"""A length is tried if it would win even after an error of so many standard deviations."""
MOST_PLAUSIBLE = 0.95
WIDELY_PLAUSIBLE = 0.6
"""Fraction of the best known goodput that a length must promise when there is credit to spare. It
is this low because a batch just beyond the edge of a stair takes 1.5 times as long as its measured
neighbour."""


class Record:
    """Errors of the last forecasts, by what they rested on."""

    def __init__(self) -> None:
        self._squares = {basis: deque[float](maxlen=KEPT_ERRORS) for basis in Basis}

    def add(self, basis: Basis, forecast: float, ratio: float, error: float) -> None:
        """Take in the error of a forecast that a trial has shown.

        Args:
            error: standard error of the logarithm of the measured ratio.
        """
        out = math.log(ratio / forecast)
        self._squares[basis].append(max(0.0, out * out - error * error))

    def spread(self, basis: Basis) -> float:
        """Standard deviation of the logarithm of a forecast time."""
        squares = self._squares[basis]
        first = SPREAD_TRIALS * SPREAD[basis] ** 2
        return max(
            LEAST_SPREAD, math.sqrt((first + math.fsum(squares)) / (SPREAD_TRIALS + len(squares)))
        )

    def plausible(self, basis: Basis, wide: bool) -> float:
        """Fraction of the best goodput that such a forecast must promise to be worth a trial.

        Args:
            wide: there is credit to spare, also for unlikely lengths.
        """
        if wide:
            return WIDELY_PLAUSIBLE
        return min(MOST_PLAUSIBLE, math.exp(-DOUBT * self.spread(basis)))
