"""From the worker's results to Prometheus: the hand-over file and the collector.

The collector is loaded when it is first asked for: whoever reads or writes files and profiles needs
no prometheus_client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_nfp.metrics.snapshot import (
    BoundaryRow,
    CurveRow,
    LayerHistogram,
    LayerTimeRow,
    LiveStep,
    PredictionRow,
    Snapshot,
    SnapshotError,
    State,
    StepRow,
    read_snapshot,
    write_snapshot,
)

if TYPE_CHECKING:
    from vllm_nfp.metrics.collector import NfpCollector

__all__ = [
    "BoundaryRow",
    "CurveRow",
    "LayerHistogram",
    "LayerTimeRow",
    "LiveStep",
    "NfpCollector",
    "PredictionRow",
    "Snapshot",
    "SnapshotError",
    "State",
    "StepRow",
    "read_snapshot",
    "write_snapshot",
]


def __getattr__(name: str) -> Any:
    if name != "NfpCollector":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vllm_nfp.metrics.collector import NfpCollector

    return NfpCollector
