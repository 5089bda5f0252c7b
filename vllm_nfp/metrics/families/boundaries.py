"""NFP with its interval, of each module and cell."""

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


def boundaries(engines: list[Snapshot]) -> Iterator[Metric]:
    """vllm_nfp_positions and the metrics beside it."""
    estimate = GaugeMetricFamily(
        "vllm_nfp_positions",
        "NFP: free positions per sequence, with a step at most (1+epsilon) times t(1).",
        labels=LINE,
    )
    lower = GaugeMetricFamily(
        "vllm_nfp_positions_lower", "Lower end of NFP's 95 % interval.", labels=LINE
    )
    upper = GaugeMetricFamily(
        "vllm_nfp_positions_upper",
        "Upper end of NFP's 95 % interval; the largest N of the grid if all are free.",
        labels=LINE,
    )
    at_limit = GaugeMetricFamily(
        "vllm_nfp_positions_at_limit",
        "1 if the largest N of the grid is still free, so NFP is this or more.",
        labels=LINE,
    )
    largest = GaugeMetricFamily(
        "vllm_nfp_positions_largest_free",
        "Largest N that is surely free, even if a smaller N is not.",
        labels=LINE,
    )
    basis = GaugeMetricFamily(
        "vllm_nfp_positions_basis",
        "1 for what NFP rests on: measured (pairs of this shape), inferred (pairs of other shapes) "
        "or predicted.",
        labels=[*LINE, "basis"],
    )
    for snapshot in engines:
        for row in in_pieces(snapshot.boundaries, SAMPLES_AT_A_TIME):
            labels = [*cell_labels(snapshot, row), f"{row.epsilon:g}"]
            estimate.add_metric(labels, row.positions)
            lower.add_metric(labels, row.lower)
            upper.add_metric(labels, row.upper)
            at_limit.add_metric(labels, float(row.at_limit))
            largest.add_metric(labels, row.largest_free)
            basis.add_metric([*labels, str(row.basis)], 1)
    yield from (estimate, lower, upper, at_limit, largest, basis)
