"""Engines that take their steps together: all ranks of all of them launch a pair, or none does.

With data parallelism and experts, the experts of each engine serve the tokens of all, so that every
forward pass is one of all engines: a step or, on an engine without a request, a dummy batch. In
each of them vLLM's ranks agree on its padding, on their hosts. So no rank is more than a few
passes ahead of another, and where vLLM pauses, all ranks have run as many. Ranks count passes, and
exchange at every :data:`PASSES_PER_EXCHANGE`-th one, as :mod:`vllm_nfp.session.in_lockstep` does at
steps.

- An exchange is read a whole stride after it was begun, when all ranks have begun it. So no rank
  waits for one that pauses: pauses come before the same pass on all ranks, and a pair on its way is
  launched when passes go on. :mod:`vllm_nfp.schedule.punctual` watches that.
- The first rank of each engine times its steps, publishes, and has a plan and a budget. It bids for
  the turn to propose. An engine whose budget or load allows no delay of its steps holds pairs off.
- A pair is launched before the same pass on all ranks, whatever that pass is on each. Every engine
  times it, on the same shape, and learns from it.
- It is charged to the budget of each engine that serves. On an engine whose next pass is a dummy
  batch nobody is delayed; there it counts as one of idle time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from vllm_nfp.adapter.presence import check_all_ranks, settings_digest
from vllm_nfp.adapter.ranks import world_wire
from vllm_nfp.config import ProbeConfig
from vllm_nfp.probe.engine import ProbeEngine
from vllm_nfp.schedule.flights import Account
from vllm_nfp.schedule.follow import follow, follow_scan
from vllm_nfp.schedule.lockstep import Lockstep
from vllm_nfp.schedule.mailbox import faster
from vllm_nfp.schedule.pair import Pair
from vllm_nfp.schedule.prober import Prober
from vllm_nfp.schedule.punctual import PunctualWire
from vllm_nfp.schedule.scan import POLL_SECONDS
from vllm_nfp.schedule.turns import InTurn
from vllm_nfp.session.in_lockstep import InLockstep, prober_of, stride
from vllm_nfp.session.started import Started, follows

PASSES_PER_EXCHANGE = 16
"""Between hosts an exchange takes about a millisecond. A pair takes four of them: 64 passes."""
OFTEN = 4
"""With a large budget. Ranks are at most about three passes apart: vLLM schedules one step ahead of
its results, and the ranks of an engine are two batches from each other at most."""


def join(config: ProbeConfig) -> tuple[Lockstep, PunctualWire]:
    """This rank's part among all ranks of all engines; each calls this at the same point.

    Raises:
        RanksDifferError: on all ranks that have a probe, if one has none or another.
        WireError: if another rank cannot be reached.
    """
    check_all_ranks()
    wire = PunctualWire(faster(world_wire()))
    every = stride(config.overhead_budget, PASSES_PER_EXCHANGE, OFTEN)
    return Lockstep(wire, settings_digest(config), every, InTurn(wire.size)), wire


class InWaves(InLockstep):
    """One rank's part in what the ranks of all engines decide.

    Args:
        lockstep: exchanges with the other ranks.
        wire: that these go over.
        leads: this rank times the steps of its engine, and publishes.
    """

    def __init__(self, lockstep: Lockstep, wire: PunctualWire, leads: bool) -> None:
        super().__init__(lockstep)
        self._wire = wire
        self._leads = leads

    @property
    def leads(self) -> bool:
        """Whether this rank times the steps of its engine, and publishes."""
        return self._leads

    def scan(
        self,
        engine: ProbeEngine,
        scan: Callable[[], None] = follows,
        prober: Prober | None = None,
    ) -> None:
        """Scan as the first rank of all plans; each engine times what it launches."""
        if self._lockstep.leads:
            super().scan(engine, scan)
            return

        def launch(pair: Pair) -> None:
            if prober is None:
                follow(engine, pair)
                return
            prober.launch_agreed(pair, Account.STARTUP)
            while prober.busy:
                prober.settle()
                time.sleep(POLL_SECONDS)

        follow_scan(engine, self._lockstep, launch)

    def before_step(self, started: Started, scheduler_output: Any) -> None:
        """Count the pass of a step, and take part in what is decided at it."""
        stands_for = started.looks.at(scheduler_output) if started.lead is not None else 0
        if not scheduler_output.total_num_scheduled_tokens:
            return  # vLLM runs nothing, and then a dummy batch
        due = self._lockstep.count(0)
        if due or stands_for:
            self._plan(started, scheduler_output, due, stands_for)
        if due:
            prober = prober_of(started)
            self._decide(started, holds=prober is not None and prober.budget.in_debt)
        self._note(started, scheduler_output)

    def before_dummy(self, started: Started) -> None:
        """Count the pass of a dummy batch, and take part in what is decided at it."""
        started.looks.stands_for = 0
        due = self._lockstep.count(0)
        try:
            self._meanwhile(started, due)
        except Exception as error:
            self.fault("probe", error)
        if due:
            self._decide(started, holds=False, dummy=True)

    def _meanwhile(self, started: Started, due: bool) -> None:
        """What looks at steps do where there are steps."""
        lead, prober = started.lead, prober_of(started)
        if self._own_fault is not None:
            return
        if prober is not None:
            prober.settle()
        if not due or started.engine is None:
            return
        started.engine.check_proofs()
        if lead is not None:
            lead.look(None, 0, started.graph_bytes)
            lead.count(started.graph_bytes)

    def _decide(self, started: Started, holds: bool, dummy: bool = False) -> None:
        proposal = self._consent is not None and self._consent.proposes
        wants = proposal and self._own_fault is None
        pair = self._exchange(started, delays=not dummy, wants=wants, holds=holds)
        try:
            self._wire.check()
        except Exception as error:
            self.fault("exchange", error)
        if pair is not None:
            self._launch(started, pair, Account.IDLE if dummy else Account.MEASURED)

    def _can_launch(self, started: Started, pair: Pair) -> bool:
        prober = prober_of(started)
        if prober is not None:
            prober.settle()  # its shapes may be those of the pair before
        return super()._can_launch(started, pair)
