"""The background side: keeps the pairs, estimates the boundaries, and publishes the results.

It runs in a thread of its own, and touches neither the device nor vLLM. It is given new pairs
through a queue, and counters in a slot. The serving side reads its feedback, or its fault.
"""

from __future__ import annotations

import logging
import math
import queue
import statistics
import threading
import time
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

from vllm_nfp.config import ProbeConfig
from vllm_nfp.draft.curve_exchange import CurveSender
from vllm_nfp.estimate import CellEstimate, PairStore, estimate_cell
from vllm_nfp.faults import maybe_fail
from vllm_nfp.give_way import give_way, in_pieces
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.schedule.counters import Counters
from vllm_nfp.schedule.plan import CellKey, Feedback
from vllm_nfp.session.output import Output
from vllm_nfp.timing import StepTimes
from vllm_nfp.types import (
    Boundary,
    Cell,
    CurvePoint,
    EngineStep,
    LayerHistogram,
    LayerLatency,
    LiveStep,
    Module,
    Pair,
    PairResult,
    Shape,
    State,
    StepLatency,
    Timing,
)

logger = logging.getLogger("vllm.nfp")

LAYER_BOUNDS_SECONDS = (
    1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 0.1,
)  # fmt: skip
LAYER_SAMPLES = 15
"""Most recent runs that a layer's time in a profile is the median of."""
MOST_LAYER_ROWS = 8_000
"""Most points (layer, module, cell, positions) whose layer times are kept: bounds the memory."""
MOST_QUEUED_PAIRS = 1_000
"""Pairs that wait for the thread: bounds the memory."""
KEEP_SECONDS = 15.0
"""Time between two profiles while the state stays."""
ROWS_AT_A_TIME = 64
"""Medians, or cells, that are worked through before a pause: some 0.2 ms."""
FAR_OVER = 3.0
"""A point is far over every line if its ratio exceeds 1 by this many times the largest epsilon."""


_LayerKey = tuple[Shape, int, Module]
_in_order = attrgetter("module", "batch_size", "context")
"""Sorts cells as they sort themselves, in a fifth of the time."""
_kind_in_order = attrgetter("batch_size", "context", "positions")
"""The same of kinds of steps."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What the estimates of one update say; replaced whole, never changed."""

    boundaries: tuple[Boundary, ...] = ()
    curves: tuple[CurvePoint, ...] = ()
    layers: tuple[LayerHistogram, ...] = ()


