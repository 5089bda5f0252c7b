"""The draft length that ``vllm-nfp recommend`` gives, by batch size."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from prometheus_client.core import GaugeMetricFamily, Metric

from vllm_nfp.draft.acceptance import constant
from vllm_nfp.draft.curve import StepCurve
from vllm_nfp.draft.demand import Demand
from vllm_nfp.draft.rows import RowBasis, Schedule, ScheduleRow, weakest_of
from vllm_nfp.draft.schedule import length_at, make_schedule
from vllm_nfp.draft.server import LIVE_RATIO, LIVE_SECONDS
from vllm_nfp.draft.server_drafts import (
    CONTROL_LENGTH,
    COUNTERS,
    DRAFT_CONTROL,
    DRAFT_SECONDS,
    live_acceptance,
    live_drafting,
    settled_length,
)
from vllm_nfp.draft.server_steps import STEP_TIMES, host_seconds
from vllm_nfp.draft.sources import SourceError, curves_of_rows
from vllm_nfp.metrics.families.curves import CurvesOf
from vllm_nfp.metrics.families.labels import ENGINE, engine_labels
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.types import State

SIZE = [*ENGINE, "batch_size"]
DemandOf = Callable[[str], Demand | None]
"""What an engine's draft lengths are chosen for; None: acceptance or cost is not known."""
SettledOf = Callable[[str, int, int], int | None]
"""The length that an engine's draft control has settled on, of engine, batch size and context."""


class Schedules:
    """The last schedule of each engine, which is made again only for other curves or demands.

    A schedule takes tens of milliseconds, and a server without traffic is scraped with the same
    inputs again and again.
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[Sequence[StepCurve], Demand, Schedule]] = {}

    def of(self, engine: str, curves: Sequence[StepCurve], demand: Demand) -> Schedule:
        """The schedule of these curves.

        Args:
            curves: the same object as long as they are the same.
        """
        last = self._last.get(engine)
        if last is None or last[0] is not curves or last[1] != demand:
            last = self._last[engine] = curves, demand, make_schedule(curves, demand, whole=True)
        return last[2]


def recommended(
    engines: list[Snapshot],
    curves: CurvesOf,
    live: CurvesOf,
    demand_of: DemandOf,
    settled: SettledOf = lambda *_: None,
    schedules: Schedules | None = None,
) -> Iterator[Metric]:
    """Draft lengths of the engines whose acceptance and cost are known.

    Args:
        curves: the reported table.
        live: see :func:`live_curves`.
        settled: what an engine's draft control has settled on by real steps.
        schedules: those of the last scrape; None: all are made.
    """
    schedules = Schedules() if schedules is None else schedules
    at_size = _WithBasis(
        "vllm_nfp_recommended_draft_length",
        "vllm_nfp_recommended_draft_length_basis",
        "Draft length of vllm-nfp recommend by batch size, the same in all contexts.",
        SIZE,
    )
    now = _WithBasis(
        "vllm_nfp_live_recommended_draft_length",
        "vllm_nfp_live_recommended_draft_length_basis",
        "Draft length recommended at the batch size and context of live traffic.",
        ENGINE,
    )
    for snapshot in engines:
        demand = demand_of(snapshot.engine)
        if demand is None:
            continue
        of, known = engine_labels(snapshot), curves[snapshot.engine]
        schedule = schedules.of(snapshot.engine, known, demand) if known else None
        for batch_size, (length, basis) in _lengths(schedule).items():
            at_size.add([*of, str(batch_size)], length, basis)
        for curve in _at_live(snapshot, live[snapshot.engine]):
            measured = settled(snapshot.engine, curve.batch_size, curve.context)
            now.add(of, *length_at(curve, demand, schedule, measured))
    yield from (*at_size.families, *now.families)


def live_ratios(engines: list[Snapshot], live: CurvesOf) -> Iterator[Metric]:
    """The curve at the real batch size and context of the last step, which ``recommend`` reads."""
    seconds = GaugeMetricFamily(
        LIVE_SECONDS, "t(1) at the batch size and context of the last decode step.", labels=ENGINE
    )
    labels = [*ENGINE, "positions"]
    text = "of t(N) / t(1) at the batch size and context of the last decode step, for N > 1."
    basis_name = "vllm_nfp_live_step_time_ratio_basis"
    ratio = _WithBasis(LIVE_RATIO, basis_name, f"Median {text}", labels)
    lower, upper = (
        GaugeMetricFamily(name, f"{end} end of the 95 % interval {text}", labels=labels)
        for name, end in (
            ("vllm_nfp_live_step_time_ratio_lower", "Lower"),
            ("vllm_nfp_live_step_time_ratio_upper", "Upper"),
        )
    )
    for snapshot in engines:
        of = engine_labels(snapshot)
        for curve in _at_live(snapshot, live[snapshot.engine]):
            seconds.add_metric(of, curve.seconds_at_one)
            for n, value in curve.points[1:]:
                ratio.add([*of, str(n)], value, curve.basis(n))
                low, high = curve.interval(n)
                if high < math.inf:
                    lower.add_metric([*of, str(n)], low)
                    upper.add_metric([*of, str(n)], high)
    yield from (seconds, *ratio.families, lower, upper)


def live_curves(engines: Iterable[Snapshot]) -> CurvesOf:
    """The whole step's curves at the context of the last step; none of a damaged file."""
    found = {}
    for snapshot in engines:
        try:
            rows = curves_of_rows(snapshot.live_curves, host_rows=snapshot.curves)
        except ValueError:
            rows = ()
        found[snapshot.engine] = () if snapshot.state == State.DISABLED else rows
    return found


