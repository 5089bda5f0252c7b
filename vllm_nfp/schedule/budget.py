"""The overhead budget: probing may take a fraction of the time, and delay a fraction of the steps.

Two bounds hold at once. The fraction of time bounds the loss of throughput. The fraction of steps
bounds the delays that users see: a pair delays one step, and so one inter-token interval of each
running sequence. If far fewer than 1 % of the steps are delayed, the 99th percentile of the
intervals does not change.
"""

from __future__ import annotations

LARGE_BUDGET = 0.05
"""A share of the time above which each step may have a pair ahead of it."""
MOST_SAVED_PROBES = 2.0
"""Largest allowance that is saved, in probes: a quiet hour must not end in a burst of them."""
BUSY_MEMORY_STEPS = 64
"""Steps over which the fraction of steps that read prompts is averaged."""
QUEUED_STEPS = 128
"""Steps without allowance after a sign that requests wait."""


class Budget:
    """Earns a fraction of each real step's time and spends it on probes.

    A probe starts when its expected cost has been earned and enough steps have passed since the
    last one. If it costs more than expected, the debt is paid off before the next one.

    Args:
        share: largest probe time / (real + probe) time.
        step_share: largest fraction of steps that a probe delays; 1 does not bound it.
    """

    def __init__(self, share: float, step_share: float = 1.0) -> None:
        self._share = share
        self._step_share = step_share
        self._saved = 0.0
        self._saved_steps = 0.0
        self._expected = 0.0
        self._busy = 0.0
        self._queued = 0
        self._just_queued = False
        """The last look saw it; some of the steps that the next look stands for came before it."""
        self.slack = 1.0
        """Fraction of the budget that the load leaves: 1 on a quiet server, 0 if requests wait."""
        self.real_seconds = 0.0
        self.probe_seconds = 0.0
        self.steps = 0
        self.probed_steps = 0

    def observe(
        self, fullness: float, reads_prompt: bool, waiting: bool, stands_for: int = 1
    ) -> None:
        """Take in the load of the next step, as the scheduler planned it.

        Args:
            fullness: running sequences over the most that may run.
            reads_prompt: the step reads a prompt.
            waiting: requests wait: sequences were preempted, or a limit of the step was reached.
            stands_for: steps that this one stands for, its own among them.
        """
        self.steps += stands_for
        weight = min(1.0, stands_for / BUSY_MEMORY_STEPS)
        self._busy += ((1.0 if reads_prompt else 0.0) - self._busy) * weight
        self._forget_queue(waiting, stands_for)
        self.slack = 0.0 if self._queued else max(0.0, 1.0 - fullness) * (1.0 - self._busy)
        earned = stands_for * self._step_share * self.slack
        self._saved_steps = min(self._saved_steps + earned, 1.0)

    def _forget_queue(self, waiting: bool, stands_for: int) -> None:
        if waiting:
            self._queued = QUEUED_STEPS
        else:
            self._queued = max(0, self._queued - (1 if self._just_queued else stands_for))
        self._just_queued = waiting

    def earn(self, step_seconds: float) -> None:
        """A real step took this long."""
        self.real_seconds += step_seconds
        share = self._share * self.slack
        earned = share / (1.0 - share) * step_seconds
        most = max(MOST_SAVED_PROBES * self._expected, earned)
        self._saved = min(self._saved + earned, max(most, self._saved))

    def affords(self, expected_seconds: float) -> bool:
        """Whether a probe of this cost may start now."""
        self._expected = expected_seconds
        if self.off or self.slack <= 0.0 or self._saved < expected_seconds:
            return False
        return self._step_share >= 1.0 or self._saved_steps >= 1.0 - 1e-9

    def started(self) -> None:
        """A probe delays the step that comes next."""
        self._saved_steps = 0.0
        self.probed_steps += 1

    def spend(self, cost_seconds: float) -> None:
        """A probe took this long."""
        self._saved -= cost_seconds
        self.probe_seconds += cost_seconds

    @property
    def step_ratio(self) -> float:
        """Fraction of the steps so far that a probe has delayed."""
        return self.probed_steps / self.steps if self.steps else 0.0

    @property
    def off(self) -> bool:
        """No probe may run at all."""
        return self._share <= 0.0

    @property
    def overhead_ratio(self) -> float:
        """Fraction of all device time that probes took so far."""
        total = self.real_seconds + self.probe_seconds
        return self.probe_seconds / total if total else 0.0
