"""Puts measured costs in the place of those of vLLM's adaptive verification, step by step.

vLLM's own tables stay in force until others are agreed on, and come back on any doubt. A step looks
its table up and computes nothing: what can fail happens in the background, before the ranks agree.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from vllm_nfp.adapter.verification import AdaptiveVerification, Admitted, Tables
from vllm_nfp.draft.cost_tables import PricedCosts
from vllm_nfp.schedule.cost_agreement import NONE, CostAgreement
from vllm_nfp.schedule.lockstep import Wire
from vllm_nfp.session.placed_tables import PlacedTables
from vllm_nfp.session.step_counts import StepCounts
from vllm_nfp.session.step_rests import StepRests

logger = logging.getLogger("vllm.nfp")

EXPECTED_ONE_IN = 8
"""Steps of which one is asked for the acceptance that vLLM expects: some 30 us."""
NOT_AGREED_YET = "not all ranks have the measured costs yet"
NOT_PRICED = None, 0.0
"""Of a step that vLLM's own costs chose; see :meth:`StepRests.chosen`."""


class CostFeed:
    """One rank's feed. Its hooks are called at every step with drafts, and never raise.

    The serving thread calls the hooks. A thread in the background gives the costs and reads what
    was counted.

    Args:
        verification: vLLM's.
        wire: to the other ranks; None if this one is alone.
        wanted: the version that is to be in force, asked of the rank that leads.
    """

    def __init__(
        self,
        verification: AdaptiveVerification,
        wire: Wire | None = None,
        wanted: Callable[[], int] = lambda: NONE,
    ) -> None:
        self._verification = verification
        self._agreement = CostAgreement(self._if_ready, wire, wanted)
        self._tables = PlacedTables(verification)
        self._asks = self._follows = True
        self._chose: PricedCosts | None = None
        """Costs in force at the latest step; None: vLLM's own."""
        self.counts = StepCounts()
        self.rests = StepRests()
        self.ready: PricedCosts | None = None
        """The latest costs that this rank has; set by a thread in the background."""
        self.fault = ""
        """Why this feed has ended."""
        self.own_because = NOT_AGREED_YET
        """Why the latest step without measured costs had none."""

    def _if_ready(self, version: int) -> PricedCosts | None:
        ready = self.ready
        return ready if ready is not None and ready.version == version else None

    @property
    def positions(self) -> int:
        """Most positions per sequence of a step."""
        return self._verification.positions

    @property
    def own(self) -> Tables | None:
        """vLLM's own tables; None before it has made them."""
        return self._tables.own

    def before(self, num_tokens: Mapping[str, int]) -> None:
        """vLLM is about to choose drafts: put the table for this step in force.

        Args:
            num_tokens: tokens that the scheduler has planned, by request.
        """
        self._chose = None
        self.rests.begin()
        if self.fault:
            return
        try:
            # Every rank comes here at every such step, so that all count alike.
            costs, tables = self._agreement.at_step(), self._tables
            tables.look_for_new_own()
            because = NOT_AGREED_YET if costs is None else tables.put(costs, num_tokens)
            if because:
                self.own_because = because
                tables.put_own()
            else:
                self._chose = costs
        except Exception as error:  # without the other ranks there is no step either
            self._end(error)

    def _end(self, error: Exception) -> None:
        logger.error(
            "vllm-nfp: fault in the feed of adaptive verification; vLLM's own costs are in force",
            exc_info=error,
        )
        self.fault = f"fault: {error!r}"
        self.give_back()

    def after(self, request_ids: list[str], admitted: Admitted) -> None:
        """vLLM has chosen."""
        counts = self.counts
        counts.count(admitted, self._chose is not None)
        if self._follows:
            self._follow(admitted)
        if self._asks and counts.steps % EXPECTED_ONE_IN == 0:
            self._ask(request_ids, admitted)

    def _follow(self, admitted: Admitted) -> None:
        """Have the step's time beside its work counted."""
        try:
            chose = self._chose
            price, drafting = NOT_PRICED if chose is None else self._prices_of(admitted, chose)
            whole = admitted.drafts == admitted.scheduled
            self.rests.chosen(admitted.requests, whole, price, drafting)
        except Exception as error:
            self._follows = False
            logger.warning("vllm-nfp: the host's time of a step is not known: %r", error)

    def _ask(self, request_ids: list[str], admitted: Admitted) -> None:
        """Count what vLLM expects of the step, and as much of those that are not asked."""
        try:
            some = self._verification.expected(request_ids, admitted)
            self.counts.expected += EXPECTED_ONE_IN * some
        except Exception as error:
            # The tables stay: another rank does not know of this.
            self._asks = False
            logger.warning("vllm-nfp: the expected acceptance is not known: %r", error)

    def _prices_of(self, admitted: Admitted, costs: PricedCosts) -> tuple[float | None, float]:
        """Seconds of the device's work in the latest step, and those of them for drafting."""
        own = self._tables.own
        verifying = costs.of_work(admitted.requests, admitted.tokens - admitted.requests)
        if own is None or verifying is None:
            return NOT_PRICED
        drafting = float(own[0][admitted.requests])
        return 1e-3 * (drafting + verifying), 1e-3 * drafting

    def give_back(self) -> None:
        """Put vLLM's own tables back, the latest that it has made."""
        self._tables.look_for_new_own()
        self._tables.put_own()
