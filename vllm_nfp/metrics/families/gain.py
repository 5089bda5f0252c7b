"""The draft length that runs, and what the recommended one would gain over it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily, Metric

from vllm_nfp.draft.curve import StepCurve
from vllm_nfp.draft.demand import Demand
from vllm_nfp.draft.server_drafts import COUNTERS, LIVE_DRAFT_LENGTH, running_length
from vllm_nfp.metrics.families.curves import CurvesOf
from vllm_nfp.metrics.families.labels import ENGINE, engine_labels
from vllm_nfp.metrics.families.recommendation import DemandOf, samples_of
from vllm_nfp.results.snapshot import Snapshot

RECOMMENDED = "vllm_nfp_live_recommended_draft_length"
RUNNING = "vllm_nfp_live_running_draft_length"
RunningOf = Callable[[str], int | None]
"""The draft length that an engine runs now; None: not known."""


@dataclass(frozen=True, slots=True)
class Gain:
    """Tokens per second at one draft length over those at another, with a 95 % interval."""

    value: float
    lower: float | None
    upper: float | None


def gains(
    engines: list[Snapshot],
    live: CurvesOf,
    lengths: Iterable[Metric],
    demand_of: DemandOf,
    running_of: RunningOf,
) -> Iterator[Metric]:
    """What runs, and the gain over it at the batch size and context of the last step.

    Args:
        live: the whole step's curves at the context of the last step.
        lengths: families with the recommended lengths.
    """
    running = GaugeMetricFamily(
        RUNNING,
        "Draft length in force at the batch size of live traffic; 0 without speculation.",
        labels=ENGINE,
    )
    text = (
        "tokens/s at vllm_nfp_live_recommended_draft_length over tokens/s at "
        "vllm_nfp_live_running_draft_length"
    )
    value = GaugeMetricFamily(
        "vllm_nfp_live_draft_gain_ratio",
        f"Expected {text}, at the batch size and context of live traffic; 1: keep what runs.",
        labels=ENGINE,
    )
    lower, upper = (
        GaugeMetricFamily(
            f"vllm_nfp_live_draft_gain_ratio_{end.lower()}",
            f"{end} end of the 95% interval of {text}.",
            labels=ENGINE,
        )
        for end in ("Lower", "Upper")
    )
    found = samples_of(lengths, (RECOMMENDED,)).get(RECOMMENDED, ())
    recommended = {labels["engine"]: length for labels, length in found}
    for snapshot in engines:
        now, engine = running_of(snapshot.engine), snapshot.engine
        if snapshot.live is None or now is None:
            continue
        of = engine_labels(snapshot)
        running.add_metric(of, now)
        demand = demand_of(engine)
        curves = (c for c in live[engine] if c.batch_size == snapshot.live.batch_size)
        curve = next(curves, None)
        if demand is None or curve is None or engine not in recommended:
            continue
        gain = gain_over(curve, demand, int(recommended[engine]), now)
        if gain is None:
            continue
        value.add_metric(of, gain.value)
        if gain.lower is not None and gain.upper is not None:
            lower.add_metric(of, gain.lower)
            upper.add_metric(of, gain.upper)
    yield from (running, value, lower, upper)


def gain_over(curve: StepCurve, demand: Demand, length: int, running: int) -> Gain | None:
    """The gain of a draft length over the one that runs; None where the latter is not known."""
    if running >= curve.largest or not demand.knows(running):
        return None
    if length == running:
        return Gain(1.0, 1.0, 1.0)
    value = demand.gain(curve, length, running)
    lower, upper = demand.gain_interval(curve, length, running)
    if not lower or math.isinf(upper):
        return Gain(value, None, None)
    return Gain(value, lower, upper)


def told_running(metrics: Iterable[Metric]) -> RunningOf:
    """The draft lengths that engines run.

    Args:
        metrics: the controllers' and vLLM's own.
    """
    samples = samples_of(metrics, (LIVE_DRAFT_LENGTH, *COUNTERS))
    return lambda engine: running_length(samples, engine)
