"""Where measured costs come from: the surface, on the rank that leads; its file, on the others."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from vllm_nfp.config import ProbeConfig
from vllm_nfp.draft.cost_rows import WIDEST, Lack, founded_rows, least_lack, raised
from vllm_nfp.draft.cost_tables import Tables, priced, work_tables
from vllm_nfp.draft.verify_costs import (
    CostRow,
    Rest,
    VerifyCosts,
    cost_file,
    read_costs,
    same_rests,
)
from vllm_nfp.faults import maybe_fail
from vllm_nfp.results.gather import Findings
from vllm_nfp.results.run_folder import RunFolder
from vllm_nfp.results.verification import StepSeconds, VerificationReport
from vllm_nfp.schedule.cost_agreement import NONE
from vllm_nfp.session.cost_feed import CostFeed
from vllm_nfp.session.step_prices import StepPrices, launch_seconds
from vllm_nfp.strict_json import encode
from vllm_nfp.timing import RealSteps

logger = logging.getLogger("vllm.nfp")

SAME = 0.005
"""Change of a time, as a fraction, that no choice of drafts depends on: half the error of a median
of real steps (:data:`vllm_nfp.surface.noise.STEP_DEVIATION`)."""
MISSED_PUBLICATIONS = 5
"""Publications that may be late before the costs count as stale."""
POLL_SECONDS = 0.25
NOT_YET = "no decode step has shown yet at which context steps are to be priced"
LACKING = {
    Lack.CURVE: "at the live context a step cannot have as many positions as drafts would need",
    Lack.TIME: f"t(1) at the live context is not known within a factor of {WIDEST:g} yet",
    Lack.GROUND: (
        "what is predicted of this model or GPU is a guess, and t(N) / t(1) at the live context "
        "was not measured yet"
    ),
    Lack.WIDTH: f"t(N) / t(1) at the live context is not known within a factor of {WIDEST:g} yet",
}
"""What the best known batch size lacks."""
JUMPED = "the machine has changed; its steps are measured again"
STALE = "the measured costs are stale"


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
        self._engine, self._most_requests = engine, most_requests
        self._capture_sizes = capture_sizes
        self._largest_graph = capture_sizes[-1] if capture_sizes else 0
        self._never = never
        shared = None if alone else config.run_dir
        self._folder = None if shared is None else RunFolder(shared)
        self._name = "" if shared is None else cost_file(shared, engine).name
        self._lasts = MISSED_PUBLICATIONS * config.publish_seconds
        self._largest = config.grid[-1]
        self._feed: CostFeed | None = None
        self._rows: tuple[CostRow, ...] = ()
        """Those of the latest version; empty while none is wanted."""
        self._work: Tables = {}
        self._rests: tuple[Rest, ...] = ()
        """The same."""
        # Ranks that outlive their leader must not take new costs for old ones.
        self._version, self._wanted = 1 + secrets.randbelow(1 << 30), NONE
        self._renewals = 0
        self._good_until = 0.0
        self._jumps = 0
        self._reason = NOT_YET
        self._counted = 0, 0
        """Steps of the feed at the last renewal: all, and those with measured costs."""
        self._unfed = ""
        """Why no step since had measured costs although they were wanted; empty otherwise."""
        self._prices = StepPrices()

    def attach(self, feed: CostFeed) -> None:
        """Feed it from the next renewal on."""
        self._feed = feed

    def wanted(self) -> int:
        """The version that is to be in force; any thread may ask."""
        return self._wanted if time.monotonic() < self._good_until else NONE

    def renew(self, findings: Findings, kinds: Iterable[RealSteps], now: float) -> None:
        """Take in what the surface says now.

        Args:
            now: seconds of the monotonic clock.
        """
        feed = self._feed
        if feed is None:
            return
        maybe_fail("verification")
        self._watch(feed)
        kinds = tuple(kinds)
        rows = founded_rows(
            findings.live_curves, feed.positions, self._largest_graph, findings.guessed
        )
        launches = launch_seconds(kinds, feed.own, self._largest_graph)
        rows = raised(rows, self._largest_graph, launches)
        self._reason = self._doubt(feed, findings, rows)
        if self._reason:
            self._wanted, self._rows = NONE, ()
        else:
            rests = feed.rests.known()
            if not _alike(rows, self._rows):
                self._work = work_tables(rows, self._most_requests, self._capture_sizes)
                self._hand_over(feed, findings, rows, rests)
            elif not same_rests(rows, rests, self._rests):
                self._hand_over(feed, findings, self._rows, rests)
            self._good_until = now + self._lasts
        self._prices.update(kinds, feed.own, feed.ready, feed.positions)

    def _doubt(self, feed: CostFeed, findings: Findings, rows: Sequence[CostRow]) -> str:
        """Why vLLM's own costs are to be in force; empty if measured ones are."""
        jumped, self._jumps = findings.jumps != self._jumps, findings.jumps
        if feed.fault or self._never:
            return feed.fault or self._never
        if feed.positions > self._largest:
            return (
                f"a step may have {feed.positions} positions per sequence, above max_positions "
                f"{self._largest}: raise --nfp-max-positions"
            )
        if jumped:
            return JUMPED
        if rows:
            return ""
        points = findings.live_curves
        if not points:
            return NOT_YET
        lack = least_lack(points, feed.positions, self._largest_graph, findings.guessed)
        return LACKING[lack]

    def _watch(self, feed: CostFeed) -> None:
        """See whether steps were given what was wanted since the last renewal."""
        counted = feed.counts.steps, feed.counts.measured_steps
        ran, fed = counted[0] > self._counted[0], counted[1] > self._counted[1]
        self._counted = counted
        self._unfed = feed.own_because if ran and not fed and self._wanted != NONE else ""

    def _hand_over(
        self,
        feed: CostFeed,
        findings: Findings,
        rows: tuple[CostRow, ...],
        rests: tuple[Rest, ...],
    ) -> None:
        """Make the tables, let the other ranks have the same, and want them in force."""
        context = 0 if findings.live is None else findings.live.context
        costs = VerifyCosts(self._engine, self._version + 1, context, rows, rests)
        made = priced(costs, self._work)
        if self._folder is not None:
            try:
                self._folder.write(self._name, encode(costs))
            except OSError as error:
                self._reason = f"the other ranks cannot be given the costs: {error}"
                self._wanted, self._rows = NONE, ()
                return
        feed.ready = made
        self._rows, self._rests, self._version = rows, rests, costs.version
        self._wanted = costs.version
        self._renewals += 1
        if self._renewals == 1:
            logger.info(
                "vllm-nfp: adaptive verification gets measured costs, of %s sequences at a context "
                "of %d tokens at first",
                ", ".join(str(row.batch_size) for row in rows),
                context,
            )

    def report(self) -> VerificationReport | None:
        """What is known now; None before vLLM's verification is attached."""
        feed = self._feed
        if feed is None:
            return None
        wanted = self.wanted() != NONE
        return VerificationReport(
            feeding=wanted and not self._unfed,
            reason=self._unfed if wanted else self._reason or STALE,
            renewals=self._renewals,
            measured_steps=feed.counts.measured_steps,
            steps=feed.counts.steps,
            scheduled=feed.counts.scheduled,
            admitted=feed.counts.admitted,
            expected=feed.counts.expected,
            stalled=feed.counts.stalled,
            seconds=self._prices.seconds if feed.counts.steps else StepSeconds(),
        )


