"""Labels that the families have in common."""

from __future__ import annotations

from vllm_nfp.results.control import ControlSnapshot
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.text import label
from vllm_nfp.types import Boundary, CurvePoint, Prediction

ENGINE = ["model_name", "engine"]
CELL = [*ENGINE, "module", "batch_size", "context"]
LINE = [*CELL, "epsilon"]

SAMPLES_AT_A_TIME = 24
"""Rows that become samples before a pause: some 0.3 ms."""


def engine_labels(snapshot: Snapshot | ControlSnapshot) -> list[str]:
    """Values of :data:`ENGINE`."""
    return [label(snapshot.model_name), snapshot.engine]


def cell_labels(snapshot: Snapshot, row: Boundary | CurvePoint | Prediction) -> list[str]:
    """Values of :data:`CELL`."""
    return [*engine_labels(snapshot), str(row.module), str(row.batch_size), str(row.context)]
