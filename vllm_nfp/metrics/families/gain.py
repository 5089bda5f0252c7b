"""The draft length that runs, and what the recommended one would gain over it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily, Metric

from vllm_nfp.draft.curve import StepCurve
from vllm_nfp.draft.demand import Demand
from vllm_nfp.draft.server_drafts import ACCEPTED_PER_POSITION, DRAFTS
from vllm_nfp.metrics.families.curves import CurvesOf
from vllm_nfp.metrics.families.labels import ENGINE, engine_labels
from vllm_nfp.metrics.families.recommendation import AcceptanceOf, CostOf
from vllm_nfp.results.snapshot import Snapshot

RECOMMENDED = "vllm_nfp_live_recommended_draft_length"
RUNNING = "vllm_nfp_live_running_draft_length"
CONTROLLED = "vllm_nfp_live_draft_length"
DemandOf = Callable[[str], Demand | None]
"""What an engine's draft lengths are chosen for; None: acceptance or cost is not known."""
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
    recommended = _by_engine(lengths, RECOMMENDED)
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
    """The gain of a draft length over the one that runs; None where the latter is not known.

    The interval is that of the two steps' times, taken as independent: rather too wide.
    """
    longest = demand.acceptance.longest
    if running >= curve.largest or (longest is not None and running > longest):
        return None
    if length == running:
        return Gain(1.0, 1.0, 1.0)
    value = demand.gain(curve, length) / demand.gain(curve, running)
    down, up = _spread(curve, demand, length)
    their_down, their_up = _spread(curve, demand, running)
    lower, upper = math.hypot(down, their_up), math.hypot(up, their_down)
    if math.isinf(lower) or math.isinf(upper):
        return Gain(value, None, None)
    return Gain(value, value * math.exp(-lower), value * math.exp(upper))


def _spread(curve: StepCurve, demand: Demand, length: int) -> tuple[float, float]:
    """How far the interval of a gain reaches down and up, as logarithms; infinite if unknown."""
    if length == 0:
        return 0.0, 0.0  # t(1) / t(1)
    gain = demand.gain(curve, length)
    lower, upper = demand.gain_interval(curve, length)
    down = math.log(gain / lower) if lower > 0.0 else math.inf
    return down, math.log(upper / gain) if math.isfinite(upper) else math.inf


def told_running(controls: Iterable[Metric], others: Iterable[Metric]) -> RunningOf:
    """The draft lengths that engines run: draft control's last one, else the configured one.

    Args:
        controls: the controllers' metrics.
        others: vLLM's own metrics; it counts every configured draft position apart.
    """
    controlled = _by_engine(controls, CONTROLLED)
    drafts: set[str] = set()
    places: dict[str, set[str]] = {}
    for labels, name, _ in _samples(others):
        if name == DRAFTS:
            drafts.add(labels.get("engine", ""))
        elif name == ACCEPTED_PER_POSITION:
            places.setdefault(labels.get("engine", ""), set()).add(labels.get("position", ""))

    def running_of(engine: str) -> int | None:
        if engine in controlled:
            return int(controlled[engine])
        if engine not in drafts:
            return 0
        return len(places.get(engine, ())) or None

    return running_of


def demand_of(acceptance_of: AcceptanceOf, cost_of: CostOf) -> DemandOf:
    """What draft lengths are chosen for, of acceptance and cost."""

    def demand(engine: str) -> Demand | None:
        acceptance, cost = acceptance_of(engine), cost_of(engine)
        return None if acceptance is None or cost is None else Demand(acceptance, cost)

    return demand


def _by_engine(metrics: Iterable[Metric], wanted: str) -> dict[str, float]:
    return {of["engine"]: value for of, name, value in _samples(metrics) if name == wanted}


def _samples(metrics: Iterable[Metric]) -> Iterator[tuple[Mapping[str, str], str, float]]:
    for metric in metrics:
        for sample in metric.samples:
            yield sample.labels, sample.name, sample.value
