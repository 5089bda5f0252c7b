"""The vocabulary, which is also the wire format: what passes from the hooks to the report.

Whatever is estimated, written to a file and shown is one of these types; :mod:`msgspec` reads
them. They know no vLLM and no torch.
"""

from vllm_nfp.types.results import (
    ActiveExperts,
    Basis,
    Boundary,
    CurvePoint,
    ExpertRouting,
    LayerHistogram,
    LayerLatency,
    LiveStep,
    Prediction,
    State,
    StepLatency,
)
from vllm_nfp.types.setup import (
    Device,
    Environment,
    ModelDescription,
    ProbeRun,
    ProbeSettings,
    ServerInfo,
)
from vllm_nfp.types.shapes import Cell, CellKey, Module, Shape, cell_name, reading_order
from vllm_nfp.types.steps import (
    EngineStep,
    LayerTime,
    PairResult,
    RefusedForNowError,
    ShapeRefusedError,
    Timing,
)

__all__ = [
    "ActiveExperts",
    "Basis",
    "Boundary",
    "Cell",
    "CellKey",
    "CurvePoint",
    "Device",
    "EngineStep",
    "Environment",
    "ExpertRouting",
    "LayerHistogram",
    "LayerLatency",
    "LayerTime",
    "LiveStep",
    "ModelDescription",
    "Module",
    "PairResult",
    "Prediction",
    "ProbeRun",
    "ProbeSettings",
    "RefusedForNowError",
    "ServerInfo",
    "Shape",
    "ShapeRefusedError",
    "State",
    "StepLatency",
    "Timing",
    "cell_name",
    "reading_order",
]
