"""Chooses the next pair and launches it, within the budget or the share of idle time.

A pair needs shapes that are ready: warmed up and, on a GPU that serves with FULL graphs, captured.
What they lack is made piece by piece. Each piece takes the place of a pair and is charged like one.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from vllm_nfp.config import ProbeConfig
from vllm_nfp.faults import maybe_fail
from vllm_nfp.schedule.budget import Budget
from vllm_nfp.schedule.consent import Consent
from vllm_nfp.schedule.counters import Counters
from vllm_nfp.schedule.flights import Account, Flights, Landed
from vllm_nfp.schedule.idle import (
    IDLE_AGENDA_SECONDS,
    IDLE_POLL_SECONDS,
    IDLE_REFRESH_SECONDS,
    IdleTime,
)
from vllm_nfp.schedule.pair import Draws, Pair, both
from vllm_nfp.schedule.queue import Queue
from vllm_nfp.timing import StepTimer
from vllm_nfp.types import EngineStep, PairResult, RefusedForNowError, Shape, ShapeRefusedError

WAITED = "waited"
"""Outcome of a pair whose modules alone count."""
RUNS_PER_PAIR = 4.0
"""First guess of a pair's cost, in real steps, until one has been measured."""
PIECE_MEMORY = 8.0
"""Pieces over which their mean cost is taken."""


