"""Times of modules by number of positions, and how the steps ran."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric

from vllm_nfp.draft.curve import StepCurve
from vllm_nfp.draft.server import STEP_RATIO
from vllm_nfp.draft.sources import curves_of_rows
from vllm_nfp.give_way import in_pieces
from vllm_nfp.metrics.families.labels import (
    CELL,
    ENGINE,
    SAMPLES_AT_A_TIME,
    cell_labels,
    engine_labels,
)
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.types import Module

CurvesOf = Mapping[str, tuple[StepCurve, ...]]
"""The whole step's curves by engine."""
KNOW_CONTEXT = frozenset({Module.MODEL, Module.ATTENTION})
CURVES_AT_A_TIME = 2
"""Curves that become samples before a pause: some 0.3 ms."""


def curves(engines: list[Snapshot]) -> Iterator[Metric]:
    """Times and samples of each point; as few series as say all.

    Modules that know no context are shown at the smallest one alone.
    """
    labels = [*CELL, "positions"]
    latency = GaugeMetricFamily(
        "vllm_nfp_module_latency_seconds",
        "Median time of the module: mean of its timed layers; for model, the whole step. FFNs, "
        "linear attention and communication: at the smallest context alone, which they do not "
        "depend on.",
        labels=labels,
    )
    samples = GaugeMetricFamily(
        "vllm_nfp_samples",
        "Pairs of probes at this point; absent if there are none.",
        labels=labels,
    )
    graphed = GaugeMetricFamily(
        "vllm_nfp_execution_info",
        "1 for the way a whole step of this shape runs: full or piecewise CUDA graph, or none.",
        labels=[*labels, "execution"],
    )
    for snapshot in engines:
        least = min((row.context for row in snapshot.curves), default=0)
        for row in in_pieces(snapshot.curves, SAMPLES_AT_A_TIME):
            if row.module not in KNOW_CONTEXT and row.context != least:
                continue
            values = [*cell_labels(snapshot, row), str(row.positions)]
            latency.add_metric(values, row.median_seconds)
            if row.samples:
                samples.add_metric(values, row.samples)
            if row.module == Module.MODEL:
                graphed.add_metric([*values, row.execution], 1)
    yield from (latency, samples, graphed)


def step_curves(engines: Iterable[Snapshot]) -> CurvesOf:
    """The whole step's curves; none of a damaged file: other metrics, and engines, go on."""
    found = {}
    for snapshot in engines:
        try:
            found[snapshot.engine] = curves_of_rows(snapshot.curves)
        except ValueError:
            found[snapshot.engine] = ()
    return found


def step_ratios(engines: list[Snapshot], curves_of: CurvesOf) -> Iterator[Metric]:
    """The whole step's ratios, as draft lengths are chosen by them, with interval and basis."""
    labels = [*ENGINE, "batch_size", "context", "positions"]
    ratio = GaugeMetricFamily(
        STEP_RATIO,
        "t(N) / t(1) of the whole step. Without a CUDA graph, at least the time that the host "
        "needs.",
        labels=labels,
    )
    lower = GaugeMetricFamily(
        "vllm_nfp_step_time_ratio_lower",
        "Lower end of the ratio's 95 % interval, for N > 1.",
        labels=labels,
    )
    upper = GaugeMetricFamily(
        "vllm_nfp_step_time_ratio_upper",
        "Upper end of the ratio's 95 % interval, for N > 1.",
        labels=labels,
    )
    basis = GaugeMetricFamily(
        "vllm_nfp_step_time_ratio_basis",
        "1 for what the ratio rests on, for N > 1: measured, inferred or predicted.",
        labels=[*labels, "basis"],
    )
    for snapshot in engines:
        for curve in in_pieces(curves_of[snapshot.engine], CURVES_AT_A_TIME):
            cell = [*engine_labels(snapshot), str(curve.batch_size), str(curve.context)]
            for positions, value in curve.points:
                values = [*cell, str(positions)]
                ratio.add_metric(values, value)
                if positions == 1:
                    continue
                basis.add_metric([*values, str(curve.basis(positions))], 1)
                low, high = curve.interval(positions)
                if high < math.inf:
                    lower.add_metric(values, low)
                    upper.add_metric(values, high)
    yield from (ratio, lower, upper, basis)


def layers(engines: list[Snapshot]) -> Iterator[Metric]:
    """Times of single layers; nothing unless the engines count them."""
    if not any(snapshot.layers for snapshot in engines):
        return
    family = HistogramMetricFamily(
        "vllm_nfp_layer_latency_seconds",
        "Time of one layer's module in probes; only with layer_histograms.",
        labels=[*ENGINE, "layer", "module"],
    )
    for snapshot in engines:
        for histogram in snapshot.layers:
            bounds = [*(f"{bound:g}" for bound in histogram.bounds_seconds), "+Inf"]
            family.add_metric(
                [*engine_labels(snapshot), str(histogram.layer), str(histogram.module)],
                buckets=list(zip(bounds, map(float, histogram.counts), strict=True)),
                sum_value=histogram.sum_seconds,
            )
    yield family
