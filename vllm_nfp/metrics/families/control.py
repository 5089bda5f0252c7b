"""What the live controller of draft lengths does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from vllm_nfp.metrics.families.labels import ENGINE, engine_labels
from vllm_nfp.results.control import MOST_PLACES, ControlSnapshot, ControlState

_CELL = [*ENGINE, "batch_size", "context"]


def control_families(engines: Iterable[ControlSnapshot]) -> Iterator[Metric]:
    """The metrics of the engines' controllers; none where no controller runs."""
    snapshots = list(engines)
    if not snapshots:
        return
    yield from _live(snapshots)
    yield from _cells(snapshots)
    yield from _counters(snapshots)


def _live(snapshots: list[ControlSnapshot]) -> Iterator[Metric]:
    length = GaugeMetricFamily(
        "vllm_nfp_live_draft_length",
        "Draft length of the last decode step under draft control.",
        labels=ENGINE,
    )
    state = GaugeMetricFamily(
        "vllm_nfp_draft_control_state",
        "1 for the state of draft control: learning, deciding or disabled.",
        labels=[*ENGINE, "state"],
    )
    acceptance = GaugeMetricFamily(
        "vllm_nfp_draft_acceptance_ratio",
        "Recent acceptance at this draft position, given that those before were accepted.",
        labels=[*ENGINE, "position"],
    )
    info = GaugeMetricFamily(
        "vllm_nfp_draft_control_info",
        "1 for the draft method of the server under draft control.",
        labels=[*ENGINE, "method"],
    )
    seconds = GaugeMetricFamily(
        "vllm_nfp_draft_token_seconds",
        "Time of one more drafted token in a step, without its verification.",
        labels=[*ENGINE, "batch_size"],
    )
    for snapshot in snapshots:
        labels = engine_labels(snapshot)
        if snapshot.live_draft_length is not None and snapshot.state != ControlState.DISABLED:
            length.add_metric(labels, snapshot.live_draft_length)
        for name in ControlState:
            state.add_metric([*labels, str(name)], float(snapshot.state == name))
        if snapshot.method:
            info.add_metric([*labels, snapshot.method], 1.0)
        for place, chance in enumerate(snapshot.acceptance[:MOST_PLACES]):
            acceptance.add_metric([*labels, str(place)], chance)
        for batch_size, value in snapshot.draft_seconds.items():
            seconds.add_metric([*labels, batch_size], value)
    yield from (length, state, info, acceptance, seconds)


def _cells(snapshots: list[ControlSnapshot]) -> Iterator[Metric]:
    chosen = GaugeMetricFamily(
        "vllm_nfp_draft_control_length",
        "Draft length in force by batch size and context, with the reason.",
        labels=[*_CELL, "reason"],
    )
    gain = GaugeMetricFamily(
        "vllm_nfp_draft_control_gain_ratio",
        "Measured goodput over that of the configured draft length.",
        labels=_CELL,
    )
    step = GaugeMetricFamily(
        "vllm_nfp_draft_control_step_seconds",
        "Median time of a real decode step at this draft length, with drafting and host.",
        labels=[*_CELL, "draft_length"],
    )
    for snapshot in snapshots:
        labels = engine_labels(snapshot)
        for row in snapshot.rows:
            cell = [*labels, str(row.batch_size), str(row.context)]
            chosen.add_metric([*cell, row.reason], row.draft_length)
            if row.gain is not None:
                gain.add_metric(cell, row.gain)
        for time in snapshot.times:
            cell = [*labels, str(time.batch_size), str(time.context)]
            step.add_metric([*cell, str(time.draft_length)], time.median_seconds)
    yield from (chosen, gain, step)


def _counters(snapshots: list[ControlSnapshot]) -> Iterator[Metric]:
    changes = CounterMetricFamily(
        "vllm_nfp_draft_control_changes",
        "Changes of the draft length in force, by reason.",
        labels=[*ENGINE, "reason"],
    )
    steps = CounterMetricFamily(
        "vllm_nfp_draft_control_steps", "Decode steps seen by draft control.", labels=ENGINE
    )
    trials = CounterMetricFamily(
        "vllm_nfp_draft_control_trial_steps",
        "Decode steps that ran a draft length on trial.",
        labels=ENGINE,
    )
    for snapshot in snapshots:
        labels = engine_labels(snapshot)
        for reason, count in sorted(snapshot.decisions.items()):
            changes.add_metric([*labels, reason], count)
        steps.add_metric(labels, snapshot.steps)
        trials.add_metric(labels, snapshot.trial_steps)
    yield from (changes, steps, trials)
