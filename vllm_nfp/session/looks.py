"""Which real steps are looked at, what they are, and how many steps each look stands for."""

from __future__ import annotations

from typing import Any

from vllm_nfp.adapter.runner import RunnerView
from vllm_nfp.adapter.steps import StepLimits, requests_wait, step_of
from vllm_nfp.timing import Periods, Sampler
from vllm_nfp.types import EngineStep


class Looks:
    """Looks at every step in which requests may wait, and at a sample of the others.

    Args:
        sampler: chooses among the others.
        limits: the most that a step may hold.
        view: the runner of the steps.
        periods: is told of every step, looked at or not.
    """

    def __init__(
        self, sampler: Sampler, limits: StepLimits, view: RunnerView, periods: Periods
    ) -> None:
        self._sampler = sampler
        self._limits = limits
        self._view = view
        self._periods = periods
        self.stands_for = 0
        """Steps that the latest one stands for, its own among them; 0 if it is not looked at."""
        self.reads_prompts = False
        """Whether the latest step has tokens of a prompt: more than a decode may have."""
        self._latest: EngineStep | None = None

    def at(self, scheduler_output: Any) -> int:
        """Steps that a look at this one stands for; 0 if it is not looked at.

        A step in which requests may wait stands for itself, and the sampler does not count it.
        Chance alone chooses among the others, so that these stand for all of them. This runs before
        every step.
        """
        counts = scheduler_output.num_scheduled_tokens
        if not counts:
            self.skip()
            return 0
        self.stands_for = 0
        tokens, new = (
            scheduler_output.total_num_scheduled_tokens,
            scheduler_output.scheduled_new_reqs,
        )
        self.reads_prompts = bool(new) or tokens > self._view.decode_positions * len(counts)
        self._periods.step(len(counts), tokens, new)
        if requests_wait(scheduler_output, self._limits):
            self.stands_for = 1
        elif self._sampler.look():
            self.stands_for = self._sampler.stands_for
        return self.stands_for

    def skip(self) -> None:
        """No step runs now, but maybe a dummy batch."""
        self.stands_for = 0
        self.reads_prompts = False
        self._periods.interrupt()

    def step(self, scheduler_output: Any) -> EngineStep | None:
        """The step as the scheduler planned it; None if it runs nothing."""
        self._latest = step_of(scheduler_output, self._view.decode_positions, self._limits)
        return self._latest

    def trimmed(self, tokens: int) -> EngineStep | None:
        """The latest step with so many tokens, as vLLM has cut it; None if it is not looked at."""
        self._periods.cut(tokens)
        if not self.stands_for or self._latest is None:
            return None
        return self._latest.trimmed(tokens)
