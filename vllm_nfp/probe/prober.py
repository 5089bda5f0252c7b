"""The loop between real steps: read what is ready, keep the budget, launch the next pair."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm_nfp.config import ProbeConfig
from vllm_nfp.faults import maybe_fail
from vllm_nfp.probe.budget import Budget
from vllm_nfp.probe.plan import CellKey, Planner, Target, bucket
from vllm_nfp.probe.types import EngineStep, PairResult, ProbeEngine, Shape, ShapeRefusedError
from vllm_nfp.timing import Clock, Mark

MOST_PENDING_STEPS = 256
"""Real steps whose end has not been read; beyond it the oldest are forgotten, unearned."""
PROGRESS_SECONDS = 0.5
"""Time between two reports of a scan's progress."""
RUNS_PER_PAIR = 4.0
"""First guess of a pair's cost, in real steps, until one has been measured."""


@dataclass(slots=True)
class _Flight:
    """A pair on the device."""

    target: Target
    tickets: list[Any]
    baseline_first: bool
    start: Mark
    end: Mark
    host_seconds: float
    charged: bool


class Prober:
    """Runs pairs of probes between real steps, within the budget.

    Args:
        engine: runs shapes.
        clock: marks the serving stream.
        planner: says what to run.
        budget: says when.
        sink: takes each finished pair.
        config: the probe's settings.
    """

    def __init__(
        self,
        engine: ProbeEngine,
        clock: Clock,
        planner: Planner,
        budget: Budget,
        sink: Callable[[PairResult], None],
        config: ProbeConfig,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self.planner = planner
        self.budget = budget
        self._sink = sink
        self._config = config
        self._rng = random.Random(config.seed)
        self._steps: deque[tuple[Mark, Mark]] = deque()
        self._step_start: Mark | None = None
        self._flight: _Flight | None = None
        self._last_step_seconds = 0.0
        self._last_pair_seconds = 0.0
        self.outcomes: dict[str, int] = {"measured": 0, "refused": 0}
        self.last_step: EngineStep | None = None

    def before_step(self, step: EngineStep) -> None:
        """A real step is about to be launched; may launch a pair ahead of it."""
        self.settle()
        if not step.decode:
            return
        self.last_step = step
        if self._flight is None:
            target = self._plan(step)
            if target is not None:
                self._launch(target, charged=True)

    def begin_step(self) -> None:
        """The real step's work is enqueued from here on."""
        if self._step_start is not None:
            # The step before ran nothing, so that its end was never told.
            self._release(self._step_start)
        self._step_start = self._clock.mark()

    def end_step(self) -> None:
        """The real step's work has been enqueued."""
        if self._step_start is None:
            return
        if len(self._steps) >= MOST_PENDING_STEPS:
            self._release(*self._steps.popleft())
        self._steps.append((self._step_start, self._clock.mark()))
        self._step_start = None

    def settle(self) -> None:
        """Read whatever the device has passed; waits for nothing."""
        while self._steps and self._clock.ready(self._steps[0][1]):
            start, end = self._steps.popleft()
            self._last_step_seconds = self._clock.seconds(start, end)
            self.budget.earn(self._last_step_seconds)
            self._release(start, end)
        if self._flight is not None and self._clock.ready(self._flight.end):
            self._finish(self._flight)

    def scan(
        self,
        seconds: float,
        on_progress: Callable[[], None] = lambda: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Run pairs back to back for this long, or until every point has its samples.

        For the start, while no request waits. Not charged to the budget.

        Args:
            on_progress: called every :data:`PROGRESS_SECONDS`; may set the planner's feedback.
        """
        begun = told = time.monotonic()
        while time.monotonic() < begun + seconds and not self.planner.complete:
            target = self.planner.next()
            if target is None:
                return
            self._launch(target, charged=False)
            while self._flight is not None:
                self.settle()
                sleep(0.0002)
            if time.monotonic() >= told + PROGRESS_SECONDS:
                on_progress()
                told = time.monotonic()

    def live_cell(self, step: EngineStep | None) -> CellKey | None:
        """The cell that a real step belongs to; None if it is larger than all of ours."""
        if step is None:
            return None
        batch_size = bucket(step.batch_size, self._config.batch_sizes)
        context = bucket(step.context, self._config.contexts)
        return None if batch_size is None or context is None else (batch_size, context)

    def _plan(self, step: EngineStep) -> Target | None:
        maybe_fail("plan")
        # Cheapest question first: this runs before every decode step.
        if not self.budget.affords(self._least_cost()):
            return None
        return self.planner.next(self.live_cell(step))

    def _least_cost(self) -> float:
        """Expected cost of the next pair: that of the last one, or a guess from the real steps."""
        return self._last_pair_seconds or RUNS_PER_PAIR * self._last_step_seconds

    def _launch(self, target: Target, charged: bool) -> None:
        self._run(target, self._rng.random() < 0.5, charged)

    def _run(self, target: Target, baseline_first: bool, charged: bool) -> None:
        many = Shape(target.batch_size, target.context, target.positions)
        one = Shape(target.batch_size, target.context, 1)
        begun = time.perf_counter()
        start = self._clock.mark()
        try:
            order = (one, many) if baseline_first else (many, one)
            tickets = [self._engine.launch(shape) for shape in order]
        except ShapeRefusedError:
            self.planner.drop(target)
            self.outcomes["refused"] += 1
            return
        end = self._clock.mark()
        host_seconds = time.perf_counter() - begun
        self._flight = _Flight(target, tickets, baseline_first, start, end, host_seconds, charged)

    def _finish(self, flight: _Flight) -> None:
        timings = [self._engine.poll(ticket) for ticket in flight.tickets]
        if any(timing is None for timing in timings):
            return
        self._flight = None
        device_seconds = self._clock.seconds(flight.start, flight.end)
        self._release(flight.start, flight.end)
        # A pair delays the next step by its time on the device or, where launching takes longer
        # than running, by its time on the host.
        cost = max(device_seconds, flight.host_seconds)
        self._last_pair_seconds = cost
        if flight.charged:
            self.budget.spend(cost)
        self.planner.record(flight.target)
        self.outcomes["measured"] += 1
        one, many = timings if flight.baseline_first else reversed(timings)
        assert one is not None and many is not None
        self._sink(PairResult(many, one, flight.baseline_first, cost))

    def _release(self, *marks: Mark) -> None:
        for mark in marks:
            self._clock.release(mark)
