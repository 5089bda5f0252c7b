"""The background side of the experts that steps choose: counts them, and predicts with them."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import TypeAlias

from vllm_nfp.give_way import give_way
from vllm_nfp.results.expert_counts import Choices, ExpertCounts
from vllm_nfp.types import ExpertRouting, Prediction

MOST_QUEUED = 16
"""Steps' choices that wait for the thread: bounds the memory."""
WORTH_PREDICTING = 0.1
"""Change of the routing's exponent from which predictions are repeated: twice the step in which it
is found."""

Predicts: TypeAlias = "Callable[[float], tuple[Prediction, ...]]"
"""The predictions for an exponent of the experts' shares."""


class CountedExperts:
    """What a publisher knows of its server's experts."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Choices] = queue.SimpleQueue()
        self._counts = ExpertCounts()
        self._predicted_skew = 0.0
        self._predicts: Predicts | None = None
        """None: nothing can be predicted."""

    @property
    def report(self) -> ExpertRouting | None:
        """As of the last update; any thread may read it."""
        return self._counts.report

    def predict_with(self, predicts: Predicts, skew: float) -> None:
        """Predict anew whenever the counted routing has changed enough; before the thread starts.

        Args:
            skew: the exponent that the first predictions are of.
        """
        self._predicts, self._predicted_skew = predicts, skew

    def put(self, choices: Choices) -> None:
        """Hand over what a step chose; called by the serving side, never blocks."""
        if self._queue.qsize() < MOST_QUEUED:
            self._queue.put(choices)

    def update(self) -> tuple[Prediction, ...] | None:
        """Take in what is new; gives way.

        Returns predictions with the routing that was counted, where it has changed enough.
        """
        while not self._queue.empty():
            self._counts.add(self._queue.get())
            give_way()
        self._counts.update()
        found = self.report
        if found is None or self._predicts is None:
            return None
        if abs(found.skew - self._predicted_skew) < WORTH_PREDICTING:
            return None
        self._predicted_skew = found.skew
        return self._predicts(found.skew)
