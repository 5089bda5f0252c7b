"""Where measured costs come from on the rank that leads: the surface's answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vllm_nfp.config import ProbeConfig
from vllm_nfp.draft.cost_tables import TableMaker
from vllm_nfp.draft.verify_costs import CostRow, VerifyCosts
from vllm_nfp.faults import maybe_fail
from vllm_nfp.results.gather import Findings
from vllm_nfp.results.verification import StepSeconds, VerificationReport
from vllm_nfp.schedule.cost_agreement import NONE
from vllm_nfp.session.cost_feed import CostFeed
from vllm_nfp.session.cost_grounds import NOT_YET, CostGrounds
from vllm_nfp.session.cost_versions import CostFile, CostVersions
from vllm_nfp.session.feed_watch import FeedWatch
from vllm_nfp.session.step_prices import StepPrices
from vllm_nfp.timing import RealSteps

logger = logging.getLogger("vllm.nfp")

MISSED_PUBLICATIONS = 5
"""Publications that may be late before the costs count as stale."""
STALE = "the measured costs are stale"


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is to be in force; replaced whole, so that any thread may read it."""

    costs: VerifyCosts
    until: float
    """Seconds of the monotonic clock; after it the costs are stale."""


class LeadingCosts:
    """Makes costs of the surface's answers. Used by the publisher's thread, which may hang.

    Args:
        config: the probe's settings.
        engine: index of the engine, which names the file.
        most_requests: of a step.
        capture_sizes: tokens of the CUDA graphs, ascending.
        alone: no other rank wants them.
        never: why vLLM's own costs are to stay in force; empty: they need not.
    """

    def __init__(
        self,
        config: ProbeConfig,
        engine: str,
        most_requests: int,
        capture_sizes: Sequence[int],
        alone: bool,
        never: str = "",
    ) -> None:
        largest_graph = capture_sizes[-1] if capture_sizes else 0
        shared = None if alone else config.run_dir
        file = None if shared is None else CostFile.of(shared, engine)
        self._grounds = CostGrounds(config.grid[-1], largest_graph, never)
        self._versions = CostVersions(engine, TableMaker(most_requests, capture_sizes), file)
        self._lasts = MISSED_PUBLICATIONS * config.publish_seconds
        self._feed: CostFeed | None = None
        self._watch = FeedWatch()
        self._prices = StepPrices()
        self._wanted: _Wanted | None = None
        """None: vLLM's own costs."""
        self._reason = NOT_YET
        """Why those are wanted; empty otherwise."""

    def attach(self, feed: CostFeed) -> None:
        """Feed it from the next renewal on."""
        self._feed = feed

    def wanted(self) -> int:
        """The version that is to be in force; any thread may ask."""
        wanted = self._wanted
        if wanted is None or time.monotonic() >= wanted.until:
            return NONE
        return wanted.costs.version

    def renew(self, findings: Findings, kinds: Iterable[RealSteps], now: float) -> None:
        """Take in what the surface says now.

        Args:
            now: seconds of the monotonic clock.
        """
        feed = self._feed
        if feed is None:
            return
        maybe_fail("verification")
        self._watch.look(feed, self._wanted is not None)
        kinds = tuple(kinds)
        rows = self._grounds.rows(feed, findings, kinds)
        self._reason = self._grounds.doubt(feed, findings, rows)
        if self._reason:
            self._wanted = None
        else:
            self._want(feed, findings, rows, now)
        self._prices.update(kinds, feed.own, feed.ready, feed.positions)

    def _want(
        self, feed: CostFeed, findings: Findings, rows: tuple[CostRow, ...], now: float
    ) -> None:
        """Want these costs in force, or those that are wanted already for longer."""
        latest = None if self._wanted is None else self._wanted.costs
        context = 0 if findings.live is None else findings.live.context
        costs = self._versions.after(latest, context, rows, feed.rests.known())
        if costs is not latest:
            try:
                # Before it is wanted: the ranks agree on no costs that one of them lacks.
                feed.ready = self._versions.hand_over(costs)
            except OSError as error:
                self._reason = f"the other ranks cannot be given the costs: {error}"
                self._wanted = None
                return
        self._wanted = _Wanted(costs, now + self._lasts)
        if costs is not latest and self._versions.renewals == 1:
            _tell(costs)

    def report(self) -> VerificationReport | None:
        """What is known now; None before vLLM's verification is attached."""
        feed = self._feed
        if feed is None:
            return None
        wanted, unfed, counts = self.wanted() != NONE, self._watch.unfed, feed.counts
        return VerificationReport(
            feeding=wanted and not unfed,
            reason=unfed if wanted else self._reason or STALE,
            renewals=self._versions.renewals,
            measured_steps=counts.measured_steps,
            steps=counts.steps,
            scheduled=counts.scheduled,
            admitted=counts.admitted,
            expected=counts.expected,
            stalled=counts.stalled,
            seconds=self._prices.seconds if counts.steps else StepSeconds(),
        )


def _tell(costs: VerifyCosts) -> None:
    logger.info(
        "vllm-nfp: adaptive verification gets measured costs, of %s sequences at a context of %d "
        "tokens at first",
        ", ".join(str(row.batch_size) for row in costs.rows),
        costs.context,
    )
