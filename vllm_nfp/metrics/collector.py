"""The Prometheus collector that every API server's registry carries.

Metric names and labels are a contract with users' dashboards (see README.md). Labels have bounded
values: modules, states and outcomes are fixed sets; batch sizes, contexts, epsilons and positions
come from the settings, which bound their number.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from prometheus_client.core import (
    CollectorRegistry,
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from vllm_nfp.draft.acceptance import Acceptance, constant
from vllm_nfp.draft.curve import StepCurve
from vllm_nfp.draft.demand import FREE, Demand, DraftCost
from vllm_nfp.draft.schedule import best_length
from vllm_nfp.draft.server import STEP_RATIO
from vllm_nfp.draft.server_drafts import (
    COUNTERS,
    DRAFT_CONTROL,
    DRAFT_SECONDS,
    live_acceptance,
    live_drafting,
)
from vllm_nfp.draft.sources import SourceError, curves_of_rows
from vllm_nfp.faults import maybe_fail
from vllm_nfp.give_way import in_pieces
from vllm_nfp.results import control
from vllm_nfp.results.control import ControlSnapshot, control_families
from vllm_nfp.results.snapshot import (
    FILE_PATTERN,
    Snapshot,
    SnapshotError,
    engine_file,
    read_snapshot,
)
from vllm_nfp.text import label
from vllm_nfp.types import Boundary, CurvePoint, Prediction, State

logger = logging.getLogger("vllm.nfp")

_FileState = tuple[str, int, int, int]
"""Path, time of change, size and inode: alike as long as the file is."""
MOST_ENGINES = 1024
"""Data-parallel engines on one machine; a folder with more files is none of ours."""
ROWS_AT_A_TIME = 24
"""Rows that become samples before a pause: some 0.3 ms."""
S = TypeVar("S", Snapshot, ControlSnapshot)
AcceptanceOf = Callable[[str], Acceptance | None]
"""The acceptance of an engine's drafts; None: not known."""
_CurvesOf = Mapping[str, tuple[StepCurve, ...]]
"""The whole step's curves by engine."""
CostOf = Callable[[str], DraftCost | None]
"""What an engine's drafts cost; None: not known."""

MOST_REASON_CHARACTERS = 300
"""Length at which the reason is cut in a label; the log has all of it."""

_ENGINE = ["model_name", "engine"]
_CELL = [*_ENGINE, "module", "batch_size", "context"]
_LINE = [*_CELL, "epsilon"]


_NOT_YET = "no engine has handed over any results yet"
_FOLDER_GONE = "the hand-over directory is gone"
_FOLDER_FOREIGN = "the hand-over directory is not this user's any more"
_FILE_GONE = "the hand-over file is gone"
_FILE_UNUSABLE = "the hand-over file cannot be used; the log says why"