class Results:
    """Pairs and estimates of one engine.

    One thread at a time adds and updates. Any thread may read: what it gets is as of the last
    update, and all of the same one. Only the times of layers are behind a lock, which is held for
    as long as copying them takes.
    """

    def __init__(self, config: ProbeConfig) -> None:
        self._config = config
        self._store = PairStore(config.max_samples)
        self._execution: dict[tuple[CellKey, int], str] = {}
        self._estimates: dict[Cell, CellEstimate] = {}
        self._boundaries: dict[Cell, tuple[Boundary, ...]] = {}
        self._curves: dict[Cell, tuple[CurvePoint, ...]] = {}
        self._changed: set[Cell] = set()
        self._histograms: dict[tuple[int, Module], tuple[list[int], float]] = {}
        self._layer_times: dict[_LayerKey, deque[float]] = {}
        self._layer_lock = threading.Lock()
        self._findings = Findings()
        self.model_version = 0
        """Rises when the whole step's curves have changed."""

    def add(self, result: PairResult) -> None:
        """Take in a pair: one sample for each module, and for the whole step."""
        shape = result.many.shape
        key = (shape.batch_size, shape.context)
        self._execution[key, shape.positions] = result.many.execution
        self._execution[key, 1] = result.one.execution
        for module, seconds in _times(result.many).items():
            baseline = _times(result.one).get(module)
            if baseline is not None:
                cell = Cell(module, *key)
                self._store.add(cell, Pair(shape.positions, seconds, baseline))
                self._changed.add(cell)
        for timing in (result.many, result.one):
            with self._layer_lock:
                self._keep_layers(timing)
            if self._config.layer_histograms:
                self._count_layers(timing)

    def _keep_layers(self, timing: Timing) -> None:
        for time_of_layer in timing.layers:
            key = (timing.shape, time_of_layer.layer, time_of_layer.module)
            ring = self._layer_times.get(key)
            if ring is None and len(self._layer_times) < MOST_LAYER_ROWS:
                ring = self._layer_times[key] = deque(maxlen=LAYER_SAMPLES)
            if ring is not None:
                ring.append(time_of_layer.seconds)

    def _count_layers(self, timing: Timing) -> None:
        for time_of_layer in timing.layers:
            key = (time_of_layer.layer, time_of_layer.module)
            counts, total = self._histograms.get(key, ([0] * (len(LAYER_BOUNDS_SECONDS) + 1), 0.0))
            counts[bisect_left(LAYER_BOUNDS_SECONDS, time_of_layer.seconds)] += 1
            self._histograms[key] = (counts, total + time_of_layer.seconds)

    def update(self) -> None:
        """Estimate again where pairs have come in."""
        maybe_fail("estimate")
        for cell in sorted(self._changed):
            estimate = estimate_cell(
                cell, self._store.pairs(cell), self._config.epsilons, self._config.min_samples
            )
            if estimate is not None:
                self._estimates[cell] = estimate
                self._boundaries[cell] = _boundary_rows(estimate)
                self._curves[cell] = self._curve_rows(estimate)
                self.model_version += cell.module is Module.MODEL
            give_way()
        self._changed.clear()
        self._findings = Findings(
            tuple(row for cell in _in_pieces(self._boundaries) for row in self._boundaries[cell]),
            tuple(row for cell in _in_pieces(self._curves) for row in self._curves[cell]),
            self._layer_histograms(),
        )

    @property
    def findings(self) -> Findings:
        """What the last update has found."""
        return self._findings

    def boundaries(self) -> tuple[Boundary, ...]:
        """One row for each module, cell and epsilon."""
        return self._findings.boundaries

    def curves(self) -> tuple[CurvePoint, ...]:
        """One row for each module, cell and position count."""
        return self._findings.curves

    def model_curves(self) -> Iterator[CurvePoint]:
        """The rows of the whole step alone; for the thread that updates."""
        for cell in _in_pieces(self._curves):
            if cell.module is Module.MODEL:
                yield from self._curves[cell]

    def _curve_rows(self, estimate: CellEstimate) -> tuple[CurvePoint, ...]:
        cell = estimate.cell
        return tuple(
            CurvePoint(
                cell.module,
                cell.batch_size,
                cell.context,
                point.positions,
                point.samples,
                point.median_seconds,
                point.ratio,
                point.ratio_lower,
                point.ratio_upper if math.isfinite(point.ratio_upper) else None,
                self._execution.get(((cell.batch_size, cell.context), point.positions), ""),
                point.seconds_lower,
                point.seconds_upper if math.isfinite(point.seconds_upper) else None,
            )
            for point in estimate.curve.points
        )

    def layer_times(self) -> tuple[LayerLatency, ...]:
        """One row for each timed layer, module, cell and position count."""
        return tuple(
            LayerLatency(
                layer,
                module,
                shape.batch_size,
                shape.context,
                shape.positions,
                len(ring),
                statistics.median(ring),
            )
            for (shape, layer, module), ring in in_pieces(self._sorted_layers(), ROWS_AT_A_TIME)
        )

    def _sorted_layers(self) -> Iterator[tuple[_LayerKey, tuple[float, ...]]]:
        """All rings in order, cell by cell: sorting them at once would take milliseconds."""
        with self._layer_lock:
            keys = list(self._layer_times)
        cells: dict[CellKey, list[_LayerKey]] = defaultdict(list)
        for key in in_pieces(keys, 8 * ROWS_AT_A_TIME):
            cells[key[0].batch_size, key[0].context].append(key)
        for cell in sorted(cells):
            for key in sorted(cells[cell], key=lambda of: (of[0].positions, *of[1:])):
                with self._layer_lock:
                    ring = tuple(self._layer_times[key])
                yield key, ring

    def _layer_histograms(self) -> tuple[LayerHistogram, ...]:
        """Histograms of the timed layers, cumulative; empty unless asked for."""
        return tuple(
            LayerHistogram(layer, module, LAYER_BOUNDS_SECONDS, tuple(_cumulative(counts)), total)
            for (layer, module), (counts, total) in sorted(self._histograms.items())
        )

    def feedback(self) -> Feedback:
        """Which points to sample again, and beyond which count nothing is urgent.

        All points up to that count get as many pairs as are kept, wherever they lie. A point's
        number of pairs must not depend on its own times: were it sampled while its interval
        crosses a line, and no longer when it does not, then the wrong intervals would stay.
        """
        points: dict[CellKey, dict[int, int]] = defaultdict(dict)
        far: dict[CellKey, list[int]] = defaultdict(list)
        limit = 1.0 + FAR_OVER * max(self._config.epsilons)
        modules: dict[CellKey, int] = defaultdict(int)
        for cell, estimate in in_pieces(self._estimates.items(), ROWS_AT_A_TIME):
            key = (cell.batch_size, cell.context)
            modules[key] += 1
            beyond = [p.positions for p in estimate.curve.points if p.ratio_lower > limit]
            if beyond:
                far[key].append(min(beyond))
            points[key] |= {p.positions: p.samples for p in estimate.curve.points[1:]}
        # Beyond a count nothing is urgent only if every module of the cell is far over there.
        far_over = {key: max(ns) for key, ns in far.items() if len(ns) == modules[key]}
        uncertain = {
            Shape(*key, positions)
            for key, samples in points.items()
            for positions, pairs in samples.items()
            if pairs < self._config.max_samples and positions <= far_over.get(key, positions)
        }
        return Feedback(frozenset(uncertain), far_over)