def _alike(rows: Sequence[CostRow], others: Sequence[CostRow]) -> bool:
    """Whether no choice depends on which of the two is in force."""
    if [row.batch_size for row in rows] != [row.batch_size for row in others]:
        return False
    return all(
        abs(a / b - 1.0) <= SAME
        for row, other in zip(rows, others, strict=True)
        for a, b in zip(row.seconds, other.seconds, strict=True)
    )


class FollowingCosts:
    """Reads what the leader has written, in a thread of its own; a rank that follows.

    Args:
        feed: is given what was read.
        path: of the leader's file.
        most_requests: of a step.
        capture_sizes: tokens of the CUDA graphs, ascending.
    """

    def __init__(
        self, feed: CostFeed, path: Path, most_requests: int, capture_sizes: Sequence[int]
    ) -> None:
        self._feed, self._path = feed, path
        self._most_requests, self._capture_sizes = most_requests, capture_sizes
        self._rows: tuple[CostRow, ...] = ()
        self._work: Tables = {}
        """Of these rows."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nfp-costs", daemon=True)

    def start(self) -> None:
        """Begin to look for the file."""
        self._thread.start()

    def stop(self) -> None:
        """Let the thread end; does not wait for it."""
        self._stop.set()

    def look(self) -> None:
        """Read the file if it holds another version."""
        try:
            costs = read_costs(self._path)
        except (OSError, ValueError):
            return  # nothing yet: the ranks agree on no costs that one of them lacks
        if self._feed.ready is None or costs.version != self._feed.ready.version:
            if costs.rows != self._rows:
                self._work = work_tables(costs.rows, self._most_requests, self._capture_sizes)
                self._rows = costs.rows
            self._feed.ready = priced(costs, self._work)

    def _run(self) -> None:
        try:
            while not self._stop.wait(POLL_SECONDS):
                self.look()
        except Exception:
            logger.exception("vllm-nfp: this rank gets no measured costs any more")
