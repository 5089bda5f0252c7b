"""The loop between real steps: read what is ready, keep the budget, launch the next pair.

A pair needs shapes that are ready: warmed up and, on a GPU that serves with FULL graphs, captured.
What they lack is made piece by piece, each piece in the place of a pair and charged like one.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm_nfp.config import ProbeConfig
from vllm_nfp.faults import maybe_fail
from vllm_nfp.schedule.budget import Budget
from vllm_nfp.schedule.lockstep import Pair
from vllm_nfp.schedule.plan import CellKey, Planner, Target, bucket
from vllm_nfp.schedule.types import ProbeEngine
from vllm_nfp.timing import Clock, Mark, StepTimer
from vllm_nfp.types import (
    EngineStep,
    PairResult,
    RefusedForNowError,
    Shape,
    ShapeRefusedError,
    Timing,
)

PROGRESS_SECONDS = 0.5
"""Time between two reports of a scan's progress."""
RUNS_PER_PAIR = 4.0
"""First guess of a pair's cost, in real steps, until one has been measured."""
LONGEST_FLIGHT_SECONDS = 60.0
"""A pair that has not passed the device by then never will."""
IDLE_GRACE_SECONDS = 0.05
"""Time without a request before the first probe of an idle spell."""
IDLE_POLL_SECONDS = 0.002
IDLE_REFRESH_SECONDS = 5.0
"""Time between two idle probes once every point has its samples."""
FIRST_WAIT_SECONDS = 10.0
"""Time until a target is tried again that could not be run for the moment; doubled each time."""
LONGEST_WAIT_SECONDS = 3600.0


class DeviceStuckError(RuntimeError):
    """A probe's marks are never passed: the device, or what it waits for, hangs."""


@dataclass(slots=True)
class _Flight:
    """A pair on the device; without a target, a piece of what a pair needs, or what was refused."""

    target: Target | None
    tickets: list[Any]
    baseline_first: bool
    start: Mark
    end: Mark
    host_seconds: float
    account: str
    launched: float
    refused: bool
    """Only its cost counts."""
    timings: list[Timing | None]
    """Of the tickets, as far as they have been read."""


@dataclass(slots=True)
class _Wait:
    """Of a target that could not be run for the moment."""

    seconds: float
    until: float


