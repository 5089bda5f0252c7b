"""What passive mode does at the steps that are looked at, in the place of a prober."""

from __future__ import annotations

from vllm_nfp.schedule.counters import Counters
from vllm_nfp.timing import StepTimer
from vllm_nfp.types import EngineStep

NOTHING_TO_DO_SECONDS = 60.0
"""Time between two calls of ``idle`` if nothing is probed."""


class TimingOnly:
    """Times real steps, and probes nothing.

    Args:
        timer: times the steps.
    """

    def __init__(self, timer: StepTimer) -> None:
        self.timer = timer
        self._last_step: EngineStep | None = None

    def serving(self) -> None:
        """Nothing to do."""

    def before_step(self, step: EngineStep, stands_for: int) -> None:
        """Read the times that are there, and note what comes next."""
        self.timer.settle()
        self.timer.describe(step, stands_for)
        if step.decode:
            self._last_step = step

    def trimmed(self, step: EngineStep, stands_for: int) -> None:
        """vLLM has cut drafts of the step that was looked at: this is what runs now."""
        self.timer.describe(step, stands_for)
        if step.decode:
            self._last_step = step

    def idle(self) -> float:
        """Nothing to do."""
        return NOTHING_TO_DO_SECONDS

    def counters(self, graph_bytes: int) -> Counters:
        """The latest step alone."""
        return Counters(last_step=self._last_step, graph_bytes=graph_bytes)
