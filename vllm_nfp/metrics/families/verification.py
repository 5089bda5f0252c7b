"""vLLM's adaptive verification: what it admits, and what it takes steps to cost."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from vllm_nfp.metrics.families.labels import ENGINE, engine_labels
from vllm_nfp.metrics.families.state import shortened
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.types import State


def verification(engines: list[Snapshot]) -> Iterator[Metric]:
    """Nothing of engines without adaptive verification."""
    yield from _counters(engines)
    yield from _gauges(engines)


def _counters(engines: list[Snapshot]) -> Iterator[Metric]:
    steps = CounterMetricFamily(
        "vllm_nfp_verification_steps",
        "Steps whose drafts adaptive verification chose, by the costs in force: vllm (its own from "
        "startup) or measured.",
        labels=[*ENGINE, "costs"],
    )
    scheduled = CounterMetricFamily(
        "vllm_nfp_verification_scheduled_drafts",
        "Drafted tokens that adaptive verification chose from: those that vLLM scheduled.",
        labels=ENGINE,
    )
    admitted = CounterMetricFamily(
        "vllm_nfp_verification_admitted_drafts",
        "Drafted tokens that adaptive verification admitted: those that the step verified.",
        labels=ENGINE,
    )
    expected = CounterMetricFamily(
        "vllm_nfp_verification_expected_accepted_tokens",
        "Admitted drafts that it expected to be accepted, estimated from every eighth step; "
        "compare vllm:spec_decode_num_accepted_tokens_total.",
        labels=ENGINE,
    )
    renewals = CounterMetricFamily(
        "vllm_nfp_verification_renewals",
        "Changes of the measured costs of adaptive verification.",
        labels=ENGINE,
    )
    for snapshot in engines:
        report, labels = snapshot.verification, engine_labels(snapshot)
        if report is None:
            continue
        steps.add_metric([*labels, "vllm"], report.steps - report.measured_steps)
        steps.add_metric([*labels, "measured"], report.measured_steps)
        scheduled.add_metric(labels, report.scheduled)
        admitted.add_metric(labels, report.admitted)
        expected.add_metric(labels, report.expected)
        renewals.add_metric(labels, report.renewals)
    yield from (steps, scheduled, admitted, expected, renewals)


def _gauges(engines: list[Snapshot]) -> Iterator[Metric]:
    feeding = GaugeMetricFamily(
        "vllm_nfp_verification_measured_costs",
        "1 while adaptive verification is given measured costs; 0 while its own are in force, for "
        "the reason in the label.",
        labels=[*ENGINE, "reason"],
    )
    stalled = GaugeMetricFamily(
        "vllm_nfp_verification_stalled",
        "1 if the last 100 steps with drafts admitted none: vLLM corrects its confidences by "
        "admitted drafts alone, so it learns nothing.",
        labels=ENGINE,
    )
    seconds = GaugeMetricFamily(
        "vllm_nfp_verification_step_seconds",
        "Mean time of recent decode steps with drafting, by source: real, or as predicted by vllm "
        "(its costs from startup) or by measured costs.",
        labels=[*ENGINE, "source"],
    )
    for snapshot in engines:
        report, labels = snapshot.verification, engine_labels(snapshot)
        if report is None:
            continue
        off = snapshot.state is State.DISABLED
        reason = "the probe is disabled" if off else shortened(report.reason)
        feeding.add_metric([*labels, reason], float(report.feeding and not off))
        stalled.add_metric(labels, float(report.stalled and not off))
        means = report.seconds
        for source, value in (
            ("real", means.real), ("vllm", means.own), ("measured", means.measured),
        ):  # fmt: skip
            if value is not None and not off:
                seconds.add_metric([*labels, source], value)
    yield from (feeding, stalled, seconds)