class Prober:
    """Runs pairs of probes between real steps, within the budget.

    Args:
        engine: runs shapes.
        clock: marks the serving stream.
        planner: says what to run.
        budget: says when.
        sink: takes each finished pair.
        config: the probe's settings.
        now: seconds of a monotonic clock.
    """

    def __init__(
        self,
        engine: ProbeEngine,
        clock: Clock,
        planner: Planner,
        budget: Budget,
        sink: Callable[[PairResult], None],
        config: ProbeConfig,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self.planner = planner
        self.budget = budget
        self.timer = StepTimer(clock, budget.earn)
        self._sink = sink
        self._config = config
        self._now = now
        self._rng = random.Random(config.seed)
        self._draws: Counter[Target] = Counter()
        self._flight: _Flight | None = None
        self._pending: Target | None = None
        """The target whose shapes are being made ready."""
        self._waits: dict[Target, _Wait] = {}
        self._last_pair_seconds = 0.0
        self._idle_since: float | None = None
        self._idle_next = 0.0
        self.idle_seconds = 0.0
        """Time that probes took while no request was there."""
        self.outcomes: dict[str, int] = {"measured": 0, "idle": 0, "prepared": 0, "refused": 0}
        self.last_step: EngineStep | None = None

    def serving(self) -> None:
        """A real step is about to be launched that is not looked at."""
        self._idle_since = None

    def before_step(self, step: EngineStep, stands_for: int = 1) -> None:
        """A real step is about to be launched; may launch a pair ahead of it.

        Args:
            stands_for: steps that it stands for, its own among them.
        """
        self._look(step, stands_for)
        if not step.decode:
            return
        # Cheapest questions first: this runs before every decode step.
        if self._flight is None and self.budget.affords(self._least_cost()):
            self._advance(self.live_cell(step), "measured")

    def _look(self, step: EngineStep, stands_for: int) -> None:
        """Read what is ready, and take in what the step tells of the load."""
        self._idle_since = None
        self.settle()
        self.timer.describe(step.batch_size, step.context, step.positions, step.decode, stands_for)
        self.budget.observe(step.fullness, not step.decode, step.waiting, stands_for)
        if step.decode:
            self.last_step = step

    def begin_step(self) -> None:
        """The real step's work is enqueued from here on."""
        self.timer.begin()

    def end_step(self) -> None:
        """The real step's work has been enqueued."""
        self.timer.end()

    def settle(self) -> None:
        """Read whatever the device has passed; waits for nothing.

        Raises:
            DeviceStuckError: if a pair has been on the device for longer than any can be.
        """
        self.timer.settle()
        flight = self._flight
        if flight is None:
            return
        if self._clock.ready(flight.end):
            self._finish(flight)
        if self._flight is flight and self._now() > flight.launched + LONGEST_FLIGHT_SECONDS:
            raise DeviceStuckError(
                f"a probe has not finished within {LONGEST_FLIGHT_SECONDS:g} s: the device hangs"
            )

    def idle(self) -> float:
        """No request is there: run what the idle share allows; returns seconds until the next call.

        The caller returns to serving as soon as a request comes, whatever is on the device: that
        request then waits for the rest of one pair at most.
        """
        now = self._now()
        if self._idle_since is None:
            self._idle_since = now
            self._idle_next = max(self._idle_next, now + IDLE_GRACE_SECONDS)
        self.settle()
        if self._flight is not None:
            return IDLE_POLL_SECONDS
        if now < self._idle_next:
            return self._idle_next - now
        if self._config.idle_share <= 0.0 or self.budget.off:
            return IDLE_REFRESH_SECONDS
        self._advance(self.live_cell(self.last_step), "idle")
        return IDLE_POLL_SECONDS if self._flight is not None else IDLE_REFRESH_SECONDS

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
        begun = told = self._now()
        while self._now() < begun + seconds and not self.planner.complete:
            if not self._advance(None, "startup"):
                return
            while self._flight is not None:
                self.settle()
                sleep(0.0002)
            if self._now() >= told + PROGRESS_SECONDS:
                on_progress()
                told = self._now()

    def live_cell(self, step: EngineStep | None) -> CellKey | None:
        """The cell that a real step belongs to; None if it is larger than all of ours."""
        if step is None:
            return None
        batch_size = bucket(step.batch_size, self._config.batch_sizes)
        context = bucket(step.context, self._config.contexts)
        return None if batch_size is None or context is None else (batch_size, context)

    def _least_cost(self) -> float:
        """Expected cost of the next pair: that of the last one, or a guess from the real steps."""
        return self._last_pair_seconds or RUNS_PER_PAIR * self.timer.last_seconds

    def _advance(self, live: CellKey | None, account: str) -> bool:
        """Launch the next pair, or a piece of what it lacks; False if nothing is left to probe."""
        maybe_fail("plan")
        self._take_back()
        target = self._pending or self.planner.next(live, self._is_ready)
        if target is None:
            return False
        try:
            if self._is_ready(target):
                self._pending = None
                self._launch(target, account)
            else:
                if self._pending is None:
                    self.planner.changed()
                self._pending = target
                self._prepare(target, account)
        except RefusedForNowError:
            self._put_off(target)
        except ShapeRefusedError:
            self._pending = None
            self.planner.drop(target)
            self.outcomes["refused"] += 1
        return True

    def _put_off(self, target: Target) -> None:
        """Leave a target out for a while: what it lacks now it may have later."""
        self._pending = None
        self.planner.put_off(target)
        self.outcomes["refused"] += 1
        before = self._waits.get(target)
        seconds = FIRST_WAIT_SECONDS if before is None else 2.0 * before.seconds
        seconds = min(seconds, LONGEST_WAIT_SECONDS)
        self._waits[target] = _Wait(seconds, self._now() + seconds)

    def _take_back(self) -> None:
        if not self._waits:
            return
        now = self._now()
        for target, wait in self._waits.items():
            if now >= wait.until:
                self.planner.take_back(target)

    def _is_ready(self, target: Target) -> bool:
        return all(map(self._engine.ready, _shapes(target)))

    def _prepare(self, target: Target, account: str) -> None:
        begun, start = self._now(), self._clock.mark()
        made = False
        try:
            self._engine.make_ready(_shapes(target))
            made = True
        finally:
            # A refusal has cost its time as well.
            self._fly(None, [], False, start, begun, account, refused=not made)

    def _launch(self, target: Target, account: str) -> None:
        self._run(self._next_pair(target), account)

    def _next_pair(self, target: Target) -> Pair:
        """The next pair of the target, in random order, on the same tokens for all N, one by one.

        With experts the time of a step hangs on its tokens: with few sequences, by several per
        cent. Pairs of different N are alike in that, so that it does not come between their ratios.
        """
        first, draw = self._rng.random() < 0.5, self._draws[target]
        self._draws[target] += 1
        return Pair(target.batch_size, target.context, target.positions, first, draw)

    def _run(self, pair: Pair, account: str) -> None:
        target = Target(pair.batch_size, pair.context, pair.positions)
        begun, start = self._now(), self._clock.mark()
        tickets: list[Any] = []
        complete = False
        try:
            for shape in pair.shapes:
                tickets.append(self._engine.launch(shape, pair.draw))
            complete = True
        finally:
            # A run whose partner was refused is read and forgotten.
            flown = target if complete else None
            self._fly(
                flown, tickets, pair.baseline_first, start, begun, account, refused=not complete
            )

    def _fly(
        self,
        target: Target | None,
        tickets: list[Any],
        baseline_first: bool,
        start: Mark,
        begun: float,
        account: str,
        refused: bool,
    ) -> None:
        end = self._clock.mark()
        seconds = self._now() - begun
        self._flight = _Flight(
            target,
            tickets,
            baseline_first,
            start,
            end,
            seconds,
            account,
            self._now(),
            refused,
            [None] * len(tickets),
        )
        if account == "measured":
            self.budget.started()

    def _finish(self, flight: _Flight) -> None:
        timings = flight.timings
        for place, ticket in enumerate(flight.tickets):
            # What has been read has given back its marks, and must not give them back again.
            if timings[place] is None:
                timings[place] = self._engine.poll(ticket)
        if any(timing is None for timing in timings):
            return
        self._flight = None
        device_seconds = self._clock.seconds(flight.start, flight.end)
        self._clock.release(flight.start)
        self._clock.release(flight.end)
        # A pair delays the next step by its time on the device or, where launching takes longer
        # than running, by its time on the host.
        cost = max(device_seconds, flight.host_seconds)
        if flight.target is not None:
            self.planner.record(flight.target)
        self._charge(flight.account, cost)
        if flight.refused:
            return
        if flight.target is None:
            self._count("startup_prepared" if flight.account == "startup" else "prepared")
            return
        self._last_pair_seconds = cost
        self._waits.pop(flight.target, None)
        self._count(flight.account)
        one, many = timings if flight.baseline_first else reversed(timings)
        assert one is not None and many is not None
        self._sink(PairResult(many, one, flight.baseline_first, cost))

    def _count(self, outcome: str) -> None:
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def _charge(self, account: str, cost: float) -> None:
        if account == "measured":
            self.budget.spend(cost)
        elif account == "idle":
            self.idle_seconds += cost
            pause = cost * (1.0 / self._config.idle_share - 1.0)
            if self.planner.complete:
                pause = max(pause, IDLE_REFRESH_SECONDS)
            self._idle_next = self._now() + pause


def _shapes(target: Target) -> tuple[Shape, Shape]:
    """The baseline and the shape itself."""
    return (
        Shape(target.batch_size, target.context, 1),
        Shape(target.batch_size, target.context, target.positions),
    )
