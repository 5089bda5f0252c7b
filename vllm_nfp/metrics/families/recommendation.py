"""The draft length that ``vllm-nfp recommend`` gives, by batch size."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from prometheus_client.core import GaugeMetricFamily, Metric

from vllm_nfp.draft.acceptance import Acceptance
from vllm_nfp.draft.curve import StepCurve
from vllm_nfp.draft.demand import FREE, Demand, DraftCost
from vllm_nfp.draft.schedule import best_length
from vllm_nfp.draft.server_drafts import (
    COUNTERS,
    DRAFT_CONTROL,
    DRAFT_SECONDS,
    live_acceptance,
    live_drafting,
)
from vllm_nfp.draft.sources import SourceError
from vllm_nfp.metrics.families.curves import CurvesOf, step_curves
from vllm_nfp.metrics.families.labels import ENGINE, engine_labels
from vllm_nfp.results.snapshot import Snapshot

AcceptanceOf = Callable[[str], Acceptance | None]
"""The acceptance of an engine's drafts; None: not known."""
CostOf = Callable[[str], DraftCost | None]
"""What an engine's drafts cost; None: not known."""


def recommended(
    engines: list[Snapshot], curves: CurvesOf, acceptance_of: AcceptanceOf, cost_of: CostOf
) -> Iterator[Metric]:
    """Draft lengths of the engines whose acceptance and cost are known."""
    family = GaugeMetricFamily(
        "vllm_nfp_recommended_draft_length",
        "Draft length of vllm-nfp recommend at the probed context nearest to live traffic.",
        labels=[*ENGINE, "batch_size"],
    )
    for snapshot in engines:
        acceptance, cost = acceptance_of(snapshot.engine), cost_of(snapshot.engine)
        if acceptance is None or cost is None:
            continue
        lengths = _lengths(snapshot, curves[snapshot.engine], acceptance, cost)
        for batch_size, draft_length in lengths.items():
            family.add_metric([*engine_labels(snapshot), str(batch_size)], draft_length)
    yield family


def recommended_draft_lengths(
    snapshot: Snapshot, acceptance: Acceptance, cost: DraftCost = FREE
) -> dict[int, int]:
    """What ``recommend`` gives by measured batch size, at the context nearest to the live one.

    Without a live step the smallest context counts. As there, no length exceeds the number of
    drafts whose acceptance is known.
    """
    curves = step_curves([snapshot])[snapshot.engine]
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
