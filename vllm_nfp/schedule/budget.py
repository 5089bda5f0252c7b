"""The overhead budget: probing may take a fraction of the time, and delay a fraction of the steps.

Two bounds hold at once. The fraction of time bounds the loss of throughput, and how often a request
arrives while a probe runs. The fraction of decode steps bounds the delays that users see: a pair
delays one step, and so one inter-token interval of each running sequence. If far fewer than 1 % of
the steps are delayed, the 99th percentile of the intervals does not change.

Both shrink with the load. vLLM's scheduler takes waiting requests up until the step is full of
tokens, ``--max-num-seqs`` sequences run, or the KV cache is full. So ahead of a decode step that is
none of these no request waits, and a probe there delays no first token.
"""

from __future__ import annotations

from vllm_nfp.types import EngineStep

LARGE_BUDGET = 0.05
"""A share of the time above which each step may have a pair ahead of it."""
MOST_SAVED_PROBES = 2.0
"""Largest allowance that is saved, in probes: a quiet hour must not end in a burst of them."""
FULL_MEMORY_STEPS = 64
"""Steps over which the fraction of full steps is averaged: many of them mean a queue of prompts."""
SLACK_MEMORY_STEPS = 512
"""Steps over which the slack that is shown is averaged: some seconds."""
PREEMPTED_STEPS = 128
"""Steps without allowance after a preemption: the sequences that were preempted wait."""


class Budget:
    """Earns a fraction of each real step's time and spends it on probes.

    A probe starts when its expected cost has been earned and enough decode steps have passed since
    the last one. If it costs more than expected, the debt is paid off before the next one.

    Args:
        share: largest probe time / (real + probe) time.
        step_share: largest fraction of decode steps that a probe delays; 1 does not bound it. In a
            window of n decode steps at most one more than n times this fraction is delayed.
    """

    def __init__(self, share: float, step_share: float = 1.0) -> None:
        self._share = share
        self._step_share = step_share
        self._saved = 0.0
        self._saved_steps = 0.0
        self._expected = 0.0
        self._full = 0.0
        self._held = 0
        """Steps that are left without allowance."""
        self._just_preempted = False
        """The last look saw it; some of the steps that the next look stands for came before it."""
        self._slack = 1.0
        """Fraction of the budget that is earned at the step that was looked at last."""
        self.slack = 1.0
        """Mean of that fraction over the last :data:`SLACK_MEMORY_STEPS` steps."""
        self.real_seconds = 0.0
        self.probe_seconds = 0.0
        self.steps = 0
        self.decode_steps = 0
        self.probed_steps = 0

    def observe(self, step: EngineStep, stands_for: int = 1) -> None:
        """Take in the load of the next step, as the scheduler planned it.

        Args:
            stands_for: steps that this one stands for, its own among them.
        """
        self.steps += stands_for
        full = 1.0 if step.full else 0.0
        self._full += (full - self._full) * min(1.0, stands_for / FULL_MEMORY_STEPS)
        self._hold_back(step.preempted, stands_for)
        if step.full or self._held:
            self._slack = 0.0
        else:
            self._slack = max(0.0, 1.0 - step.fullness) * (1.0 - self._full)
        self.slack += (self._slack - self.slack) * min(1.0, stands_for / SLACK_MEMORY_STEPS)
        if step.decode:
            self.decode_steps += stands_for
            earned = stands_for * self._step_share * self._slack
            self._saved_steps = min(self._saved_steps + earned, 1.0)

    def _hold_back(self, preempted: bool, stands_for: int) -> None:
        if preempted:
            self._held = PREEMPTED_STEPS
        else:
            self._held = max(0, self._held - (1 if self._just_preempted else stands_for))
        self._just_preempted = preempted

    def earn(self, step_seconds: float) -> None:
        """A real step took this long."""
        self.real_seconds += step_seconds
        share = self._share * self._slack
        earned = share / (1.0 - share) * step_seconds
        most = max(MOST_SAVED_PROBES * self._expected, earned)
        self._saved = min(self._saved + earned, max(most, self._saved))

    def affords(self, expected_seconds: float) -> bool:
        """Whether a probe of this cost may start now."""
        self._expected = expected_seconds
        if self.off or self._slack <= 0.0 or self._saved < expected_seconds:
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
    def in_debt(self) -> bool:
        """Whether a probe that another engine plans may not delay a step of this one now."""
        delayed = self._step_share < 1.0 and self._saved_steps < 1.0 - 1e-9
        return self._slack <= 0.0 or self._saved < 0.0 or delayed

    @property
    def step_ratio(self) -> float:
        """Fraction of the decode steps so far that a probe has delayed."""
        return self.probed_steps / self.decode_steps if self.decode_steps else 0.0

    @property
    def off(self) -> bool:
        """No probe may run at all."""
        return self._share <= 0.0

    @property
    def overhead_ratio(self) -> float:
        """Fraction of all device time that probes took so far."""
        total = self.real_seconds + self.probe_seconds
        return self.probe_seconds / total if total else 0.0
