"""What the live controller of draft lengths reports, and the metrics that it becomes.

Handed over like the probe's results (see snapshot.py): one file for each engine, replaced whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from msgspec import Meta
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from vllm_nfp.files import write_whole
from vllm_nfp.results.snapshot import (
    ENGINE_INDEX,
    SnapshotError,
    check_words,
    hand_over_file,
    read_hand_over,
)
from vllm_nfp.strict_json import encode
from vllm_nfp.text import label

SCHEMA = 1
FILE_PATTERN = "control-*.json"
MOST_CELLS = 48
"""Cells that are reported, the last used ones: bounds the number of label values."""
MOST_ROWS = MOST_CELLS * 32
"""Largest table: each cell at each draft length."""
_TABLE = Meta(max_length=MOST_ROWS)
MOST_PLACES = 32
"""Places in the draft whose acceptance is reported."""


class ControlState(StrEnum):
    """What the controller is doing."""

    LEARNING = "learning"
    """Too little is known of acceptance: the configured schedule is in force."""
    DECIDING = "deciding"
    """Lengths follow what is measured."""
    DISABLED = "disabled"
    """Off, for the reason in the log and in the snapshot: the configured schedule is in force."""


@dataclass(frozen=True, slots=True)
class DraftChoice:
    """The draft length of one batch size and context."""

    batch_size: int
    context: int
    draft_length: int
    static_length: int
    reason: str
    gain: float | None
    """Goodput over that of the configured length; None: not known."""


@dataclass(frozen=True, slots=True)
class DraftStepLatency:
    """Time of real decode steps at one draft length, drafting and host included."""

    batch_size: int
    context: int
    draft_length: int
    samples: int
    median_seconds: float


@dataclass(frozen=True, slots=True)
class ControlSnapshot:
    """All that one engine's controller reports."""

    model_name: str
    engine: str
    state: ControlState
    reason: str = ""
    """Why it is disabled; empty otherwise."""
    method: str = ""
    """How drafts are made, in vLLM's word; empty: not known."""
    live_draft_length: int | None = None
    """Of the last decode step; None before the first."""
    lengths: tuple[int, ...] = ()
    """What is chosen from."""
    rows: Annotated[tuple[DraftChoice, ...], _TABLE] = ()
    times: Annotated[tuple[DraftStepLatency, ...], _TABLE] = ()
    acceptance: tuple[float, ...] = ()
    """Chance of each place in the draft, given those before it."""
    decisions: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Changes of the length in force, by reason."""
    draft_seconds: Annotated[Mapping[str, float], _TABLE] = dataclasses.field(default_factory=dict)
    """Time of one more drafted token beside its verification, by batch size."""
    steps: int = 0
    """Decode steps seen by draft control."""
    trial_steps: int = 0
    schema: int = SCHEMA


def control_file(run_dir: str, engine: str) -> Path:
    """The hand-over file of one engine's controller.

    Raises:
        SnapshotError: for an engine index that is not a number.
    """
    return hand_over_file(run_dir, "control", engine)


def write_control(path: Path, snapshot: ControlSnapshot) -> None:
    """Replace the file whole: a reader never sees half of it."""
    write_whole(path, encode(snapshot))


def read_control(path: Path) -> ControlSnapshot:
    """Read a hand-over file, trusting nothing in it.

    Raises:
        SnapshotError: if it is too large, no JSON, of another schema, of other types, or would
            make too many or strange labels.
        OSError: if it cannot be read, or is a link.
    """
    snapshot = read_hand_over(path, ControlSnapshot, SCHEMA)
    words = {*snapshot.decisions, *(row.reason for row in snapshot.rows)}
    if snapshot.method:
        words.add(snapshot.method)
    check_words(path.name, words)
    if not all(ENGINE_INDEX.fullmatch(batch_size) for batch_size in snapshot.draft_seconds):
        raise SnapshotError(f"{path.name} holds draft_seconds of what is no batch size")
    return snapshot


_ENGINE = ["model_name", "engine"]
_CELL = [*_ENGINE, "batch_size", "context"]


def control_families(engines: Iterable[ControlSnapshot]) -> Iterator[Metric]:
    """The metrics of the engines' controllers; none where no controller runs."""
    snapshots = list(engines)
    if not snapshots:
        return
    yield from _live(snapshots)
    yield from _cells(snapshots)
    yield from _counters(snapshots)


def _labels(snapshot: ControlSnapshot) -> list[str]:
    return [label(snapshot.model_name), snapshot.engine]


def _live(snapshots: list[ControlSnapshot]) -> Iterator[Metric]:
    length = GaugeMetricFamily(
        "vllm_nfp_live_draft_length",
        "Draft length of the last decode step under draft control.",
        labels=_ENGINE,
    )
    state = GaugeMetricFamily(
        "vllm_nfp_draft_control_state",
        "1 for the state of draft control: learning, deciding or disabled.",
        labels=[*_ENGINE, "state"],
    )
    acceptance = GaugeMetricFamily(
        "vllm_nfp_draft_acceptance_ratio",
        "Recent acceptance at this draft position, given that those before were accepted.",
        labels=[*_ENGINE, "position"],
    )
    info = GaugeMetricFamily(
        "vllm_nfp_draft_control_info",
        "1 for the draft method of the server under draft control.",
        labels=[*_ENGINE, "method"],
    )
    seconds = GaugeMetricFamily(
        "vllm_nfp_draft_token_seconds",
        "Time of one more drafted token in a step, without its verification.",
        labels=[*_ENGINE, "batch_size"],
    )
    for snapshot in snapshots:
        labels = _labels(snapshot)
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
        labels = _labels(snapshot)
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
        labels=[*_ENGINE, "reason"],
    )
    steps = CounterMetricFamily(
        "vllm_nfp_draft_control_steps", "Decode steps seen by draft control.", labels=_ENGINE
    )
    trials = CounterMetricFamily(
        "vllm_nfp_draft_control_trial_steps",
        "Decode steps that ran a draft length on trial.",
        labels=_ENGINE,
    )
    for snapshot in snapshots:
        labels = _labels(snapshot)
        for reason, count in sorted(snapshot.decisions.items()):
            changes.add_metric([*labels, reason], count)
        steps.add_metric(labels, snapshot.steps)
        trials.add_metric(labels, snapshot.trial_steps)
    yield from (changes, steps, trials)