class NfpCollector:
    """Reads the engines' hand-over files at each scrape and turns them into metrics.

    An engine whose file cannot be read any more keeps its last state and age, with the reason.

    Args:
        run_dir: the folder that the engines write to.
        draft_acceptance: chance that a draft is accepted; None: what the server has counted.
        registry: holds vLLM's own counters of drafts; None: there are none.
    """

    def __init__(
        self,
        run_dir: str,
        draft_acceptance: float | None = None,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self._run_dir = Path(run_dir)
        self._draft_acceptance = draft_acceptance
        self._registry = registry
        self._warned: set[str] = set()
        self._read: dict[str, dict[Path, tuple[_FileState, Any]]] = {}
        self._built: tuple[list[_FileState], list[Snapshot], list[Metric], _CurvesOf] = (
            [],
            [],
            [],
            {},
        )
        self._unusable: set[Path] = set()
        self._last: dict[Path, Snapshot] = {}
        """Of each engine that was ever read, without its results."""
        self._lost: dict[Path, str] = {}
        """Those of them that cannot be read now, and why."""
        # Scrapes come in threads of their own; one at a time reads and builds.
        self._lock = threading.Lock()

    def describe(self) -> Iterable[Metric]:
        """The metrics without values: registering the collector reads no file.

        A collector that names nothing would be asked for vLLM's counters as well, by itself.
        """
        return list(families_of([]))

    def collect(self) -> Iterator[Metric]:
        """The metrics of all engines; a fault gives fewer metrics, never a failed scrape."""
        if self._registry is None or self._draft_acceptance is not None:
            return self.collect_beside(())
        return self.collect_beside(self._registry.restricted_registry(COUNTERS).collect())

    def collect_beside(self, others: Iterable[Metric]) -> Iterator[Metric]:
        """The same, with vLLM's counters of drafts taken from these metrics."""
        try:
            maybe_fail("collect")
            controls = list(control_families(self._controls()))
            families = [
                *self._current(self._acceptances(others), told_cost(controls)),
                *controls,
            ]
        except Exception as error:
            self._warn_once(f"the probe's metrics could not be collected: {error!r}")
            families = []
        yield from families

    def _acceptances(self, others: Iterable[Metric]) -> AcceptanceOf:
        given = self._draft_acceptance
        return counted_acceptance(others) if given is None else lambda _: constant(given)

    def _current(self, acceptance_of: AcceptanceOf, cost_of: CostOf) -> list[Metric]:
        """All families; those that only the files decide are built once for each new file.

        So the cost of a scrape does not depend on how much is measured or how often one asks.
        """
        with self._lock:
            snapshots = self._snapshots()
            states = [state for state, _ in self._read[FILE_PATTERN].values()]
            lost = self._lost_engines()
            if self._built[:2] != (states, lost) or not self._built[2]:
                curves = _step_curves(snapshots)
                families = list(_of_files(snapshots, curves, lost))
                self._built = (states, lost, families, curves)
            _, _, fixed, curves = self._built
        lengths = _recommended(snapshots, curves, acceptance_of, cost_of)
        return [*fixed, *_ages([*snapshots, *lost]), *lengths]

    def _lost_engines(self) -> list[Snapshot]:
        """What is left of engines that cannot be read now, with the reason; told in the log once.

        While no engine was ever read, one that is warming stands for all.
        """
        read = {path: snapshot for path, (_, snapshot) in self._read[FILE_PATTERN].items()}
        for path in self._lost.keys() & read.keys():
            logger.info("vllm-nfp: the results of engine %s are there again", read[path].engine)
        for path, snapshot in read.items():
            self._last[path] = Snapshot(
                snapshot.model_name,
                snapshot.engine,
                snapshot.state,
                snapshot.reason,
                updated_monotonic_seconds=snapshot.updated_monotonic_seconds,
            )
        trouble = self._folder_trouble()
        lost = {
            path: trouble or (_FILE_UNUSABLE if path in self._unusable else _FILE_GONE)
            for path in sorted(self._last.keys() - read.keys())
        }
        for path in lost.keys() - self._lost.keys():
            logger.warning(
                "vllm-nfp: results of engine %s cannot be read now: %s",
                self._last[path].engine,
                lost[path],
            )
        self._lost = lost
        if not self._last:
            why = trouble or (_FILE_UNUSABLE if self._unusable else _NOT_YET)
            return [Snapshot("", "0", State.WARMING, reason=why)]
        return [_with_reason(self._last[path], why) for path, why in lost.items()]

    def _folder_trouble(self) -> str:
        """Why nothing in the folder is to be read; empty if it is this user's own."""
        try:
            found = self._run_dir.lstat()
        except OSError:
            return _FOLDER_GONE
        own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
        return "" if own else _FOLDER_FOREIGN

    def _snapshots(self) -> list[Snapshot]:
        self._unusable.clear()
        return self._read_all(FILE_PATTERN, read_snapshot, engine_file)

    def _controls(self) -> list[ControlSnapshot]:
        with self._lock:
            return self._read_all(control.FILE_PATTERN, control.read_control, control.control_file)

    def _read_all(
        self, pattern: str, read: Callable[[Path], S], file_of: Callable[[str, str], Path]
    ) -> list[S]:
        """What the hand-over files of one kind hold; those that cannot be used are told once.

        A file that has not changed is not read again.
        """
        found: dict[Path, tuple[_FileState, S]] = {}
        known = self._read.get(pattern, {})
        paths = () if self._folder_trouble() else sorted(self._run_dir.glob(pattern))
        for path in paths[:MOST_ENGINES]:
            try:
                status = path.stat()
                state = (str(path), status.st_mtime_ns, status.st_size, status.st_ino)
                if path in known and known[path][0] == state:
                    found[path] = known[path]
                    continue
                snapshot = read(path)
                # Two files of one engine would give every series twice, and fail the scrape.
                if file_of(str(self._run_dir), snapshot.engine) != path:
                    raise SnapshotError(f"it speaks for engine {snapshot.engine}")
                found[path] = (state, snapshot)
            except FileNotFoundError:  # replaced or removed in this moment
                continue
            except (OSError, ValueError) as error:
                self._unusable.add(path)
                self._warn_once(f"the hand-over file {path.name} is ignored: {error}")
        self._read[pattern] = found
        return [snapshot for _, snapshot in found.values()]

    def _warn_once(self, message: str) -> None:
        if message not in self._warned and len(self._warned) < 100:
            self._warned.add(message)
            logger.error("vllm-nfp: %s", message)


def _with_reason(snapshot: Snapshot, reason: str) -> Snapshot:
    """The snapshot with another reason before its own."""
    own = f"; {snapshot.reason}" if snapshot.reason else ""
    return replace(snapshot, reason=reason + own)


def families_of(
    snapshots: Iterable[Snapshot],
    acceptance_of: AcceptanceOf = lambda _: None,
    cost_of: CostOf = lambda _: FREE,
) -> Iterator[Metric]:
    """The metric families for the given engines.

    Args:
        acceptance_of: of the drafts of an engine; where it is None no length is recommended.
        cost_of: of the drafts of an engine; where it is None no length is recommended either.
    """
    engines = list(snapshots)
    curves = _step_curves(engines)
    yield from _of_files(engines, curves)
    yield from _ages(engines)
    yield from _recommended(engines, curves, acceptance_of, cost_of)


def _of_files(
    engines: list[Snapshot], curves: _CurvesOf, lost: Iterable[Snapshot] = ()
) -> Iterator[Metric]:
    """Families that the hand-over files alone decide.

    Args:
        lost: engines of which the state alone is known.
    """
    yield from _boundaries(engines)
    yield from _predictions(engines)
    yield from _curves(engines)
    yield from _step_ratios(engines, curves)
    yield from _layers(engines)
    yield from _probing(engines)
    yield from _states([*engines, *lost])
    yield from _costs(engines)
    yield from _steps(engines)
    yield from _live(engines)


def _engine(snapshot: Snapshot) -> list[str]:
    return [label(snapshot.model_name), snapshot.engine]


def _cell(snapshot: Snapshot, row: Boundary | CurvePoint | Prediction) -> list[str]:
    return [*_engine(snapshot), row.module, str(row.batch_size), str(row.context)]


def _boundaries(engines: list[Snapshot]) -> Iterator[Metric]:
    estimate = GaugeMetricFamily(
        "vllm_nfp_positions",
        "NFP: free positions per sequence, with a step at most (1+epsilon) times t(1).",
        labels=_LINE,
    )
    lower = GaugeMetricFamily(
        "vllm_nfp_positions_lower", "Lower end of NFP's 95% interval.", labels=_LINE
    )
    upper = GaugeMetricFamily(
        "vllm_nfp_positions_upper",
        "Upper end of NFP's 95% interval; the largest N tested if all were free.",
        labels=_LINE,
    )
    at_limit = GaugeMetricFamily(
        "vllm_nfp_positions_at_limit",
        "1 if the largest N tested is still free, so NFP is this or more.",
        labels=_LINE,
    )
    largest = GaugeMetricFamily(
        "vllm_nfp_positions_largest_free",
        "Largest N tested that is significantly free, even if a smaller N is not.",
        labels=_LINE,
    )
    for snapshot in engines:
        for row in in_pieces(snapshot.boundaries, ROWS_AT_A_TIME):
            labels = [*_cell(snapshot, row), f"{row.epsilon:g}"]
            estimate.add_metric(labels, row.positions)
            lower.add_metric(labels, row.lower)
            upper.add_metric(labels, row.upper)
            at_limit.add_metric(labels, float(row.at_limit))
            largest.add_metric(labels, row.largest_free)
    yield from (estimate, lower, upper, at_limit, largest)


def _predictions(engines: list[Snapshot]) -> Iterator[Metric]:
    predicted = GaugeMetricFamily(
        "vllm_nfp_predicted_positions",
        "NFP predicted from the device's data sheet and kernel granularity.",
        labels=_LINE,
    )
    idle = GaugeMetricFamily(
        "vllm_nfp_idle_compute_positions",
        "NFP by the roofline rule: free until compute-bound.",
        labels=_LINE,
    )
    for snapshot in engines:
        for row in in_pieces(snapshot.predictions, ROWS_AT_A_TIME):
            labels = [*_cell(snapshot, row), f"{row.epsilon:g}"]
            predicted.add_metric(labels, row.positions)
            idle.add_metric(labels, row.idle_compute_positions)
    yield from (predicted, idle)


def _curves(engines: list[Snapshot]) -> Iterator[Metric]:
    labels = [*_CELL, "positions"]
    latency = GaugeMetricFamily(
        "vllm_nfp_module_latency_seconds",
        "Median time of the module: mean of its timed layers; for model, the whole step.",
        labels=labels,
    )
    samples = GaugeMetricFamily("vllm_nfp_samples", "Pairs of probes at this point.", labels=labels)
    graphed = GaugeMetricFamily(
        "vllm_nfp_execution_info",
        "1 for the way a step of this shape ran: full or piecewise CUDA graph, or none.",
        labels=[*labels, "execution"],
    )
    for snapshot in engines:
        for row in in_pieces(snapshot.curves, ROWS_AT_A_TIME):
            values = [*_cell(snapshot, row), str(row.positions)]
            latency.add_metric(values, row.median_seconds)
            samples.add_metric(values, row.samples)
            graphed.add_metric([*values, row.execution], 1)
    yield from (latency, samples, graphed)


def _step_curves(engines: Iterable[Snapshot]) -> _CurvesOf:
    """The whole step's curves; none of a damaged file: other metrics, and engines, go on."""
    found = {}
    for snapshot in engines:
        try:
            found[snapshot.engine] = curves_of_rows(snapshot.curves)
        except ValueError:
            found[snapshot.engine] = ()
    return found


def _step_ratios(engines: list[Snapshot], curves: _CurvesOf) -> Iterator[Metric]:
    ratio = GaugeMetricFamily(
        STEP_RATIO,
        "t(N) / t(1) of the probed whole step, from pairs. Without a CUDA graph, at least the time "
        "that the host needs.",
        labels=[*_ENGINE, "batch_size", "context", "positions"],
    )
    for snapshot in engines:
        for curve in curves[snapshot.engine]:
            cell = [*_engine(snapshot), str(curve.batch_size), str(curve.context)]
            for positions, value in curve.points:
                ratio.add_metric([*cell, str(positions)], value)
    yield ratio


def _layers(engines: list[Snapshot]) -> Iterator[Metric]:
    if not any(snapshot.layers for snapshot in engines):
        return
    family = HistogramMetricFamily(
        "vllm_nfp_layer_latency_seconds",
        "Time of one layer's module in probes; only with layer_histograms.",
        labels=[*_ENGINE, "layer", "module"],
    )
    for snapshot in engines:
        for histogram in snapshot.layers:
            bounds = [*(f"{bound:g}" for bound in histogram.bounds_seconds), "+Inf"]
            family.add_metric(
                [*_engine(snapshot), str(histogram.layer), histogram.module],
                buckets=list(zip(bounds, map(float, histogram.counts), strict=True)),
                sum_value=histogram.sum_seconds,
            )
    yield family


def _probing(engines: list[Snapshot]) -> Iterator[Metric]:
    probes = CounterMetricFamily(
        "vllm_nfp_probes",
        "Probe pairs: measured (between steps), idle, startup. Warm-up runs and captures: prepared "
        "(serving or idle), startup_prepared. Attempts without free memory: refused.",
        labels=[*_ENGINE, "outcome"],
    )
    seconds = CounterMetricFamily(
        "vllm_nfp_probe_gpu_seconds",
        "GPU time of probes while serving (host time on a CPU).",
        labels=_ENGINE,
    )
    ratio = GaugeMetricFamily(
        "vllm_nfp_overhead_ratio", "Fraction of serving time spent on probes.", labels=_ENGINE
    )
    budget = GaugeMetricFamily(
        "vllm_nfp_overhead_budget_ratio",
        "Maximum fraction of serving time for probes, as configured.",
        labels=_ENGINE,
    )
    startup = GaugeMetricFamily(
        "vllm_nfp_startup_seconds",
        "Startup time added by the probe, including imports and predictions.",
        labels=_ENGINE,
    )
    memory = GaugeMetricFamily(
        "vllm_nfp_graph_bytes", "GPU memory of the probe's CUDA graphs.", labels=_ENGINE
    )
    for snapshot in engines:
        labels = _engine(snapshot)
        for outcome, count in sorted(snapshot.probes.items()):
            probes.add_metric([*labels, outcome], count)
        seconds.add_metric(labels, snapshot.probe_seconds)
        ratio.add_metric(labels, snapshot.overhead_ratio)
        budget.add_metric(labels, snapshot.overhead_budget)
        startup.add_metric(labels, snapshot.startup_seconds)
        memory.add_metric(labels, snapshot.graph_bytes)
    yield from (probes, seconds, ratio, budget, startup, memory)


def _states(engines: list[Snapshot]) -> Iterator[Metric]:
    state = GaugeMetricFamily(
        "vllm_nfp_state",
        "1 for the probe's state: warming, probing, steady, passive or disabled.",
        labels=[*_ENGINE, "state"],
    )
    why = GaugeMetricFamily(
        "vllm_nfp_state_info",
        "1 for the reason why the probe is passive or disabled, or its results are missing; "
        "absent while it probes.",
        labels=[*_ENGINE, "state", "reason"],
    )
    for snapshot in engines:
        labels = _engine(snapshot)
        for name in State:
            state.add_metric([*labels, str(name)], float(snapshot.state == name))
        if snapshot.reason:
            reason = label(" ".join(snapshot.reason.split()))[:MOST_REASON_CHARACTERS]
            why.add_metric([*labels, str(snapshot.state), reason], 1)
    yield from (state, why)


def _costs(engines: list[Snapshot]) -> Iterator[Metric]:
    idle = CounterMetricFamily(
        "vllm_nfp_idle_probe_gpu_seconds",
        "GPU time of probes while no request was present (host time on a CPU).",
        labels=_ENGINE,
    )
    delayed = GaugeMetricFamily(
        "vllm_nfp_delayed_steps_ratio", "Fraction of steps delayed by a probe.", labels=_ENGINE
    )
    slack = GaugeMetricFamily(
        "vllm_nfp_budget_slack_ratio",
        "Fraction of the budget available under the current load; 0 while requests wait.",
        labels=_ENGINE,
    )
    memory = GaugeMetricFamily(
        "vllm_nfp_memory_bytes",
        "Memory of the probe: gpu, or host (growth of the worker while the probe attached).",
        labels=[*_ENGINE, "kind"],
    )
    for snapshot in engines:
        labels = _engine(snapshot)
        idle.add_metric(labels, snapshot.idle_probe_seconds)
        delayed.add_metric(labels, snapshot.step_ratio)
        slack.add_metric(labels, snapshot.budget_slack)
        memory.add_metric([*labels, "gpu"], snapshot.graph_bytes)
        memory.add_metric([*labels, "host"], snapshot.host_bytes)
    yield from (idle, delayed, slack, memory)


def _steps(engines: list[Snapshot]) -> Iterator[Metric]:
    names = [*_ENGINE, "batch_size", "context", "positions"]
    latency = GaugeMetricFamily(
        "vllm_nfp_step_latency_seconds",
        "Median time of recent real decode steps, from launch to the end of sampling.",
        labels=names,
    )
    count = CounterMetricFamily("vllm_nfp_steps", "Real decode steps of each kind.", labels=names)
    for snapshot in engines:
        for row in in_pieces(snapshot.steps, ROWS_AT_A_TIME):
            labels = [
                *_engine(snapshot),
                str(row.batch_size),
                str(row.context),
                str(row.positions),
            ]
            latency.add_metric(labels, row.median_seconds)
            count.add_metric(labels, row.samples)
    yield from (latency, count)


def _ages(engines: list[Snapshot]) -> Iterator[Metric]:
    age = GaugeMetricFamily(
        "vllm_nfp_age_seconds",
        "Seconds since the engine last updated its probe metrics; grows if it hangs or exits.",
        labels=_ENGINE,
    )
    for snapshot in engines:
        if snapshot.updated_monotonic_seconds > 0.0:
            seconds = time.monotonic() - snapshot.updated_monotonic_seconds
            age.add_metric(_engine(snapshot), max(0.0, seconds))
    yield age


def _live(engines: list[Snapshot]) -> Iterator[Metric]:
    batch = GaugeMetricFamily(
        "vllm_nfp_live_batch_size", "Sequences in the last real decode step.", labels=_ENGINE
    )
    context = GaugeMetricFamily(
        "vllm_nfp_live_context", "Mean context in the last decode step, in tokens.", labels=_ENGINE
    )
    positions = GaugeMetricFamily(
        "vllm_nfp_live_positions", "Positions per sequence in the last decode step.", labels=_ENGINE
    )
    free = GaugeMetricFamily(
        "vllm_nfp_free_tokens",
        "Tokens that the last real step could have added within (1+epsilon).",
        labels=[*_ENGINE, "epsilon"],
    )
    cell = GaugeMetricFamily(
        "vllm_nfp_live_cell_info",
        "1 for the smallest probed batch size and context that contain the last real step; "
        "absent if there is none.",
        labels=[*_ENGINE, "batch_size", "context"],
    )
    for snapshot in engines:
        # A disabled probe sees no steps: its last one would be shown as if it were now.
        if snapshot.live is None or snapshot.state == State.DISABLED:
            continue
        labels = _engine(snapshot)
        batch.add_metric(labels, snapshot.live.batch_size)
        context.add_metric(labels, snapshot.live.context)
        positions.add_metric(labels, snapshot.live.positions)
        for epsilon, tokens in free_tokens(snapshot).items():
            free.add_metric([*labels, f"{epsilon:g}"], tokens)
        nearest = live_cell(snapshot)
        if nearest is not None:
            cell.add_metric([*labels, *map(str, nearest)], 1)
    yield from (batch, context, positions, free, cell)


def live_cell(snapshot: Snapshot) -> tuple[int, int] | None:
    """Batch size and context of the smallest probed cell that holds the last real step.

    None before the first step, and where no cell with an estimate of the model holds it.
    """
    live = snapshot.live
    if live is None:
        return None
    return min(
        (
            (row.batch_size, row.context)
            for row in snapshot.boundaries
            if row.module == "model"
            and row.batch_size >= live.batch_size
            and row.context >= live.context
        ),
        default=None,
    )


def free_tokens(snapshot: Snapshot) -> dict[float, int]:
    """Tokens free in the last real step, by epsilon: B (NFP - positions already run).

    Taken from the whole model's row of the smallest probed batch size and context that hold the
    live ones; empty where none does.
    """
    live, cell = snapshot.live, live_cell(snapshot)
    if live is None or cell is None:
        return {}
    return {
        row.epsilon: live.batch_size * max(0, row.positions - live.positions)
        for row in snapshot.boundaries
        if row.module == "model" and (row.batch_size, row.context) == cell
    }


def _recommended(
    engines: list[Snapshot], curves: _CurvesOf, acceptance_of: AcceptanceOf, cost_of: CostOf
) -> Iterator[Metric]:
    family = GaugeMetricFamily(
        "vllm_nfp_recommended_draft_length",
        "Draft length of vllm-nfp recommend at the probed context nearest to live traffic.",
        labels=[*_ENGINE, "batch_size"],
    )
    for snapshot in engines:
        acceptance, cost = acceptance_of(snapshot.engine), cost_of(snapshot.engine)
        if acceptance is None or cost is None:
            continue
        lengths = _lengths(snapshot, curves[snapshot.engine], acceptance, cost)
        for batch_size, draft_length in lengths.items():
            family.add_metric([*_engine(snapshot), str(batch_size)], draft_length)
    yield family


def recommended_draft_lengths(
    snapshot: Snapshot, acceptance: Acceptance, cost: DraftCost = FREE
) -> dict[int, int]:
    """What ``recommend`` gives by measured batch size, at the context nearest to the live one.

    Without a live step the smallest context counts. As there, no length exceeds the number of
    drafts whose acceptance is known.
    """
    curves = _step_curves([snapshot])[snapshot.engine]
    return _lengths(snapshot, curves, acceptance, cost)


def _lengths(
    snapshot: Snapshot, curves: Sequence[StepCurve], acceptance: Acceptance, cost: DraftCost
) -> dict[int, int]:
    if not curves:
        return {}
    live = 0 if snapshot.live is None else snapshot.live.context
    nearest = min({curve.context for curve in curves}, key=lambda c: (abs(c - live), c))
    demand = Demand(acceptance, cost)
    return {
        curve.batch_size: best_length(curve, demand) for curve in curves if curve.context == nearest
    }


def _samples_of(
    metrics: Iterable[Metric], names: Collection[str]
) -> dict[str, list[tuple[Mapping[str, str], float]]]:
    """The samples with these names, as a scrape has them."""
    samples: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    for metric in metrics:
        for sample in metric.samples:
            if sample.name in names:
                samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return samples


def told_cost(metrics: Iterable[Metric]) -> CostOf:
    """Cost of drafts by engine, from the controllers' metrics; free without a controller."""
    samples = _samples_of(metrics, (DRAFT_SECONDS, DRAFT_CONTROL))

    def cost_of(engine: str) -> DraftCost | None:
        drafting = live_drafting(samples, engine)
        return drafting.cost(drafting.method)

    return cost_of


def counted_acceptance(metrics: Iterable[Metric]) -> AcceptanceOf:
    """Acceptance by engine, from vLLM's counters among the metrics."""
    samples = _samples_of(metrics, COUNTERS)

    def acceptance_of(engine: str) -> Acceptance | None:
        try:
            return live_acceptance(samples, engine).acceptance
        except SourceError:  # no drafts, or none yet
            return None

    return acceptance_of
