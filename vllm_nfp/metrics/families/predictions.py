"""What is predicted beside what was measured."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric

from vllm_nfp.give_way import in_pieces
from vllm_nfp.metrics.families.labels import (
    LINE,
    SAMPLES_AT_A_TIME,
    cell_labels,
)
from vllm_nfp.results.snapshot import Snapshot


def predictions(engines: list[Snapshot]) -> Iterator[Metric]:
    """NFP of the kernel models, and by the idle-compute rule."""
    predicted = GaugeMetricFamily(
        "vllm_nfp_predicted_positions",
        "NFP predicted from the device's data sheet and kernel granularity.",
        labels=LINE,
    )
    idle = GaugeMetricFamily(
        "vllm_nfp_idle_compute_positions",
        "NFP by the roofline rule: free until compute-bound.",
        labels=LINE,
    )
    for snapshot in engines:
        for row in in_pieces(snapshot.predictions, SAMPLES_AT_A_TIME):
            labels = [*cell_labels(snapshot, row), f"{row.epsilon:g}"]
            predicted.add_metric(labels, row.positions)
            idle.add_metric(labels, row.idle_compute_positions)
    yield from (predicted, idle)
