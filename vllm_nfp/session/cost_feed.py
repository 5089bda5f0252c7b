"""Puts measured costs in the place of those of vLLM's adaptive verification, step by step.

vLLM's own tables stay in force until others are agreed on, and come back on any doubt. A step looks
its table up and computes nothing: what can fail happens in the background, before the ranks agree.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import numpy as np

from vllm_nfp.adapter.verification import AdaptiveVerification, Admitted, Tables
from vllm_nfp.draft.cost_tables import PricedCosts
from vllm_nfp.schedule.cost_agreement import NONE, CostAgreement
from vllm_nfp.schedule.lockstep import Wire
from vllm_nfp.session.step_rests import StepRests

logger = logging.getLogger("vllm.nfp")

STALLED_STEPS = 100
"""Steps without any verified draft after which nothing is learned: vLLM fits its confidences anew
every 100 steps, to the drafts that were verified since (``OnlineAcceptanceEstimator``, 0.32)."""
EXPECTED_ONE_IN = 8
"""Steps of which one is asked for the acceptance that vLLM expects: some 30 us."""
NOT_AGREED_YET = "not all ranks have the measured costs yet"
OTHER_BATCH = "no measured costs are near the number of requests that run"
NOT_DRAFTS_ALONE = "all steps read prompts as well, or have more tokens than were measured"


class CostFeed:
    """One rank's feed. Its hooks are called at every step with drafts, and never raise.

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
        self._own = verification.tables
        self._placed: Tables | None = None
        """In the place of vLLM's own; None while these are in force."""
        self._scratch: Tables | None = None
        """A copy of vLLM's own, of which each step overwrites the part that it asks for."""
        self._asks = self._follows = True
        self._without = 0
        """Steps in a row with drafts of which none was verified."""
        self._chose: PricedCosts | None = None
        """Costs in force at the latest step; None: vLLM's own."""
        self.rests = StepRests()
        self.ready: PricedCosts | None = None
        """The latest costs that this rank has; set by a thread in the background."""
        self.fault = ""
        """Why this feed has ended."""
        self.own_because = NOT_AGREED_YET
        """Why the latest step without measured costs had none."""
        self.steps = self.scheduled = self.admitted = self.measured_steps = 0
        self.expected = 0.0

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
        return self._own

    @property
    def stalled(self) -> bool:
        """Whether drafts are made and none is verified."""
        return self._without >= STALLED_STEPS

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
            costs = self._agreement.at_step()
            self._look_for_new_own()
            if costs is None:
                self.own_because = NOT_AGREED_YET
            self._place(None if costs is None else self._tables_for(costs, num_tokens))
            self._chose = None if self._placed is None else costs
        except Exception as error:  # without the other ranks there is no step either
            logger.error(
                "vllm-nfp: fault in the feed of adaptive verification; vLLM's own costs are in "
                "force",
                exc_info=error,
            )
            self.fault = f"fault: {error!r}"
            self.give_back()

    def after(self, request_ids: list[str], admitted: Admitted) -> None:
        """vLLM has chosen."""
        self.steps += 1
        self.scheduled += admitted.scheduled
        self.admitted += admitted.drafts
        self.measured_steps += self._placed is not None
        self._follow(admitted)
        if admitted.scheduled:
            self._without = 0 if admitted.drafts else self._without + 1
        if self._asks and self.steps % EXPECTED_ONE_IN == 0:
            try:
                some = self._verification.expected(request_ids, admitted)
                self.expected += EXPECTED_ONE_IN * some
            except Exception as error:
                # The tables stay: another rank does not know of this.
                self._asks = False
                logger.warning("vllm-nfp: the expected acceptance is not known: %r", error)

    def _follow(self, admitted: Admitted) -> None:
        """Have the step's time beside its work counted."""
        if not self._follows:
            return
        try:
            whole = admitted.drafts == admitted.scheduled
            self.rests.chosen(admitted.requests, whole, *self._prices_of(admitted))
        except Exception as error:
            self._follows = False
            logger.warning("vllm-nfp: the host's time of a step is not known: %r", error)

    def _prices_of(self, admitted: Admitted) -> tuple[float | None, float]:
        """Seconds of the device's work in the latest step, and those of them for drafting.

        None if vLLM's own costs chose.
        """
        chose, own = self._chose, self._own
        if chose is None or own is None:
            return None, 0.0
        verifying = chose.of_work(admitted.requests, admitted.tokens - admitted.requests)
        if verifying is None:
            return None, 0.0
        drafting = float(own[0][admitted.requests])
        return 1e-3 * (drafting + verifying), 1e-3 * drafting

    def give_back(self) -> None:
        """Put vLLM's own tables back, the latest that it has made."""
        self._look_for_new_own()
        self._place(None)

    def _look_for_new_own(self) -> None:
        """vLLM makes its tables anew when it captures its graphs again."""
        now = self._verification.tables
        if now is not self._placed and now is not self._own:
            self._own, self._placed, self._scratch = now, None, None

    def _place(self, tables: Tables | None) -> None:
        if tables is not self._placed:
            self._verification.tables = self._own if tables is None else tables
            self._placed = tables

    def _tables_for(self, costs: PricedCosts, num_tokens: Mapping[str, int]) -> Tables | None:
        """For a step that verifies drafts alone; None for one that reads a prompt as well."""
        requests = len(num_tokens)
        measured = costs.by_requests.get(requests)
        if measured is None or self._own is None:
            self.own_because = OTHER_BATCH
            return None
        end = requests + len(measured)
        if sum(num_tokens.values()) >= end or end > len(self._own[1]):
            self.own_because = NOT_DRAFTS_ALONE
            return None
        if self._scratch is None:
            self._scratch = self._own[0], np.array(self._own[1])
        self._scratch[1][requests:end] = measured
        return self._scratch
