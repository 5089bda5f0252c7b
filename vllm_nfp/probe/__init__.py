"""Which probe to run next, and when: plan, budget, and the loop between real steps."""

from vllm_nfp.probe.budget import Budget
from vllm_nfp.probe.plan import Feedback, Planner, Target
from vllm_nfp.probe.prober import Prober
from vllm_nfp.probe.types import (
    EngineStep,
    LayerTime,
    PairResult,
    ProbeEngine,
    RefusedForNowError,
    Shape,
    ShapeRefusedError,
    Timing,
)

__all__ = [
    "Budget",
    "EngineStep",
    "Feedback",
    "LayerTime",
    "PairResult",
    "Planner",
    "ProbeEngine",
    "Prober",
    "RefusedForNowError",
    "Shape",
    "ShapeRefusedError",
    "Target",
    "Timing",
]
