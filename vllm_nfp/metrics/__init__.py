"""From the worker's results to Prometheus: the hand-over file and the collector."""

from vllm_nfp.metrics.collector import NfpCollector
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
