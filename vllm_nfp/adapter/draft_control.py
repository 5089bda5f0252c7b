"""The live controller of draft lengths in vLLM's engine core.

It watches the scheduler's steps and writes ``Scheduler.dynamic_sd_lookup``, the list by batch size
that ``schedule()`` reads for the number of drafts to propose. A length reaches the workers within
the scheduler's output, so that all ranks follow it alike, and a draft length of 0 goes the same
way as any other: the proposer still takes the step in, and the drafts of the step before are
verified or dropped by vLLM itself.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from vllm_nfp.adapter import targets
from vllm_nfp.adapter.draft_lengths import candidate_lengths
from vllm_nfp.adapter.draft_steps import ScheduledStep, observe, reads_prompts
from vllm_nfp.adapter.draft_support import known_method, refusal, widest_graph
from vllm_nfp.adapter.patch import MissingTargetError, PatchSet
from vllm_nfp.adapter.support import served_name
from vllm_nfp.config import ConfigError, ProbeConfig
from vllm_nfp.draft.live import Controller, Settings, StepObservation
from vllm_nfp.draft.live.report import pieces_of_report
from vllm_nfp.draft.live.reporter import Reporter
from vllm_nfp.draft.live.steps import context_cell
from vllm_nfp.faults import maybe_fail
from vllm_nfp.results.control import ControlSnapshot, ControlState

logger = logging.getLogger("vllm.nfp")

MOST_UNDER_WAY = 256
"""Steps that are planned and not finished; vLLM has one or two. Bounds the memory."""


def install(patches: PatchSet, config: ProbeConfig) -> None:
    """Give every scheduler that this process makes a controller."""

    def init(original: Any) -> Any:
        def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
            original(self, *args, **kwargs)
            attach(self, config, patches)

        return wrapped

    patches.wrap(targets.SCHEDULER_INIT, init)


def attach(scheduler: Any, config: ProbeConfig, patches: PatchSet) -> DraftControl | None:
    """Put a scheduler under control; None, with the reason in log and metrics, if it cannot be."""
    try:
        control = DraftControl(scheduler, config, patches)
    except Exception:  # a vLLM that keeps its settings elsewhere: the report needs them as well
        logger.exception("vllm-nfp: the draft control is disabled: fault before it began")
        return None
    try:
        maybe_fail("draft_control")
        reason = refusal(scheduler)
        if reason is None:
            control.begin()
            return control
        control.disable(reason, expected=True)
    except (ConfigError, MissingTargetError) as error:
        control.disable(str(error), expected=True)
    except Exception as error:
        control.fault(error)
    return None


class DraftControl:
    """One scheduler's draft lengths.

    Every entry point contains its own faults: a fault puts the configured table back, takes the
    hooks out, says why, and never reaches the server.

    Args:
        scheduler: vLLM's, with its configured table in ``dynamic_sd_lookup``.
        config: the settings.
        patches: what was replaced in this process; the scheduler's hooks become a part of it.
    """

    def __init__(self, scheduler: Any, config: ProbeConfig, patches: PatchSet) -> None:
        self._scheduler = scheduler
        self._config = config
        self._static: Sequence[int] = ()
        vllm_config = scheduler.vllm_config
        self._identity = ControlSnapshot(
            model_name=served_name(vllm_config),
            engine=str(vllm_config.parallel_config.data_parallel_index),
            state=ControlState.LEARNING,
            method=known_method(vllm_config.speculative_config),
        )
        self._patches = patches.part()
        self._controller: Controller | None = None
        self._reporter: Reporter | None = None
        self._under_way: deque[ScheduledStep] = deque(maxlen=MOST_UNDER_WAY)
        self._asked_before: int | None = None
        self._last_output: float | None = None
        self._last_length: int | None = None
        self._applied: tuple[int, int] | None = None
        self._next_report = 0.0
        self._report_under_way: Iterator[ControlSnapshot | None] | None = None

    @property
    def controller(self) -> Controller | None:
        """The controller; None once it is disabled."""
        return self._controller

    @property
    def last_length(self) -> int | None:
        """Draft length of the last decode step; None before the first."""
        return self._last_length

    def pause(self) -> None:
        """Put the configured table back, keeping what was learned."""
        self._patches.restore()

    def _give_back(self) -> None:
        self._under_way.clear()
        self._last_output = self._applied = self._asked_before = None
        self._scheduler.dynamic_sd_lookup = self._static

    def resume(self) -> None:
        """Take over again, unless disabled."""
        if self._controller is not None:
            self._hook()

    def begin(self) -> None:
        """Take over.

        Raises:
            ConfigError: if draft_lengths does not fit the server.
            MissingTargetError: if vLLM's scheduler has no steps to follow.
        """
        self._static = self._scheduler.dynamic_sd_lookup
        longest = int(self._scheduler.num_spec_tokens)
        lengths = candidate_lengths(self._config, longest, self._static[1:])
        settings = Settings(
            lengths,
            self._config.draft_min_gain,
            self._config.draft_trial_loss,
            widest_graph(self._scheduler.vllm_config),
        )
        self._controller = Controller(self._static, settings)
        self._reporter = Reporter(self._config, self._identity.engine)
        self._hook()
        self._report(time.perf_counter())
        logger.info(
            "vllm-nfp: draft lengths are chosen live from %s; the configured ones stay in force "
            "until others are measured to be faster",
            list(lengths),
        )

    def _hook(self) -> None:
        def schedule(original: Any) -> Any:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                output = original(*args, **kwargs)
                try:
                    self.scheduled(output)
                except Exception as error:
                    self.fault(error)
                return output

            return wrapped

        def update_from_output(original: Any) -> Any:
            def wrapped(output: Any, model_output: Any, *args: Any, **kwargs: Any) -> Any:
                try:
                    # Before vLLM cuts the tokens at a stop.
                    self.finished(output, model_output, time.perf_counter())
                except Exception as error:
                    self.fault(error)
                return original(output, model_output, *args, **kwargs)

            return wrapped

        self._patches.wrap(targets.SCHEDULE, schedule, on=self._scheduler)
        self._patches.wrap(targets.UPDATE_FROM_OUTPUT, update_from_output, on=self._scheduler)
        # Undone first, while the scheduler's hooks keep this object alive; not kept alive by it.
        give_back = weakref.WeakMethod(self._give_back)
        self._patches.on_restore(lambda: None if (call := give_back()) is None else call())

    def scheduled(self, output: Any) -> None:
        """A step was planned: the drafts that it verifies were asked for by the one before."""
        if self._controller is None or not output.num_scheduled_tokens:
            return
        before, asks = self._asked_before, int(output.num_spec_tokens_to_schedule)
        self._asked_before = asks
        if before is not None:  # who planned the step before is not known otherwise
            self._under_way.append(ScheduledStep(output, before, asks))

    def finished(self, output: Any, model_output: Any, now: float) -> None:
        """A step's tokens are there."""
        if self._controller is None or not output.num_scheduled_tokens:
            return
        step = self._take(output)
        before, self._last_output = self._last_output, now
        if any(reads_prompts(later.output) for later in self._under_way):
            before = None  # the host launched a prompt's step before it looked at this one
        if step is not None:
            self._learn(self._controller, step, observe(step, model_output, before, now), now)
        if not self._scheduler.running:
            self._last_output = None  # what follows is no step after a step
        if self._report_under_way is not None or now >= self._next_report:
            self._report(now)

    def _learn(
        self,
        controller: Controller,
        step: ScheduledStep,
        observed: StepObservation | None,
        now: float,
    ) -> None:
        """Have the controller take in a step, and put its table in force."""
        if observed is not None:
            self._last_length = observed.draft_length
            if controller.observe(observed, now):
                controller.decide(observed.batch_size, observed.context, now)
            self._apply(controller, context_cell(observed.context))
        elif self._applied is not None:
            _, context = self._applied
            controller.passed(len(step.output.num_scheduled_tokens), context, step.asked)
            self._apply(controller, context)

    def _take(self, output: Any) -> ScheduledStep | None:
        if not any(step.output is output for step in self._under_way):
            return None  # planned before the hooks were in place
        while (step := self._under_way.popleft()).output is not output:
            pass
        return step

    def _apply(self, controller: Controller, context: int) -> None:
        """Write the table of a context's cell where it has changed."""
        key = (controller.version, context)
        if key != self._applied:
            self._applied = key
            self._scheduler.dynamic_sd_lookup = controller.table(context)

    def _report(self, now: float) -> None:
        """Begin a report, or add a piece to it: each step of a busy server does a little."""
        controller, reporter = self._controller, self._reporter
        if controller is None or reporter is None:
            return
        if self._report_under_way is None:
            self._next_report = now + self._config.publish_seconds
            if reporter.curves is not None:
                controller.set_curves(reporter.curves)
            self._report_under_way = pieces_of_report(controller, self._identity)
        for snapshot in self._report_under_way:
            if snapshot is not None:
                self._report_under_way = None
                reporter.put(replace(snapshot, live_draft_length=self._last_length))
                return
            if self._scheduler.running:
                return

    def fault(self, error: Exception) -> None:
        """Disable the control after an exception."""
        logger.error("vllm-nfp: fault in the draft control", exc_info=error)
        self.disable(f"fault: {error!r}")

    def disable(self, reason: str, expected: bool = False) -> None:
        """Restore the configured table permanently.

        Args:
            expected: the reason is a setting or feature, known at the start, and no fault.
        """
        log = logger.warning if expected else logger.error
        log(
            "vllm-nfp: the draft control is disabled: %s; the configured draft lengths are in "
            "force",
            reason,
        )
        self._controller = None
        try:
            self._patches.restore()
            if self._reporter is None:
                self._reporter = Reporter(self._config, self._identity.engine)
            self._reporter.end(replace(self._identity, state=ControlState.DISABLED, reason=reason))
        except Exception:
            logger.exception("vllm-nfp: /metrics will not show that the draft control is disabled")
