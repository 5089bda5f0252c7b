"""Requests that meet streams of drafts, step by step, as vLLM's adaptive verification has them.

What vLLM 0.33 does on the GPU (``acceptance_estimator.py``, ``adaptive_verification.py``) is done
here on arrays. A step's number of drafts is chosen by the confidences of the step before, and which
they are by its own.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.verification.load import BEGIN, Point
from benchmarks.verification.streams import Streams

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
FIRST_SLOPE, FIRST_BIAS, REFIT_INTERVAL, DAMPING, L2 = 0.5, -0.2, 100, 50.0, 1e-3
"""vLLM's (``acceptance_estimator.py``)."""


class Estimator:
    """vLLM's acceptance estimator: one slope, and an intercept for each drafted token."""

    def __init__(self, drafts: int) -> None:
        self.slope, self.intercepts = FIRST_SLOPE, np.full(drafts, FIRST_BIAS)
        self._steps = 0
        self._begin_round(drafts)

    def _begin_round(self, drafts: int) -> None:
        self._info, self._grad = np.zeros((drafts, 3)), np.zeros((drafts, 2))
        self._counts = np.zeros(drafts)

    def copy(self) -> Estimator:
        """One that learns on by itself."""
        return copy.deepcopy(self)

    def cut(self, drafts: int) -> Estimator:
        """One of fewer drafts, that learns on by itself."""
        found = Estimator(drafts)
        found.slope, found.intercepts = self.slope, self.intercepts[:drafts]
        return found

    def predict(self, log_odds: FloatArray) -> FloatArray:
        """Probability that each token is accepted if those before it are; [requests, drafts]."""
        return np.asarray(1.0 / (1.0 + np.exp(-(self.slope * log_odds + self.intercepts))))

    def step(
        self, log_odds: FloatArray, predicted: FloatArray, accepted: IntArray, verified: IntArray
    ) -> None:
        """Learn from a step; [requests, drafts] and [requests]."""
        place = np.arange(len(self.intercepts))[None]
        seen = (place <= accepted[:, None]) & (place < verified[:, None])
        weight = np.where(seen, predicted * (1.0 - predicted), 0.0)
        error = np.where(seen, (place < accepted[:, None]) - predicted, 0.0)
        of = weight * log_odds
        self._info += np.stack([(of * log_odds).sum(0), of.sum(0), weight.sum(0)], axis=1)
        self._grad += np.stack([(error * log_odds).sum(0), error.sum(0)], axis=1)
        self._counts += seen.sum(0)
        self._steps += 1
        if self._steps % REFIT_INTERVAL == 0:
            self._refit()

    def _refit(self) -> None:
        a, b, c = self._info[:, 0].sum() + L2, self._info[:, 1], self._info[:, 2] + L2
        g0, g1, n = self._grad[:, 0].sum(), self._grad[:, 1], self._counts
        slope = (g0 - (b * g1 / c).sum()) / (a - (b * b / c).sum()) * n.sum() / (n.sum() + DAMPING)
        if not np.isfinite(slope) or self.slope + slope < 0.0:
            slope = 0.0
        self.slope += float(slope)
        self.intercepts = self.intercepts + (g1 - b * slope) / c * n / (n + DAMPING)
        self._begin_round(len(n))


@dataclass(frozen=True, slots=True)
class Walk:
    """What a load did, for each request."""

    tokens: float
    """Of a step."""
    milliseconds: float
    """Of a step."""
    verified: float
    """Drafts of a step."""

    @property
    def speed(self) -> float:
        """Tokens each millisecond."""
        return self.tokens / self.milliseconds


def chosen(confidences: FloatArray, costs: FloatArray) -> int:
    """How many drafts vLLM verifies.

    Args:
        confidences: [requests, drafts]
        costs: of a step, by drafts that it verifies; any unit.
    """
    survival = np.sort(np.cumprod(confidences, axis=1).ravel())[::-1]
    tokens = len(confidences) + np.concatenate(([0.0], np.cumsum(survival)))
    return int(np.argmax(tokens / costs))


def walk(
    streams: Streams, point: Point, costs: FloatArray, took: FloatArray, estimator: Estimator,
    fixed: int | None = None,
) -> Walk:  # fmt: skip
    """Run a load until all requests have passed the measured places.

    Args:
        costs: of a step, by drafts that it verifies, as the choice has them.
        took: milliseconds that it takes; the same.
        fixed: drafts that each step verifies; None: the choice's.
    """
    requests = np.arange(point.requests)
    places = np.ones(point.requests, dtype=np.int64)
    confidences: FloatArray | None = None
    steps = verified = 0
    tokens = milliseconds = 0.0
    while places.min() < BEGIN + point.places:
        row = (places - 1) % streams.accepted.shape[1]
        log_odds = streams.log_odds[requests, row].astype(np.float64)
        predicted = estimator.predict(log_odds)
        stale = np.ones_like(predicted) if confidences is None else confidences
        drafts = chosen(stale, costs) if fixed is None else fixed
        best = np.argsort(-np.cumprod(predicted, axis=1).ravel(), kind="stable")[:drafts]
        lengths = np.bincount(best // predicted.shape[1], minlength=point.requests)
        accepted = np.minimum(streams.accepted[requests, row], lengths)
        estimator.step(log_odds, predicted, accepted, lengths)
        places = places + 1 + accepted
        steps, verified = steps + 1, verified + drafts
        tokens, milliseconds = tokens + float((1 + accepted).mean()), milliseconds + took[drafts]
        confidences = predicted
    return Walk(tokens / steps, milliseconds / steps, verified / steps / point.requests)