def _in_pieces(cells: Iterable[Cell]) -> Iterator[Cell]:
    """The cells in order, with pauses in between."""
    return in_pieces(sorted(cells, key=_in_order), ROWS_AT_A_TIME)


def _boundary_rows(estimate: CellEstimate) -> tuple[Boundary, ...]:
    cell = estimate.cell
    return tuple(
        Boundary(
            cell.module,
            cell.batch_size,
            cell.context,
            line.epsilon,
            line.positions,
            line.lower,
            line.upper,
            line.at_limit,
            line.largest_free,
        )
        for line in estimate.boundaries
    )


def step_rows(times: StepTimes) -> tuple[StepLatency, ...]:
    """One row for each kind of real step seen, in order."""
    return tuple(
        StepLatency(kind.batch_size, kind.context, kind.positions, count, median)
        for kind, (count, median) in in_pieces(
            sorted(times.medians().items(), key=lambda item: _kind_in_order(item[0])),
            ROWS_AT_A_TIME,
        )
    )


def _times(timing: Timing) -> dict[Module, float]:
    return {**timing.modules, Module.MODEL: timing.step_seconds}


def _cumulative(counts: Sequence[int]) -> list[int]:
    total, result = 0, []
    for count in counts:
        total += count
        result.append(total)
    return result


class Publisher:
    """The thread that turns pairs into published estimates.

    Args:
        config: the probe's settings.
        identity: the fixed part of each snapshot, as far as it is known.
        times: of real steps; written by the serving thread.
        output: where results go.
        sender: takes the curves whenever they have changed; None if nobody wants them.
    """

    def __init__(
        self,
        config: ProbeConfig,
        identity: Snapshot,
        times: StepTimes,
        output: Output,
        sender: CurveSender | None = None,
    ) -> None:
        self._config = config
        self._identity = identity
        self._times = times
        self._output = output
        self._sender = sender
        self._sent_version = 0
        self._kept_at = -math.inf
        self._kept_state: State | None = None
        self._results = Results(config)
        self._queue: queue.SimpleQueue[PairResult] = queue.SimpleQueue()
        self._counters = Counters()
        self._processing = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nfp-publisher", daemon=True)
        self._feedback = Feedback()
        self._fault: str | None = None

    @property
    def feedback(self) -> Feedback:
        """What the latest estimates mean for the plan; any thread may read it at any time."""
        return self._feedback

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
        """Take in what the queue holds and estimate again; one thread at a time.

        The serving thread calls it during the start alone, before the background thread begins.
        """
        with self._processing:
            while not self._queue.empty():
                result = self._queue.get()
                self._output.record(result)
                self._results.add(result)
                give_way()
            self._results.update()
            self._feedback = self._results.feedback()

    def stop(self) -> None:
        """Let the thread end; does not wait for it."""
        self._stop.set()

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._config.publish_seconds):
                self._publish()
        except Exception as error:
            self._fault = f"publishing failed: {error!r}"

    def _publish(self) -> None:
        self.process()
        maybe_fail("publish")
        self._send_changed_curves()  # first: a write may hang
        snapshot = self.snapshot()
        self._output.write(snapshot)
        self._keep_sometimes(snapshot)

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
        """Estimate and publish in the middle of a scan, from the thread that scans."""
        self.process()
        self._output.write(self.snapshot())

    def full_snapshot(self) -> Snapshot:
        """All that is known now, the times of layers too; waits for no update that is under way."""
        return replace(self.snapshot(), layer_times=self._results.layer_times())

    def snapshot(self) -> Snapshot:
        """What is known now and fits into the metrics."""
        counters = self._counters
        found = self._results.findings
        probed = _state(bool(found.boundaries), counters.missing_pairs == 0)
        return replace(
            self._identity,
            state=State.PASSIVE if self._config.passive else probed,
            updated_unix_seconds=time.time(),
            updated_monotonic_seconds=time.monotonic(),
            idle_probe_seconds=counters.idle_probe_seconds,
            step_ratio=counters.step_ratio,
            budget_slack=counters.budget_slack,
            graph_bytes=counters.graph_bytes,
            steps=step_rows(self._times),
            probes=dict(counters.probes),
            probe_seconds=counters.probe_seconds,
            overhead_ratio=counters.overhead_ratio,
            boundaries=found.boundaries,
            curves=found.curves,
            layers=found.layers,
            missing_pairs=counters.missing_pairs,
            live=_live(counters.last_step),
        )


def _live(step: EngineStep | None) -> LiveStep | None:
    return None if step is None else LiveStep(step.batch_size, step.context, step.positions)


def _state(has_estimates: bool, complete: bool) -> State:
    if not has_estimates:
        return State.WARMING
    return State.STEADY if complete else State.PROBING
