"""Tensor-parallel ranks decide together: all launch a pair before the same step, or none does.

The first rank leads: it plans, publishes and writes. The others launch what it launches. See
:mod:`vllm_nfp.schedule.lockstep` for how they agree. A fault on one rank ends the probe on all, at
the same step. Until then every rank takes part, so that none waits for another.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from vllm_nfp import faults
from vllm_nfp.adapter.presence import check_tensor_ranks, settings_digest
from vllm_nfp.adapter.ranks import Ranks, SeveralRanks, tensor_wire
from vllm_nfp.config import ProbeConfig
from vllm_nfp.probe.engine import ProbeEngine
from vllm_nfp.schedule.budget import LARGE_BUDGET
from vllm_nfp.schedule.consent import Consent, RanksConsent
from vllm_nfp.schedule.flights import Account
from vllm_nfp.schedule.follow import can_launch, follow, follow_scan
from vllm_nfp.schedule.lockstep import (
    STEPS_PER_EXCHANGE,
    DivergedError,
    Lockstep,
    PeerFaultError,
    WireError,
)
from vllm_nfp.schedule.mailbox import faster
from vllm_nfp.schedule.pair import Pair
from vllm_nfp.schedule.prober import Prober
from vllm_nfp.session.agreement import keep_prompts, note_blocks, reason_of
from vllm_nfp.session.started import Started, follows
from vllm_nfp.session.timing_only import NOTHING_TO_DO_SECONDS
from vllm_nfp.types import EngineStep

logger = logging.getLogger("vllm.nfp")

OFTEN, SELDOM = 2, 1024
"""Steps from one exchange to the next: with a large budget, and with none, when ranks have only
faults to exchange."""


def join(config: ProbeConfig) -> Lockstep:
    """This rank's part among the tensor-parallel ranks; each calls this at the same point.

    Raises:
        RanksDifferError: on all ranks that have a probe, if one has none or another.
        WireError: if another rank cannot be reached.
    """
    check_tensor_ranks()
    every = stride(config.overhead_budget, STEPS_PER_EXCHANGE, OFTEN)
    return Lockstep(faster(tensor_wire()), settings_digest(config), every)


def stride(budget: float, usual: int, often: int) -> int:
    """Steps from one exchange to the next.

    Args:
        budget: fraction of the time for probes.
        usual: steps with a budget as by default.
        often: steps with a large one.
    """
    if budget == 0.0:
        return SELDOM
    return often if budget > LARGE_BUDGET else usual


class InLockstep:
    """One rank's part in what all tensor-parallel ranks decide.

    Args:
        lockstep: exchanges with the other ranks.
    """

    def __init__(self, lockstep: Lockstep) -> None:
        self._lockstep = lockstep
        self.ranks: Ranks = SeveralRanks(lockstep.agree, lockstep.least)
        self._consent: RanksConsent | None = None
        """Of the leader's pairs."""
        self._committed: Pair | None = None
        self._own_fault: str | None = None
        faults.set_rank(lockstep.rank)

    @property
    def leads(self) -> bool:
        """Whether this rank plans, publishes and writes."""
        return self._lockstep.leads

    def consent(self, engine: ProbeEngine) -> Consent:
        """That of all ranks."""
        self._consent = RanksConsent(self._lockstep, lambda pair: can_launch(engine, pair))
        return self._consent

    def scan(
        self,
        engine: ProbeEngine,
        scan: Callable[[], None] = follows,
        prober: Prober | None = None,
    ) -> None:
        """Scan, and tell the others when it ends; or follow the leader."""
        if not self._lockstep.leads:
            follow_scan(engine, self._lockstep, lambda pair: follow(engine, pair))
            return
        scan()
        self._lockstep.decide(None)

    def leave(self) -> None:
        """Tell the others that this rank takes part no more."""
        try:
            self._lockstep.fail_now()
        except Exception:
            logger.exception("vllm-nfp: the other ranks could not be told of the fault")

    def idle(self, started: Started) -> float:
        """Nothing: the ranks meet at steps alone."""
        return NOTHING_TO_DO_SECONDS

    def timed(self, started: Started) -> bool:
        """Whether the step is looked at; the leader's steps alone are."""
        return started.looks.stands_for > 0 and self._own_fault is None

    def before_step(self, started: Started, scheduler_output: Any) -> None:
        """Take part in what all ranks decide; launch a pair that they have agreed on.

        Raises:
            PeerFaultError: if a rank has a fault.
            DivergedError: if the ranks are not at the same step.
            WireError: if another rank cannot be reached.
        """
        due = self._lockstep.count(_digest(scheduler_output))
        stands_for = started.looks.at(scheduler_output) if started.lead is not None else 0
        if due or stands_for or self._committed is not None:
            self._decide_at(started, scheduler_output, due, stands_for)
        self._note(started, scheduler_output)

    def _decide_at(
        self, started: Started, scheduler_output: Any, due: bool, stands_for: int
    ) -> None:
        step = self._plan(started, scheduler_output, due, stands_for)
        if due:
            self._committed = self._exchange(started) or self._committed
        if self._committed is not None and step is not None and step.decode:
            pair, self._committed = self._committed, None
            self._launch(started, pair)

    def _plan(
        self, started: Started, scheduler_output: Any, due: bool, stands_for: int
    ) -> EngineStep | None:
        """The step; the leader may propose a pair after it.

        Args:
            due: all ranks keep the same prompts, those of this step. Chance alone decides whether
                the leader looks at it: every eighth step would follow a rhythm.
        """
        step: EngineStep | None = None
        try:
            step = started.looks.step(scheduler_output)
            if self._own_fault is not None:
                return step
            if due and started.engine is not None:
                keep_prompts(started.engine, scheduler_output)
                started.engine.check_proofs()  # a rank that follows reads no tickets
            if started.lead is not None and stands_for:
                started.lead.look(step, stands_for, started.graph_bytes)
        except Exception as error:
            self.fault("probe", error)
        return step

    def _note(self, started: Started, scheduler_output: Any) -> None:
        """Note the KV blocks that the step writes, once no pair ahead of it is to come."""
        if self._own_fault is not None:
            return
        try:
            note_blocks(started.engine, scheduler_output)
        except Exception as error:
            self.fault("probe", error)

    def before_dummy(self, started: Started) -> None:
        """Nothing: one engine runs none."""

    def _exchange(
        self, started: Started, delays: bool = True, wants: bool = False, holds: bool = False
    ) -> Pair | None:
        """Exchange; returns a pair that is to be launched.

        Args:
            delays: a step comes next.
            wants: see :meth:`Lockstep.exchange`.
            holds: see there.
        """
        begun = time.perf_counter()
        pair = self._lockstep.exchange(
            self._propose,
            lambda checked: self._can_launch(started, checked),
            lambda refused: self._refused(started, refused),
            wants,
            holds,
        )
        prober = prober_of(started)
        if prober is not None and delays:
            # It may have delayed the step by as much.
            prober.budget.spend(time.perf_counter() - begun)
        return pair

    def _propose(self) -> Pair | None:
        if self._committed is not None or self._consent is None:
            return None
        return self._consent.take_proposal()

    def _can_launch(self, started: Started, pair: Pair) -> bool:
        try:
            return started.engine is not None and can_launch(started.engine, pair)
        except Exception as error:
            self.fault("probe", error)
            return False

    def _refused(self, started: Started, pair: Pair) -> None:
        prober = prober_of(started)
        if prober is not None and self._consent is not None and self._consent.answered():
            prober.put_off(pair.target)

    def _launch(self, started: Started, pair: Pair, account: Account = Account.MEASURED) -> None:
        prober = prober_of(started)
        if self._consent is not None:
            self._consent.answered()
        try:
            timed = prober is not None and self._own_fault is None
            if timed and prober is not None and prober.launch_agreed(pair, account):
                return
            if started.engine is not None:
                follow(started.engine, pair)
        except Exception as error:
            self.fault("probe", error)

    def fault(self, stage: str, error: Exception) -> str | None:
        """Have all ranks end their probes; None, as this one takes part until they do."""
        if isinstance(error, PeerFaultError | DivergedError):
            return str(error) if self._own_fault is None else f"{error} ({self._own_fault})"
        if isinstance(error, WireError):
            return reason_of("lockstep", error)
        if self._own_fault is None:
            logger.error("vllm-nfp: fault in stage %s", stage, exc_info=error)
            self._own_fault = f"stage {stage}: {error!r}"
        self._lockstep.fail()
        return None


def prober_of(started: Started) -> Prober | None:
    """What chooses pairs and times them; None on a rank that does not."""
    watcher = None if started.lead is None else started.lead.watcher
    return watcher if isinstance(watcher, Prober) else None


def _digest(scheduler_output: Any) -> int:
    """Of what the scheduler plans, alike on all ranks."""
    tokens: int = scheduler_output.total_num_scheduled_tokens
    return 8191 * len(scheduler_output.num_scheduled_tokens) + tokens