class Prober:
    """Runs pairs of probes between real steps, and while no request is there.

    Args:
        flights: launches pairs.
        consent: says whether a chosen pair is launched now.
        timer: times real steps; must earn for the budget.
        queue: says what to run.
        budget: says when.
        sink: takes each finished pair.
        config: the probe's settings.
        now: seconds of a monotonic clock.
    """

    def __init__(
        self,
        flights: Flights,
        consent: Consent,
        timer: StepTimer,
        queue: Queue,
        budget: Budget,
        sink: Callable[[PairResult], None],
        config: ProbeConfig,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._flights = flights
        self._consent = consent
        self.timer = timer
        self.queue = queue
        self.budget = budget
        self._sink = sink
        self._now = now
        self._draws = Draws(config.seed)
        self._pending: Shape | None = None
        """Its shapes are being made ready. It stays when another agenda comes: a part is paid."""
        self._idle = IdleTime(config.idle_share)
        self._last_pair_seconds = 0.0
        self._piece_seconds = 0.0
        self._ready = flights.ready_keys()
        self.outcomes: dict[str, int] = {"measured": 0, "idle": 0, "prepared": 0, "refused": 0}
        self._last_step: EngineStep | None = None

    def serving(self) -> None:
        """A real step that is not looked at is about to be launched."""
        self._idle.interrupt()

    def before_step(self, step: EngineStep, stands_for: int = 1) -> None:
        """A real step is about to be launched; may launch a pair ahead of it.

        Args:
            stands_for: steps that it stands for, its own among them.
        """
        self._idle.interrupt()
        self.settle()
        if self._flights.busy:
            self.timer.periods.interrupt()
        self.timer.describe(step, stands_for)
        self.budget.observe(step, stands_for)
        if not step.decode:
            return
        self._last_step = step
        # Cheapest questions first: this runs before every step that is looked at.
        if self._flights.busy or self._consent.pending:
            return
        if self.budget.affords(self._least_cost()):
            self.advance(Account.MEASURED)

    def trimmed(self, step: EngineStep, stands_for: int) -> None:
        """vLLM has cut drafts of the step that was looked at: this is what runs now."""
        self.timer.describe(step, stands_for)
        if step.decode:
            self._last_step = step

    def settle(self) -> None:
        """Read whatever the device has passed; waits for nothing.

        Raises:
            DeviceStuckError: if a pair has been on the device for longer than any can be.
        """
        self.timer.settle()
        landed = self._flights.landed()
        if landed is not None:
            self._take(landed)

    def idle(self) -> float:
        """No request is there: run what the idle share allows; returns seconds until the next call.

        The caller returns to serving as soon as a request comes, whatever is on the device: that
        request then waits for the rest of one pair at most.
        """
        now = self._now()
        self.settle()
        seconds = self._idle.wait(now)
        if self._flights.busy:
            return IDLE_POLL_SECONDS
        if seconds:
            return seconds
        if self.budget.off:
            return IDLE_REFRESH_SECONDS
        self.advance(Account.IDLE)
        if self._flights.busy:
            return IDLE_POLL_SECONDS
        return IDLE_AGENDA_SECONDS if self.wants_agenda else IDLE_REFRESH_SECONDS

    @property
    def busy(self) -> bool:
        """Whether a launch is on the device."""
        return self._flights.busy

    @property
    def wants_agenda(self) -> bool:
        """Whether all of the agenda has run, and the next one is worth more than its repetition."""
        under_way = self._pending is not None or self._flights.busy
        return not under_way and self.queue.used_up and not self.queue.settled

    def advance(self, account: Account) -> bool:
        """Launch the next pair, or a piece of what it lacks; False if nothing can be probed."""
        maybe_fail("plan")
        chosen = self._pending or self.queue.next(self._now())
        if chosen is None:
            return False
        try:
            if self._is_ready(chosen):
                self._pending = None
                pair = self._draws.pair(chosen)
                if self._consent.given(pair, account):
                    self._launch(pair, account)
            else:
                self._prepare(chosen, account)
        except ShapeRefusedError as error:
            # With several ranks the start leaves out what can never run: this is for the moment.
            if isinstance(error, RefusedForNowError) or not self._consent.alone:
                self.put_off(chosen)
            else:
                self._pending = None
                self.queue.refuse(chosen)
                self.outcomes["refused"] += 1
        return True

    def launch_agreed(self, pair: Pair, account: Account = Account.MEASURED) -> bool:
        """Launch a pair that all other ranks launch as well.

        Returns False, without a launch, if the one before it is still on the device: it could not
        be timed.
        """
        self.settle()
        if self._flights.busy:
            return False
        try:
            self._launch(pair, account)
        except ShapeRefusedError:
            self.put_off(pair.target)
        return True

    def put_off(self, target: Shape) -> None:
        """Leave a target out for a while: what it lacks now it may have later."""
        self._pending = None
        self.queue.wait(target, self._now())
        self.outcomes["refused"] += 1

    def counters(self, graph_bytes: int = 0) -> Counters:
        """What has been counted so far.

        Args:
            graph_bytes: GPU memory that the probe takes.
        """
        return Counters(
            probes=dict(self.outcomes),
            probe_seconds=self.budget.probe_seconds,
            overhead_ratio=self.budget.overhead_ratio,
            last_step=self._last_step,
            idle_probe_seconds=self._idle.probe_seconds,
            step_ratio=self.budget.step_ratio,
            budget_slack=self.budget.slack,
            graph_bytes=graph_bytes,
            refused=self.queue.refused,
            put_off=self.queue.put_off,
            ready=self._ready,
            written_contexts=self._flights.written_contexts(),
            piece_seconds=self._piece_seconds,
            wants_agenda=self.wants_agenda,
        )

    def _least_cost(self) -> float:
        """Expected cost of the next pair: that of the last one, or a guess from the real steps."""
        return self._last_pair_seconds or RUNS_PER_PAIR * self.timer.last_seconds

    def _is_ready(self, target: Shape) -> bool:
        # With several ranks all graphs are made at the start: between steps no rank makes any.
        return not self._consent.alone or all(map(self._flights.ready, both(target)))

    def _launch(self, pair: Pair, account: Account) -> None:
        self._delays(account)
        self._flights.launch(pair, account)

    def _prepare(self, target: Shape, account: Account) -> None:
        self._pending = target
        self._delays(account)
        self._flights.make_ready(both(target), account)

    def _delays(self, account: Account) -> None:
        self.timer.periods.interrupt()
        if account is Account.MEASURED:
            self.budget.started()

    def _take(self, landed: Landed) -> None:
        self._charge(landed)
        if landed.refused:
            return
        if landed.pair is None or landed.result is None:
            self._take_piece(landed)
            return
        self._last_pair_seconds = landed.cost_seconds
        self.queue.measured(landed.pair.target)
        self._count(WAITED if landed.result.waited else landed.account)
        self._sink(landed.result)

    def _take_piece(self, landed: Landed) -> None:
        # Other shapes may have lost their graphs for it.
        self._ready = self._flights.ready_keys()
        before = self._piece_seconds or landed.cost_seconds
        self._piece_seconds = before + (landed.cost_seconds - before) / PIECE_MEMORY
        at_start = landed.account is Account.STARTUP
        self._count("startup_prepared" if at_start else "prepared")

    def _count(self, outcome: str) -> None:
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def _charge(self, landed: Landed) -> None:
        if landed.account is Account.MEASURED:
            self.budget.spend(landed.cost_seconds)
        elif landed.account is Account.IDLE:
            self._idle.spend(landed.cost_seconds, self._now(), self.queue.settled)
