"""What became of the drafts of all steps, in numbers."""

from __future__ import annotations

from vllm_nfp.adapter.verification import Admitted

STALLED_STEPS = 100
"""Steps without any verified draft after which nothing is learned: vLLM fits its confidences anew
every 100 steps, to the drafts that were verified since (``OnlineAcceptanceEstimator``, 0.32)."""


class StepCounts:
    """Counts steps with drafts. The serving thread alone counts; any thread may read."""

    __slots__ = ("_without", "admitted", "expected", "measured_steps", "scheduled", "steps")

    def __init__(self) -> None:
        self.steps = 0
        self.measured_steps = 0
        """Those whose drafts were chosen by measured costs."""
        self.scheduled = 0
        """Drafts that were there."""
        self.admitted = 0
        """Those of them that were verified."""
        self.expected = 0.0
        """Drafts that vLLM expected to be accepted."""
        self._without = 0
        """Steps in a row with drafts of which none was verified."""

    def count(self, admitted: Admitted, measured: bool) -> None:
        """Count a step.

        Args:
            measured: measured costs have chosen.
        """
        scheduled, drafts = admitted.scheduled, admitted.drafts
        self.steps += 1
        self.scheduled += scheduled
        self.admitted += drafts
        if measured:
            self.measured_steps += 1
        if scheduled:
            self._without = 0 if drafts else self._without + 1

    @property
    def stalled(self) -> bool:
        """Whether drafts are made and none is verified."""
        return self._without >= STALLED_STEPS
