"""Real decode steps: their times, the last one, and what is free in it."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from vllm_nfp.give_way import in_pieces
from vllm_nfp.metrics.families.labels import (
    ENGINE,
    SAMPLES_AT_A_TIME,
    engine_labels,
)
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.types import Module, State


def steps(engines: list[Snapshot]) -> Iterator[Metric]:
    """Times of real steps by kind."""
    names = [*ENGINE, "batch_size", "context", "positions"]
    latency = GaugeMetricFamily(
        "vllm_nfp_step_latency_seconds",
        "Median time of recent real decode steps, from launch to the end of sampling.",
        labels=names,
    )
    count = CounterMetricFamily("vllm_nfp_steps", "Real decode steps of each kind.", labels=names)
    period = GaugeMetricFamily(
        "vllm_nfp_step_period_seconds",
        "Median time from the begin of a recent real decode step to the begin of the next like it.",
        labels=names,
    )
    for snapshot in engines:
        for row in in_pieces(snapshot.steps, SAMPLES_AT_A_TIME):
            labels = [
                *engine_labels(snapshot),
                str(row.batch_size),
                str(row.context),
                str(row.positions),
            ]
            latency.add_metric(labels, row.median_seconds)
            count.add_metric(labels, row.samples)
            if row.period_seconds is not None:
                period.add_metric(labels, row.period_seconds)
    yield from (latency, period, count)


def live(engines: list[Snapshot]) -> Iterator[Metric]:
    """The last step; nothing of a probe that is disabled."""
    batch = GaugeMetricFamily(
        "vllm_nfp_live_batch_size", "Sequences in the last real decode step.", labels=ENGINE
    )
    context = GaugeMetricFamily(
        "vllm_nfp_live_context", "Mean context in the last decode step, in tokens.", labels=ENGINE
    )
    positions = GaugeMetricFamily(
        "vllm_nfp_live_positions", "Positions per sequence in the last decode step.", labels=ENGINE
    )
    free = GaugeMetricFamily(
        "vllm_nfp_free_tokens",
        "Tokens that the last real step could have added within (1+epsilon), at its own batch size "
        "and context.",
        labels=[*ENGINE, "epsilon"],
    )
    cell = GaugeMetricFamily(
        "vllm_nfp_live_cell_info",
        "1 for the smallest reported batch size and context that hold the last real step; absent "
        "if there are none.",
        labels=[*ENGINE, "batch_size", "context"],
    )
    for snapshot in engines:
        # A disabled probe sees no steps: its last one would be shown as if it were now.
        if snapshot.live is None or snapshot.state == State.DISABLED:
            continue
        labels = engine_labels(snapshot)
        batch.add_metric(labels, snapshot.live.batch_size)
        context.add_metric(labels, snapshot.live.context)
        positions.add_metric(labels, snapshot.live.positions)
        for epsilon, tokens in free_tokens(snapshot).items():
            free.add_metric([*labels, f"{epsilon:g}"], tokens)
        nearest = live_cell(snapshot)
        if nearest is not None:
            cell.add_metric([*labels, *map(str, nearest)], 1)
    yield from (batch, context, positions, free, cell)


def live_cell(snapshot: Snapshot) -> tuple[int, int] | None:
    """Batch size and context of the smallest reported row that holds the last real step.

    None before the first step, and where no row of the model holds it.
    """
    live = snapshot.live
    if live is None:
        return None
    return min(
        (
            (row.batch_size, row.context)
            for row in snapshot.boundaries
            if row.module == Module.MODEL
            and row.batch_size >= live.batch_size
            and row.context >= live.context
        ),
        default=None,
    )


def free_tokens(snapshot: Snapshot) -> dict[float, int]:
    """Tokens free in the last real step, by epsilon: B (NFP - positions already run).

    NFP is the whole step's at the real batch size and context; empty before the first step.
    """
    live = snapshot.live
    if live is None:
        return {}
    return {
        row.epsilon: live.batch_size * max(0, row.positions - live.positions)
        for row in snapshot.live_boundaries
    }
