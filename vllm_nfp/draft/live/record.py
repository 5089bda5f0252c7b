"""How far forecasts have been off, and what that makes of a new forecast and of a trial."""

from __future__ import annotations

import math
from collections import deque

from vllm_nfp.draft.live.trial import Basis

SPREAD = {Basis.FAR: 0.2, Basis.BESIDE: 0.065, Basis.NEAR: 0.033}
"""How far forecasts are out, as the standard deviation of the logarithm of a time, by what they
rest on, as long as no trial has told."""
SPREAD_TRIALS = 4.0
"""Trials after which what they told counts as much as that."""
LEAST_SPREAD = 0.01
LEAST_ERROR = 0.015
"""Of a trial: its turns lie side by side, and tell less than as many by themselves."""
KEPT_ERRORS = 32
CONTRADICTION = 3.0
"""A forecast that is out by so many standard deviations of both counts for nothing."""
DOUBT = 2.0
"""A length is tried if it would be worth it after an error of so many standard deviations."""
MOST_PLAUSIBLE = 0.95
WIDELY_PLAUSIBLE = 0.6
"""Share of the best known goodput that a length must promise where surprises are looked for. So
low because a batch beside the edge of a stair takes half as long again as its measured neighbour.
"""


class Record:
    """How far forecasts of late were out, by what they rested on."""

    def __init__(self) -> None:
        self._squares = {basis: deque[float](maxlen=KEPT_ERRORS) for basis in Basis}

    def add(self, basis: Basis, forecast: float, ratio: float, error: float) -> None:
        """Take in what a trial told of a forecast.

        Args:
            error: standard error of the logarithm of the measured ratio.
        """
        out = math.log(ratio / forecast)
        self._squares[basis].append(max(0.0, out * out - error * error))

    def spread(self, basis: Basis) -> float:
        """Standard deviation of the logarithm of a time that was forecast."""
        squares = self._squares[basis]
        first = SPREAD_TRIALS * SPREAD[basis] ** 2
        return max(
            LEAST_SPREAD, math.sqrt((first + math.fsum(squares)) / (SPREAD_TRIALS + len(squares)))
        )

    def plausible(self, basis: Basis, wide: bool) -> float:
        """Share of the best goodput that such a promise must have to be worth a trial.

        Args:
            wide: look for surprises, whatever earlier forecasts were worth.
        """
        if wide:
            return WIDELY_PLAUSIBLE
        return min(MOST_PLAUSIBLE, math.exp(-DOUBT * self.spread(basis)))

    def weighed(self, basis: Basis, forecast: float, ratio: float, error: float) -> float:
        """The likeliest ratio, given its forecast and what was measured.

        Both are weighed by their variances. Where steps scatter, as with few sequences and
        experts, a forecast that has proven itself says more than some steps do.

        Args:
            error: standard error of the logarithm of the measured ratio.
        """
        error, spread = max(error, LEAST_ERROR), self.spread(basis)
        if abs(math.log(ratio / forecast)) > CONTRADICTION * math.hypot(error, spread):
            return ratio
        told, expected = 1.0 / error**2, 1.0 / spread**2
        return math.exp(
            (told * math.log(ratio) + expected * math.log(forecast)) / (told + expected)
        )
