"""The background side: takes in pairs and real steps, asks the surface, and publishes the results.

It runs in a thread of its own, and touches neither the device nor vLLM. It is given new pairs
through a queue, and counters in a slot. The serving side reads its agenda, or its fault.
"""

from __future__ import annotations

import logging
import threading
import time

from vllm_nfp.config import ProbeConfig
from vllm_nfp.draft.curve_exchange import CurveSender
from vllm_nfp.faults import maybe_fail
from vllm_nfp.give_way import be_patient
from vllm_nfp.results.gather import Results
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.schedule.agenda import Agenda
from vllm_nfp.schedule.counters import Counters
from vllm_nfp.session.cost_source import LeadingCosts
from vllm_nfp.session.counted_experts import CountedExperts
from vllm_nfp.session.delivery import Delivery
from vllm_nfp.session.latest_agenda import LatestAgenda
from vllm_nfp.session.new_pairs import NewPairs
from vllm_nfp.session.output import Output
from vllm_nfp.session.pace import Pace
from vllm_nfp.session.snapshot_maker import SnapshotMaker
from vllm_nfp.timing import StepTimes
from vllm_nfp.types import PairResult

logger = logging.getLogger("vllm.nfp")

AGENDA_SECONDS = 0.25
"""Least time between two agendas, where pairs are quick."""
PATIENT_PUBLICATIONS = 2.5
"""Publications for whose time one waits for steps that read prompts: half of what makes measured
costs stale (:data:`vllm_nfp.session.cost_source.MISSED_PUBLICATIONS`)."""
CORE_SHARE = 0.005
"""Of one core, that the background thread should take on average. What it takes beside making rows
comes on top where that alone is more, as in idle time."""
OLDEST_ROWS_SECONDS = 10.0
"""Rows are made again after this time, whatever that costs."""
LAST_UPDATE_SECONDS = 0.5
"""Longest wait for an update that is under way when the probe ends: half of
:data:`vllm_nfp.session.output.LONGEST_WRITE_SECONDS`, which the end waits for in all."""


