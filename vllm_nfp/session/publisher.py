"""The background side: keeps the pairs, estimates the boundaries, hands the results on.

It runs in a thread of its own, touches neither the device nor vLLM, and learns of new pairs
through a queue. A fault here is remembered and read by the serving side, which then stops.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from vllm_nfp.config import ProbeConfig
from vllm_nfp.faults import maybe_fail
from vllm_nfp.give_way import give_way
from vllm_nfp.results.gather import Results
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.schedule.feedback import feedback_of
from vllm_nfp.schedule.plan import Feedback
from vllm_nfp.timing import StepTimes
from vllm_nfp.types import (
    CurvePoint,
    LiveStep,
    PairResult,
    Prediction,
    State,
)

logger = logging.getLogger("vllm.nfp")

MOST_QUEUED_PAIRS = 1_000
"""Pairs that wait for the thread: bounds the memory."""
KEEP_SECONDS = 15.0
"""Time between two writings of a profile while the state stays."""


@dataclass(frozen=True, slots=True)
class Counters:
    """What the serving side counts, copied for publishing."""

    probes: Mapping[str, int]
    probe_seconds: float
    overhead_ratio: float
    live: LiveStep | None
    missing_pairs: int
    """Pairs that points which matter still lack."""
    idle_probe_seconds: float = 0.0
    step_ratio: float = 0.0
    budget_slack: float = 1.0
    graph_bytes: int = 0
    step_times: StepTimes | None = None


class Publisher:
    """The thread that turns pairs into published estimates.

    Args:
        config: the probe's settings.
        identity: the snapshot's fixed part: names, start-up time, skipped cells.
        counters: reads the serving side's counters.
        predict: makes the predictions, once.
        write: puts a snapshot where /metrics finds it.
        record: keeps a raw pair (an output folder's log); may do nothing.
        keep: puts a snapshot with the times of layers where it outlasts the server (a profile);
            called less often than ``write``, and None where nobody wants it.
        send_curves: takes the rows of the whole step's curves whenever they have changed, and says
            whether it is done with them; None where nobody wants them.
    """

    def __init__(
        self,
        config: ProbeConfig,
        identity: Snapshot,
        counters: Callable[[], Counters],
        predict: Callable[[], tuple[Prediction, ...]],
        write: Callable[[Snapshot], None],
        record: Callable[[PairResult], None],
        keep: Callable[[Snapshot], None] | None = None,
        send_curves: Callable[[Iterator[CurvePoint]], bool] | None = None,
    ) -> None:
        self._config = config
        self.identity = identity
        """The fixed part of each snapshot; may be completed before start()."""
        self._counters = counters
        self._predict = predict
        self._write = write
        self._record = record
        self._keep = keep
        self._send_curves = send_curves
        self._sent_version = 0
        self._kept_at = -math.inf
        self._kept_state: State | None = None
        self._results = Results(config)
        self._queue: queue.SimpleQueue[PairResult] = queue.SimpleQueue()
        self._processing = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nfp-publisher", daemon=True)
        self._predictions: tuple[Prediction, ...] = ()
        self.feedback = Feedback()
        """Replaced whole; the serving side may read it at any time."""
        self.fault: str | None = None
        """Why this thread has given up; the serving side then disables the probe."""

    def put(self, result: PairResult) -> None:
        """Hand a pair over; called by the serving side, never blocks.

        While this thread hangs, as in a write to a dead disk, further pairs are forgotten.
        """
        if self._queue.qsize() < MOST_QUEUED_PAIRS:
            self._queue.put(result)

    def predict(self) -> None:
        """Make the predictions, which takes a while; once, before start()."""
        self._predictions = self._predict()

    def start(self) -> None:
        """Publish once, then go on in the background."""
        self._publish()
        self._thread.start()

    def process(self) -> None:
        """Take in what the queue holds and estimate again; one thread at a time.

        The serving thread calls it during the start alone, while the background thread waits.
        """
        with self._processing:
            while not self._queue.empty():
                result = self._queue.get()
                self._record(result)
                self._results.add(result)
                give_way()
            self._results.update()
            self.feedback = feedback_of(self._results.estimates.values(), self._config)

    def stop(self) -> None:
        """Let the thread end; does not wait for it."""
        self._stop.set()

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._config.publish_seconds):
                self._publish()
        except Exception as error:
            self.fault = f"publishing failed: {error!r}"

    def _publish(self) -> None:
        self.process()
        maybe_fail("publish")
        self._send_changed_curves()  # first: a write may hang
        snapshot = self.snapshot()
        self._write(snapshot)
        self._keep_sometimes(snapshot)

    def _send_changed_curves(self) -> None:
        version = self._results.model_version
        if self._send_curves is None or version == self._sent_version:
            return
        if self._send_curves(self._results.model_curves()):
            self._sent_version = version

    def _keep_sometimes(self, snapshot: Snapshot) -> None:
        """Keep what there is when the state changes, and now and then."""
        now = time.monotonic()
        due = snapshot.state is not self._kept_state or now >= self._kept_at + KEEP_SECONDS
        if self._keep is not None and due:
            self._keep(replace(snapshot, layer_times=self._results.layer_times()))
            self._kept_at, self._kept_state = now, snapshot.state

    def report_progress(self) -> None:
        """Estimate and publish in the middle of a scan, from the thread that scans."""
        self.process()
        self._write(self.snapshot())

    def full_snapshot(self) -> Snapshot:
        """All that is known now, the times of layers too; waits for no update that is under way."""
        return replace(self.snapshot(), layer_times=self._results.layer_times())

    def snapshot(self) -> Snapshot:
        """What is known now and fits into the metrics."""
        counters = self._counters()
        found = self._results.findings
        steps = () if counters.step_times is None else counters.step_times.latencies()
        return replace(
            self.identity,
            state=State.PASSIVE
            if self._config.passive
            else _state(bool(found.boundaries), counters.missing_pairs == 0),
            updated_unix_seconds=time.time(),
            updated_monotonic_seconds=time.monotonic(),
            idle_probe_seconds=counters.idle_probe_seconds,
            step_ratio=counters.step_ratio,
            budget_slack=counters.budget_slack,
            graph_bytes=counters.graph_bytes,
            steps=steps,
            probes=dict(counters.probes),
            probe_seconds=counters.probe_seconds,
            overhead_ratio=counters.overhead_ratio,
            boundaries=found.boundaries,
            curves=found.curves,
            predictions=self._predictions,
            layers=found.layers,
            missing_pairs=counters.missing_pairs,
            live=counters.live,
        )


def _state(has_estimates: bool, complete: bool) -> State:
    if not has_estimates:
        return State.WARMING
    return State.STEADY if complete else State.PROBING
