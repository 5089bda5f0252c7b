"""The background side: takes in pairs and real steps, asks the surface, and publishes the results.

It runs in a thread of its own, and touches neither the device nor vLLM. It is given new pairs
through a queue, and counters in a slot. The serving side reads its agenda, or its fault.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from dataclasses import replace

from vllm_nfp.config import ProbeConfig
from vllm_nfp.draft.curve_exchange import CurveSender
from vllm_nfp.faults import maybe_fail
from vllm_nfp.give_way import give_way
from vllm_nfp.results.gather import Results
from vllm_nfp.results.real_steps import Traffic
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.schedule.agenda import NO_AGENDA, Agenda
from vllm_nfp.schedule.counters import Counters
from vllm_nfp.session.agenda_maker import AgendaMaker
from vllm_nfp.session.announcement import announce
from vllm_nfp.session.cost_source import LeadingCosts
from vllm_nfp.session.counted_experts import CountedExperts
from vllm_nfp.session.output import Output
from vllm_nfp.timing import StepTimes
from vllm_nfp.types import PairResult, Shape, State

logger = logging.getLogger("vllm.nfp")

MOST_QUEUED_PAIRS = 1_000
"""Pairs that wait for the thread: bounds the memory."""
AGENDA_SECONDS = 0.25
"""Least time between two agendas, where pairs are quick."""
PROGRESS_SECONDS = 0.5
"""Least time between two publications in a scan."""
LAST_UPDATE_SECONDS = 0.5
"""Longest wait for an update that is under way when the probe ends: half of
:data:`vllm_nfp.session.output.LONGEST_WRITE_SECONDS`, which the end waits for in all."""
KEEP_SECONDS = 15.0
"""Time between two writings of a profile while the state stays."""


class Publisher:
    """The thread that turns pairs and real steps into published answers.

    Args:
        config: the probe's settings.
        identity: the fixed part of each snapshot, as far as it is known.
        times: of real steps; written by the serving thread.
        results: what is known; used by this thread alone.
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
        self._config = config
        self._identity = identity
        self._times = times
        self._output = output
        self._sender = sender
        self._sent_version = 0
        self._progress_at = self._kept_at = -math.inf
        self._kept_state: State | None = None
        self._announced = False
        self._costs: LeadingCosts | None = None
        self.experts = CountedExperts()
        """Takes which experts real steps choose."""
        self._results = results
        self._maker = AgendaMaker(config, results)
        self._traffic = Traffic()
        self._queue: queue.SimpleQueue[PairResult] = queue.SimpleQueue()
        self._counters = Counters()
        self._processing = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nfp-publisher", daemon=True)
        self._agenda = NO_AGENDA
        self._chosen_for: tuple[int, frozenset[Shape], frozenset[Shape]] | None = None
        """Pairs, and what was refused or put off, as of the latest agenda."""
        self._fault: str | None = None

    @property
    def agenda(self) -> Agenda:
        """What to probe next, as chosen last; any thread may read it at any time."""
        return self._agenda

    @property
    def fault(self) -> str | None:
        """Why this thread has given up; the serving side then disables the probe."""
        return self._fault

    def put(self, result: PairResult) -> None:
        """Hand over a pair; called by the serving side, never blocks.

        While this thread hangs, as in a write to a dead disk, further pairs are dropped.
        """
        if self._queue.qsize() < MOST_QUEUED_PAIRS:
            self._queue.put(result)

    def count(self, counters: Counters) -> None:
        """Hand over the latest counters; called by the serving side, never blocks."""
        self._counters = counters

    def price(self, costs: LeadingCosts) -> None:
        """Renew these costs with every publication; called by the serving side."""
        self._costs = costs

    def publish(self, identity: Snapshot) -> None:
        """Publish once, from the thread that starts the probe.

        Args:
            identity: the fixed part of each snapshot.
        """
        self._identity = identity
        self._publish()

    def start(self, identity: Snapshot) -> None:
        """Go on in the background.

        Args:
            identity: the fixed part of each snapshot.
        """
        self._identity = identity
        self._thread.start()

    def process(self) -> None:
        """Take in what is new, ask the surface, and choose what to probe; one thread at a time.

        The serving thread calls it during the start alone, before the background thread begins.
        """
        with self._processing:
            self._process()

    def _process(self) -> None:
        counters, now = self._counters, time.monotonic()
        while not self._queue.empty():
            result = self._queue.get()
            self._output.record(result)
            self._results.add(result, now)
            give_way()
        predictions = self.experts.update()
        if predictions is not None:
            self._identity = replace(self._identity, predictions=predictions)
        kinds = self._times.kinds()
        self._results.add_steps(kinds, now)
        self._traffic.update(kinds, now)
        self._results.update(now, counters.last_step)
        self._choose(counters)

    def _choose(self, counters: Counters) -> None:
        """Make the next agenda, if something has happened since the last one."""
        pairs = self._results.findings.pairs
        known = pairs, counters.refused, counters.put_off
        if not self._config.passive and (counters.wants_agenda or known != self._chosen_for):
            self._agenda = self._maker.make(counters, self._traffic.shares)
            self._chosen_for = known

    def stop(self) -> None:
        """Let the thread end; does not wait for it."""
        self._stop.set()

    def _run(self) -> None:
        try:
            due = time.monotonic() + self._config.publish_seconds
            while not self._stop.wait(min(AGENDA_SECONDS, self._config.publish_seconds)):
                if time.monotonic() >= due:
                    self._publish()
                    due = time.monotonic() + self._config.publish_seconds
                elif self._counters.wants_agenda:
                    self.process()
        except Exception as error:
            self._fault = f"publishing failed: {error!r}"

    def _publish(self) -> None:
        self.process()
        maybe_fail("publish")
        self._send_changed_curves()  # first: a write may hang
        if self._costs is not None:
            self._costs.renew(self._results.findings, self._times.kinds(), time.monotonic())
        snapshot = self.snapshot()
        self._output.write(snapshot)
        self._keep_sometimes(snapshot)
        if not self._announced and self._results.findings.pairs:
            self._announced = True
            announce(snapshot)

    def _send_changed_curves(self) -> None:
        version = self._results.model_version
        if self._sender is None or version == self._sent_version:
            return
        if self._sender.send(self._results.model_curves()):
            self._sent_version = version

    def _keep_sometimes(self, snapshot: Snapshot) -> None:
        """Write a profile when the state changes, and now and then."""
        now = time.monotonic()
        due = snapshot.state is not self._kept_state or now >= self._kept_at + KEEP_SECONDS
        if self._output.keeps and due:
            self._output.keep(replace(snapshot, layer_times=self._results.layer_times()))
            self._kept_at, self._kept_state = now, snapshot.state

    def report_progress(self) -> None:
        """Choose the next agenda in the middle of a scan, and publish now and then.

        From the thread that scans.
        """
        self.process()
        now = time.monotonic()
        if now >= self._progress_at + PROGRESS_SECONDS:
            self._output.write(self.snapshot())
            self._progress_at = now

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
        return replace(self.snapshot(), layer_times=self._results.layer_times())

    def snapshot(self) -> Snapshot:
        """What is known now and fits into the metrics."""
        counters = self._counters
        found = self._results.findings
        agenda = self._agenda
        return replace(
            self._identity,
            state=State.PASSIVE if self._config.passive else _state(found.pairs, agenda),
            updated_unix_seconds=time.time(),
            updated_monotonic_seconds=time.monotonic(),
            idle_probe_seconds=counters.idle_probe_seconds,
            step_ratio=counters.step_ratio,
            budget_slack=counters.budget_slack,
            graph_bytes=counters.graph_bytes,
            steps=self._times.latencies(),
            probes=dict(counters.probes),
            probe_seconds=counters.probe_seconds,
            overhead_ratio=counters.overhead_ratio,
            boundaries=found.boundaries,
            curves=found.curves,
            layers=found.layers,
            live_boundaries=found.live_boundaries,
            live_curves=found.live_curves,
            jumps=found.jumps,
            missing_pairs=agenda.missing_pairs,
            live=found.live,
            experts=self.experts.report,
            verification=None if self._costs is None else self._costs.report(),
        )


def _state(pairs: int, agenda: Agenda) -> State:
    if not pairs:
        return State.WARMING
    return State.PROBING if agenda.missing_pairs else State.STEADY
