"""What the live controller of draft lengths reports.

Handed over like the probe's results (see snapshot.py): one file for each engine, replaced whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from vllm_nfp.results.snapshot import (
    ENGINE_INDEX,
    SnapshotError,
    check_words,
    hand_over_file,
    read_hand_over,
)
from vllm_nfp.types.shapes import Count, Whole

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

    batch_size: Count
    context: Count
    draft_length: Count
    static_length: Count
    reason: str
    gain: float | None
    """Goodput over that of the configured length; None: not known."""


@dataclass(frozen=True, slots=True)
class DraftStepLatency:
    """Time of real decode steps at one draft length, drafting and host included."""

    batch_size: Count
    context: Count
    draft_length: Count
    samples: Whole
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
    live_draft_length: Count | None = None
    """Of the last decode step; None before the first."""
    lengths: tuple[Count, ...] = ()
    """What is chosen from."""
    rows: Annotated[tuple[DraftChoice, ...], _TABLE] = ()
    times: Annotated[tuple[DraftStepLatency, ...], _TABLE] = ()
    acceptance: tuple[float, ...] = ()
    """Chance of each place in the draft, given those before it."""
    decisions: Mapping[str, Whole] = dataclasses.field(default_factory=dict)
    """Changes of the length in force, by reason."""
    draft_seconds: Annotated[Mapping[str, float], _TABLE] = dataclasses.field(default_factory=dict)
    """Time of one more drafted token beside its verification, by batch size."""
    steps: Whole = 0
    """Decode steps seen by draft control."""
    trial_steps: Whole = 0
    schema: int = SCHEMA


def control_file(run_dir: str, engine: str) -> Path:
    """The hand-over file of one engine's controller.

    Raises:
        SnapshotError: for an engine index that is not a number.
    """
    return hand_over_file(run_dir, "control", engine)


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