class _WithBasis:
    """A number, and 1 for what it rests on."""

    def __init__(self, name: str, basis_name: str, text: str, labels: Sequence[str]) -> None:
        self._value = GaugeMetricFamily(name, text, labels=labels)
        self._basis = GaugeMetricFamily(
            basis_name,
            f"1 for what {name} rests on: measured, inferred or predicted.",
            labels=[*labels, "basis"],
        )
        self.families = (self._value, self._basis)

    def add(self, labels: Sequence[str], value: float, basis: RowBasis) -> None:
        self._value.add_metric(labels, value)
        self._basis.add_metric([*labels, str(basis)], 1)


def _at_live(snapshot: Snapshot, live: Sequence[StepCurve]) -> list[StepCurve]:
    """The curve of the batch size of the last step; empty if there is none."""
    if snapshot.live is None:
        return []
    return [curve for curve in live if curve.batch_size == snapshot.live.batch_size]


def _lengths(schedule: Schedule | None) -> dict[int, tuple[int, RowBasis]]:
    """Draft length and the weakest basis of its rows, by reported batch size."""
    found: dict[int, list[ScheduleRow]] = {}
    for row in () if schedule is None else schedule.rows:
        if not row.between:
            found.setdefault(row.batch_size_first, []).append(row)
    return {
        batch_size: (rows[0].draft_length, weakest_of(row.basis for row in rows))
        for batch_size, rows in found.items()
    }


def samples_of(
    metrics: Iterable[Metric], names: Collection[str]
) -> dict[str, list[tuple[Mapping[str, str], float]]]:
    """The samples with these names, as a scrape has them."""
    samples: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    for metric in metrics:
        for sample in metric.samples:
            if sample.name in names:
                samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return samples


def told_demand(
    controls: Iterable[Metric], others: Iterable[Metric], given: float | None = None
) -> DemandOf:
    """What lengths are chosen for by engine; None where acceptance or cost is not known.

    Args:
        controls: the controllers' metrics. Without a controller drafts are free.
        others: vLLM's own metrics, and the times of real steps.
        given: acceptance by the settings, in place of what was counted.
    """
    told = samples_of(controls, (DRAFT_SECONDS, DRAFT_CONTROL))
    counted = samples_of(others, (*COUNTERS, *STEP_TIMES))

    def demand_of(engine: str) -> Demand | None:
        drafting = live_drafting(told, engine)
        cost = drafting.cost(drafting.method)
        if cost is None:
            return None
        host = host_seconds(counted, engine)
        if given is not None:
            return Demand(constant(given), cost, host_seconds=host)
        try:
            acceptance = live_acceptance(counted, engine).acceptance
        except SourceError:  # no drafts, or none yet
            return None
        return Demand(acceptance, cost, host_seconds=host)

    return demand_of


def settled_lengths(controls: Iterable[Metric]) -> SettledOf:
    """What each engine's draft control has settled on, from the controllers' metrics."""
    samples = samples_of(controls, (CONTROL_LENGTH,))
    return lambda engine, batch_size, context: settled_length(samples, engine, batch_size, context)
