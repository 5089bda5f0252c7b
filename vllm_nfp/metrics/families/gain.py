"""The draft length that runs, and what the recommended one would gain over it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric

from vllm_nfp.draft.server_drafts import (
    ACCEPTED_PER_POSITION,
    DRAFTS,
    LIVE_DRAFT_LENGTH,
    running_length,
)
from vllm_nfp.metrics.families.curves import CurvesOf
from vllm_nfp.metrics.families.labels import ENGINE, engine_labels
from vllm_nfp.metrics.families.recommendation import DemandOf, samples_of
from vllm_nfp.results.snapshot import Snapshot

RECOMMENDED = "vllm_nfp_live_recommended_draft_length"
RunningOf = Callable[[str], int | None]
"""The draft length that an engine runs now; None: not known."""


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
        "vllm_nfp_live_running_draft_length",
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
            f"{end} end of the 95 % interval of {text}.",
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
        gain = demand.gain_over(curve, int(recommended[engine]), now)
        if gain is None:
            continue
        value.add_metric(of, gain.value)
        if gain.lower is not None and gain.upper is not None:
            lower.add_metric(of, gain.lower)
            upper.add_metric(of, gain.upper)
    yield from (running, value, lower, upper)


def told_running(controls: Iterable[Metric], others: Iterable[Metric]) -> RunningOf:
    """The draft lengths that engines run: draft control's last one, else the configured one.

    Args:
        controls: the controllers' metrics.
        others: vLLM's own metrics; it counts every configured draft position apart.
    """
    samples = {
        **samples_of(controls, (LIVE_DRAFT_LENGTH,)),
        **samples_of(others, (DRAFTS, ACCEPTED_PER_POSITION)),
    }
    return lambda engine: running_length(samples, engine)


def _by_engine(metrics: Iterable[Metric], wanted: str) -> dict[str, float]:
    found = samples_of(metrics, (wanted,)).get(wanted, [])
    return {labels["engine"]: value for labels, value in found}