class Publisher:
    """The thread that turns pairs and real steps into published answers, and its parts.

    Three threads call it:

    - The serving thread hands over pairs, counters and costs, and reads the agenda and the fault:
      for that it never waits. During the start alone it also updates and publishes.
    - The background thread updates and publishes from :meth:`start` on.
    - The thread that ends the probe asks for the last snapshot, and waits a moment at most.

    The lock lets only one of them update at a time. Nobody needs it to read: the agenda, the fault
    and the parts of a snapshot are finished values, each replaced by one assignment.

    Args:
        config: the probe's settings.
        identity: the fixed part of each snapshot, as far as it is known.
        times: of real steps; written by the serving thread.
        results: what is known; updated under the lock alone.
        output: where results go.
        sender: takes the curves whenever they have changed; None if nobody wants them.
    """

    def __init__(
        self,
        config: ProbeConfig,
        identity: Snapshot,
        times: StepTimes,
        results: Results,
        output: Output,
        sender: CurveSender | None = None,
    ) -> None:
        self._publish_seconds = config.publish_seconds
        self._times = times
        self._results = results
        self.experts = CountedExperts()
        """Takes which experts real steps choose."""
        self._pairs = NewPairs(output.record, results)
        self._latest = LatestAgenda(config, results)
        self._snapshots = SnapshotMaker(
            config, identity, times, results, self._latest, self.experts
        )
        self._delivery = Delivery(output, results, sender)
        self._processing = threading.Lock()
        self._pace = Pace(CORE_SHARE, OLDEST_ROWS_SECONDS)
        """Of making rows, in the background thread."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nfp-publisher", daemon=True)
        self._fault: str | None = None

    @property
    def agenda(self) -> Agenda:
        """What to probe next, as chosen last; any thread may read it at any time."""
        return self._latest.agenda

    @property
    def fault(self) -> str | None:
        """Why this thread has given up; the serving side then disables the probe."""
        return self._fault

    def put(self, result: PairResult) -> None:
        """Hand over a pair; called by the serving side, never blocks.

        While this thread hangs, as in a write to a dead disk, further pairs are dropped.
        """
        self._pairs.put(result)

    def count(self, counters: Counters) -> None:
        """Hand over the latest counters; called by the serving side, never blocks."""
        self._snapshots.counters = counters

    def price(self, costs: LeadingCosts) -> None:
        """Renew these costs with every publication; called by the serving side."""
        self._snapshots.costs = costs

    def publish(self, identity: Snapshot) -> None:
        """Publish once, from the thread that starts the probe.

        Args:
            identity: the fixed part of each snapshot.
        """
        self._snapshots.identity = identity
        self._publish()

    def start(self, identity: Snapshot) -> None:
        """Go on in the background.

        Args:
            identity: the fixed part of each snapshot.
        """
        self._snapshots.identity = identity
        self._thread.start()

    def stop(self) -> None:
        """Let the thread end; does not wait for it."""
        self._stop.set()

    def process(self, rows: bool = True) -> None:
        """Take in what is new, ask the surface, and choose what to probe; one thread at a time.

        The serving thread calls it during the start alone, before the background thread begins.

        Args:
            rows: make the rows that are published again, which takes longest.
        """
        with self._processing:
            self._process(rows)

    def report_progress(self) -> None:
        """Choose the next agenda in the middle of a scan, and publish now and then.

        From the thread that scans.
        """
        self.process()
        self._delivery.deliver_progress(self.snapshot)

    def last_snapshot(self) -> Snapshot:
        """All that is known at the end, with the pairs that are still queued.

        Waits for an update that is under way, but not for one that hangs. An update may be what
        has ended the probe: if it fails again, what was known before is given.
        """
        if self._processing.acquire(timeout=LAST_UPDATE_SECONDS):
            try:
                self._process()
            except Exception as error:
                logger.warning("vllm-nfp: the last pairs are not counted: %r", error)
            finally:
                self._processing.release()
        return self.full_snapshot()

    def full_snapshot(self) -> Snapshot:
        """All that is known now, the times of layers too; waits for no update that is under way."""
        return self._snapshots.full_snapshot()

    def snapshot(self) -> Snapshot:
        """What is known now and fits into the metrics; waits for no update that is under way."""
        return self._snapshots.snapshot()

    def _run(self) -> None:
        try:
            due = time.monotonic() + self._publish_seconds
            while not self._stop.wait(min(AGENDA_SECONDS, self._publish_seconds)):
                now = time.monotonic()
                if now >= due:
                    self._work(now, publish=True)
                    due = time.monotonic() + self._publish_seconds
                elif self._snapshots.counters.wants_agenda:
                    self._work(now, publish=False)
        except Exception as error:
            self._fault = f"publishing failed: {error!r}"

    def _work(self, now: float, publish: bool) -> None:
        """Publish, or choose what to probe alone; charged to the share of a core."""
        be_patient(PATIENT_PUBLICATIONS * self._publish_seconds)
        begun = time.thread_time()
        if publish:
            self._publish(rows=self._pace.begin(now))
        else:
            self.process(rows=False)
        self._pace.spent(time.thread_time() - begun, now)

    def _process(self, rows: bool = True) -> None:
        """Update, under the lock."""
        counters, now = self._snapshots.counters, time.monotonic()
        self._pairs.take_in(now)
        predictions = self.experts.update()
        if predictions is not None:
            self._snapshots.predict(predictions)
        kinds = self._times.kinds()
        self._results.add_steps(kinds, now)
        self._results.update(now, counters.last_step, rows)
        self._latest.renew(counters, kinds, now)

    def _publish(self, rows: bool = True) -> None:
        self.process(rows)
        maybe_fail("publish")
        self._delivery.send_curves()  # first: a write may hang
        costs = self._snapshots.costs
        if costs is not None:
            costs.renew(self._results.findings, self._times.kinds(), time.monotonic())
        self._delivery.deliver(self.snapshot())
