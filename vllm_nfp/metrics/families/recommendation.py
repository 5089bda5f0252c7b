"""The draft length that ``vllm-nfp recommend`` gives, by batch size."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from prometheus_client.core import GaugeMetricFamily, Metric

from vllm_nfp.draft.acceptance import Acceptance
from vllm_nfp.draft.curve import StepCurve
from vllm_nfp.draft.demand import FREE, Demand, DraftCost
from vllm_nfp.draft.schedule import best_length
from vllm_nfp.draft.server import LIVE_RATIO, LIVE_SECONDS
from vllm_nfp.draft.server_drafts import (
    COUNTERS,
    DRAFT_CONTROL,
    DRAFT_SECONDS,
    live_acceptance,
    live_drafting,
)
from vllm_nfp.draft.sources import SourceError, curves_of_rows
from vllm_nfp.metrics.families.curves import CurvesOf, step_curves
from vllm_nfp.metrics.families.labels import ENGINE, engine_labels
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.types import Basis, State

SIZE = [*ENGINE, "batch_size"]
AcceptanceOf = Callable[[str], Acceptance | None]
"""The acceptance of an engine's drafts; None: not known."""
CostOf = Callable[[str], DraftCost | None]
"""What an engine's drafts cost; None: not known."""


def recommended(
    engines: list[Snapshot],
    curves: CurvesOf,
    live: CurvesOf,
    acceptance_of: AcceptanceOf,
    cost_of: CostOf,
) -> Iterator[Metric]:
    """Draft lengths of the engines whose acceptance and cost are known.

    Args:
        curves: the reported table.
        live: see :func:`live_curves`.
    """
    at_size = _WithBasis(
        "vllm_nfp_recommended_draft_length",
        "vllm_nfp_recommended_draft_length_basis",
        "Draft length of vllm-nfp recommend at the context of live traffic.",
        SIZE,
    )
    now = _WithBasis(
        "vllm_nfp_live_recommended_draft_length",
        "vllm_nfp_live_recommended_draft_length_basis",
        "The same at the batch size of live traffic.",
        ENGINE,
    )
    for snapshot in engines:
        acceptance, cost = acceptance_of(snapshot.engine), cost_of(snapshot.engine)
        if acceptance is None or cost is None:
            continue
        demand, of = Demand(acceptance, cost), engine_labels(snapshot)
        lengths = _lengths(snapshot, curves[snapshot.engine], live[snapshot.engine], demand)
        for batch_size, (length, basis) in lengths.items():
            at_size.add([*of, str(batch_size)], length, basis)
        for curve in _at_live(snapshot, live[snapshot.engine]):
            now.add(of, *_length(curve, demand))
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
        GaugeMetricFamily(name, f"{end} end of the 95% interval {text}", labels=labels)
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


def recommended_draft_lengths(
    snapshot: Snapshot, acceptance: Acceptance, cost: DraftCost = FREE
) -> dict[int, int]:
    """What ``recommend`` gives by reported batch size, at the context of the last step.

    Where the snapshot has no curves of that context, the nearest reported one counts; without a
    step the smallest. As there, no length exceeds the number of
    drafts whose acceptance is known.
    """
    curves, live = (of([snapshot])[snapshot.engine] for of in (step_curves, live_curves))
    lengths = _lengths(snapshot, curves, live, Demand(acceptance, cost))
    return {batch_size: length for batch_size, (length, _) in lengths.items()}


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

    def add(self, labels: Sequence[str], value: float, basis: Basis) -> None:
        self._value.add_metric(labels, value)
        self._basis.add_metric([*labels, str(basis)], 1)


def _at_live(snapshot: Snapshot, live: Sequence[StepCurve]) -> list[StepCurve]:
    """The curve of the batch size of the last step; empty if there is none."""
    if snapshot.live is None:
        return []
    return [curve for curve in live if curve.batch_size == snapshot.live.batch_size]


def _lengths(
    snapshot: Snapshot, curves: Sequence[StepCurve], live: Sequence[StepCurve], demand: Demand
) -> dict[int, tuple[int, Basis]]:
    """Draft length and its basis by reported batch size."""
    if not curves:
        return {}
    now = 0 if snapshot.live is None else snapshot.live.context
    nearest = min({curve.context for curve in curves}, key=lambda c: (abs(c - now), c))
    reported = {curve.batch_size for curve in curves}
    return {
        curve.batch_size: _length(curve, demand)
        for curve in live or [curve for curve in curves if curve.context == nearest]
        if curve.batch_size in reported
    }


def _length(curve: StepCurve, demand: Demand) -> tuple[int, Basis]:
    length = best_length(curve, demand)
    return length, curve.basis(length + 1)


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
