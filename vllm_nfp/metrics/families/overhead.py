"""What the probe takes: time, steps that it delays, memory."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from vllm_nfp.metrics.families.labels import (
    ENGINE,
    engine_labels,
)
from vllm_nfp.results.snapshot import Snapshot


def probing(engines: list[Snapshot]) -> Iterator[Metric]:
    """Probes and their share of the time."""
    probes = CounterMetricFamily(
        "vllm_nfp_probes",
        "Probe pairs: measured (between steps), idle, startup. Pairs whose modules alone count, "
        "since the GPU waited for a launch: waited. Warm-up runs and captures: prepared (serving "
        "or idle), startup_prepared. Attempts without free memory, or with a kernel to compile "
        "while requests are served: refused.",
        labels=[*ENGINE, "outcome"],
    )
    seconds = CounterMetricFamily(
        "vllm_nfp_probe_gpu_seconds",
        "GPU time of probes while serving (host time on a CPU).",
        labels=ENGINE,
    )
    ratio = GaugeMetricFamily(
        "vllm_nfp_overhead_ratio", "Fraction of serving time spent on probes.", labels=ENGINE
    )
    budget = GaugeMetricFamily(
        "vllm_nfp_overhead_budget_ratio",
        "Maximum fraction of serving time for probes, as configured.",
        labels=ENGINE,
    )
    startup = GaugeMetricFamily(
        "vllm_nfp_startup_seconds",
        "Startup time added by the probe, including imports and predictions.",
        labels=ENGINE,
    )
    memory = GaugeMetricFamily(
        "vllm_nfp_graph_bytes", "GPU memory of the probe's CUDA graphs.", labels=ENGINE
    )
    for snapshot in engines:
        labels = engine_labels(snapshot)
        for outcome, count in sorted(snapshot.probes.items()):
            probes.add_metric([*labels, outcome], count)
        seconds.add_metric(labels, snapshot.probe_seconds)
        ratio.add_metric(labels, snapshot.overhead_ratio)
        budget.add_metric(labels, snapshot.overhead_budget)
        startup.add_metric(labels, snapshot.startup_seconds)
        memory.add_metric(labels, snapshot.graph_bytes)
    yield from (probes, seconds, ratio, budget, startup, memory)


def costs(engines: list[Snapshot]) -> Iterator[Metric]:
    """Idle time, delayed steps and memory."""
    idle = CounterMetricFamily(
        "vllm_nfp_idle_probe_gpu_seconds",
        "GPU time of probes while no request was present (host time on a CPU).",
        labels=ENGINE,
    )
    delayed = GaugeMetricFamily(
        "vllm_nfp_delayed_steps_ratio",
        "Fraction of decode steps delayed by a probe.",
        labels=ENGINE,
    )
    slack = GaugeMetricFamily(
        "vllm_nfp_budget_slack_ratio",
        "Fraction of the budget that the load leaves, over 512 steps; 0 while requests wait.",
        labels=ENGINE,
    )
    memory = GaugeMetricFamily(
        "vllm_nfp_memory_bytes",
        "Memory of the probe: gpu, or host (growth of the worker while the probe attached).",
        labels=[*ENGINE, "kind"],
    )
    for snapshot in engines:
        labels = engine_labels(snapshot)
        idle.add_metric(labels, snapshot.idle_probe_seconds)
        delayed.add_metric(labels, snapshot.step_ratio)
        slack.add_metric(labels, snapshot.budget_slack)
        memory.add_metric([*labels, "gpu"], snapshot.graph_bytes)
        memory.add_metric([*labels, "host"], snapshot.host_bytes)
    yield from (idle, delayed, slack, memory)
