"""What the probe of each engine is doing, and how old its results are."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from vllm_nfp.metrics.families.labels import (
    ENGINE,
    engine_labels,
)
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.text import label
from vllm_nfp.types import State

MOST_REASON_CHARACTERS = 300
"""Length at which the reason is cut in a label; the log has all of it."""


def states(engines: list[Snapshot]) -> Iterator[Metric]:
    """The state of each engine, and the reason for it."""
    state = GaugeMetricFamily(
        "vllm_nfp_state",
        "1 for the probe's state: warming, probing, steady, passive or disabled.",
        labels=[*ENGINE, "state"],
    )
    why = GaugeMetricFamily(
        "vllm_nfp_state_info",
        "1 for the reason why the probe is passive or disabled, or its results are missing; "
        "absent while it probes.",
        labels=[*ENGINE, "state", "reason"],
    )
    for snapshot in engines:
        labels = engine_labels(snapshot)
        for name in State:
            state.add_metric([*labels, str(name)], float(snapshot.state == name))
        if snapshot.reason:
            why.add_metric([*labels, str(snapshot.state), shortened(snapshot.reason)], 1)
    yield from (state, why)


def servers(engines: list[Snapshot]) -> Iterator[Metric]:
    """What tells servers apart; nothing of an engine that has not started."""
    info = GaugeMetricFamily(
        "vllm_nfp_server_info",
        "1 for the device, types and versions of the engine, to group servers by.",
        labels=[
            *ENGINE,
            "device",
            "dtype",
            "quantization",
            "tensor_parallel_size",
            "vllm_version",
            "version",
        ],
    )
    for snapshot in engines:
        found = snapshot.server
        if found is not None:
            names = (found.device, found.dtype, found.quantization)
            versions = (found.vllm, found.vllm_nfp)
            values = (*names, str(found.tensor_parallel_size), *versions)
            info.add_metric([*engine_labels(snapshot), *map(label, values)], 1)
    yield info


def surface(engines: list[Snapshot]) -> Iterator[Metric]:
    """What answers rest on without measurements, and how often the surface forgot its past."""
    prior = GaugeMetricFamily(
        "vllm_nfp_prior_info",
        "1 for what answers rest on where nothing was measured: predicted, generic or profile, "
        "with the reason if there is one.",
        labels=[*ENGINE, "prior", "reason"],
    )
    jumps = CounterMetricFamily(
        "vllm_nfp_surface_jumps",
        "Times that step times jumped, so that older measurements lost their weight.",
        labels=ENGINE,
    )
    for snapshot in engines:
        labels = engine_labels(snapshot)
        if snapshot.prior:
            prior.add_metric([*labels, snapshot.prior, shortened(snapshot.prior_reason)], 1)
        jumps.add_metric(labels, snapshot.jumps)
    yield from (prior, jumps)


def shortened(reason: str) -> str:
    """A reason as the value of a label."""
    return label(" ".join(reason.split()))[:MOST_REASON_CHARACTERS]


def ages(engines: list[Snapshot]) -> Iterator[Metric]:
    """Time since each engine wrote its results."""
    age = GaugeMetricFamily(
        "vllm_nfp_age_seconds",
        "Seconds since the engine last updated its probe metrics; grows if it hangs or exits.",
        labels=ENGINE,
    )
    for snapshot in engines:
        if snapshot.updated_monotonic_seconds > 0.0:
            seconds = time.monotonic() - snapshot.updated_monotonic_seconds
            age.add_metric(engine_labels(snapshot), max(0.0, seconds))
    yield age
