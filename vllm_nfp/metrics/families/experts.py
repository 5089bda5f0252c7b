"""Which experts real steps reach: distinct ones by tokens of a step, and a skew."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from vllm_nfp.metrics.families.labels import ENGINE, engine_labels
from vllm_nfp.results.snapshot import Snapshot


def experts(engines: list[Snapshot]) -> Iterator[Metric]:
    """Nothing of engines without experts, or before choices were counted."""
    active = GaugeMetricFamily(
        "vllm_nfp_active_experts",
        "Distinct experts of a layer that a step of so many tokens reads: counted from the "
        "routers' choices in real steps without a CUDA graph, or what uniform routing would read.",
        labels=[*ENGINE, "tokens", "routing"],
    )
    skew = GaugeMetricFamily(
        "vllm_nfp_routing_skew",
        "Exponent s of the counted routing: the experts' shares fall about like rank ** -s; 0 is "
        "uniform.",
        labels=ENGINE,
    )
    tokens = CounterMetricFamily(
        "vllm_nfp_routed_tokens",
        "Tokens of real steps whose experts were counted.",
        labels=ENGINE,
    )
    for snapshot in engines:
        found, labels = snapshot.experts, engine_labels(snapshot)
        if found is None:
            continue
        for row in found.active:
            active.add_metric([*labels, str(row.tokens), "counted"], row.experts)
            active.add_metric([*labels, str(row.tokens), "uniform"], row.uniform)
        skew.add_metric(labels, found.skew)
        tokens.add_metric(labels, found.tokens)
    yield from (active, skew, tokens)
